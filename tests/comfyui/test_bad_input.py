"""What goes wrong is said in the words of the nodes, and the queue goes on."""

import graphs
import numpy as np
import pytest
import soundfile
from graphs import node, sampler
from PIL import Image
from server import ExecutionError, PromptError

GREY = node("EmptyImage", width=64, height=64, batch_size=1, color=0x808080)
UPSCALE = node("MagiHumanLatentUpscale", latent=["first", 0], target="factor", factor=2.0)


def reference(image: dict, vae: str = "wan_vae") -> dict:
    """Changes that make an image the first frame."""
    return {"image": image, "sample": {"latent_image": ["start", 0]},
            "start": node("MagiHumanReferenceImage", vae=[vae, 0], image=["image", 0], latent=["empty", 0])}


def driving(name: str) -> dict:
    """Changes that make a recording the audio."""
    return {"recording": node("LoadAudio", audio=name), "sample": {"latent_image": ["driven", 0]},
            "driven": node("MagiHumanDrivingAudio", audio_vae=["audio_vae", 0], audio=["recording", 0],
                           latent=["empty", 0], length="from the latent", max_seconds=20.0)}


@pytest.fixture(scope="module", autouse=True)
def files(base_directory):
    for name, size in (("narrow.png", (3, 200)), ("point.png", (1, 1))):
        Image.new("RGBA", size, (200, 0, 0, 120)).save(base_directory / "input" / name)
    for name, rate, shape in (("mono.wav", 8000, 2400), ("stereo.wav", 48000, (96000, 2)), ("none.wav", 44100, 0)):
        soundfile.write(base_directory / "input" / name, np.zeros(shape), rate)


# what is wrong: (the model's role, what is changed in a graph that works, what the user reads)
MISTAKES = {
    "latent of another model": ("distilled", {"empty": node("EmptyLatentImage", width=64, height=64, batch_size=1)},
                                "Empty MagiHuman Latent"),
    "latent of another model in core's sampler": (
        "distilled", {"image": GREY, "encoded": node("VAEEncode", pixels=["image", 0], vae=["wan_vae", 0]),
                      "sample": graphs.core_sampler("encoded", denoise=0.5)}, "without the sound"),
    "no clip for super-resolution": ("sr_540p", {}, "starts from a finished clip"),
    "base model in the place of super-resolution": (
        "distilled", {"first": sampler(), "large": UPSCALE, "sample": sampler("large")},
        "made for a super-resolution model"),
    "mode of super-resolution": ("distilled", {"sample": {"mode": "super-resolution"}}, "cannot sample in the mode"),
    "audio VAE for video": ("distilled", {"decode": {"vae": ["audio_vae", 0]}}, "video VAE is of another kind"),
    "video VAE for audio": ("distilled", {"decode": {"audio_vae": ["wan_vae", 0]}}, "audio VAE is of another kind"),
    "Turbo VAE to encode": ("distilled", reference(GREY, "turbo_vae"), "can only decode"),
    "image of one pixel": ("distilled", reference(node("LoadImage", image="point.png")), "too narrow for 64x96"),
    "recording without samples": ("distilled", driving("none.wav"), "No audio frames"),  # ComfyUI's own node says so
    "guidance without a negative": ("base", {"sample": {"negative": None}}, "needs a negative prompt"),
    "empty prompt": ("distilled", {"text": {"prompt": "  "}}, "prompt is empty"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named(server, mistake):
    role, changes, message = MISTAKES[mistake]
    with pytest.raises(ExecutionError) as caught:
        server.run(graphs.changed(graphs.with_video(graphs.clip(role)), changes))
    assert message in caught.value.message


@pytest.mark.parametrize(("loader", "name", "choice"), [
    ("model", "model", "../../etc/passwd"), ("encoder", "text_encoder", "nothing.safetensors"),
])
def test_a_file_that_is_not_in_the_folders_is_refused(server, loader, name, choice):
    with pytest.raises(PromptError, match=choice):
        server.run(graphs.changed(graphs.with_video(graphs.clip()), {loader: {name: choice}}))


UNUSUAL = {
    "zeroed conditioning": {"zeroed": node("ConditioningZeroOut", conditioning=["text", 0]),
                            "sample": {"positive": ["zeroed", 0]}},
    "no negative prompt": {"text": {"negative": ""}},
    "image of three columns, Wan2.2 VAE": {**reference(node("LoadImage", image="narrow.png")),
                                           "decode": {"vae": ["wan_vae", 0]}},
    "short mono at 8 kHz": driving("mono.wav"),
    "long stereo at 48 kHz": driving("stereo.wav"),
}


@pytest.mark.parametrize("input_", UNUSUAL)
def test_unusual_input_is_taken(server, input_):
    assert server.run(graphs.changed(graphs.with_video(graphs.clip()), UNUSUAL[input_])).end == "execution_success"
