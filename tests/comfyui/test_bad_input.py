"""What goes wrong is said in the words of the nodes, and the queue goes on."""

import wave

import graphs
import pytest
from graphs import node
from PIL import Image
from server import ExecutionError, PromptError


def failure(server, graph: dict, output: str = "sample") -> str:
    """The message a run ends with."""
    graph = dict(graph)
    graph["images"] = node("VAEDecode", samples=[output, 0], vae=["turbo", 0])
    graph["show"] = node("PreviewImage", images=["images", 0])
    with pytest.raises(ExecutionError) as caught:
        server.run(graph)
    return caught.value.message


def test_latent_of_another_model(server):
    graph = graphs.clip()
    graph["empty"] = node("EmptyLatentImage", width=64, height=64, batch_size=1)
    assert "Empty MagiHuman Latent" in failure(server, graph)


def test_latent_of_another_model_in_the_core_sampler(server):
    graph = graphs.clip()
    graph["empty"] = node("EmptyLTXVLatentVideo", width=96, height=96, length=9, batch_size=1)
    graph["filled"] = node("VAEEncode", pixels=["grey", 0], vae=["wan", 0])
    graph["grey"] = node("EmptyImage", width=64, height=64, batch_size=1, color=0x808080)
    graph["sample"] = node("KSampler", model=["model", 0], positive=["text", 0], negative=["text", 1],
                           latent_image=["filled", 0], seed=1, steps=2, cfg=1.0, sampler_name="euler",
                           scheduler="simple", denoise=0.5)
    assert "without the sound" in failure(server, graph)


def test_base_model_in_the_super_resolution_place_and_the_reverse(server):
    graph = graphs.clip("sr_540p")
    assert "starts from a finished clip" in failure(server, graph)
    graph = graphs.clip()
    graph["large"] = node("MagiHumanLatentUpscale", latent=["sample", 0], target="factor", factor=2.0)
    graph["fine"] = {**graph["sample"], "inputs": {**graph["sample"]["inputs"], "latent_image": ["large", 0]}}
    assert "made for a super-resolution model" in failure(server, graph, "fine")
    graph["fine"]["inputs"] = {**graph["sample"]["inputs"], "mode": "super-resolution"}
    assert "cannot sample in the mode" in failure(server, graph, "fine")


def test_wrong_vae(server):
    graph = graphs.film(graphs.clip(), vae="sound")
    with pytest.raises(ExecutionError, match="video VAE is of another kind"):
        server.run(graph)
    graph = graphs.film(graphs.clip())
    graph["decode"]["inputs"]["audio_vae"] = ["wan", 0]
    with pytest.raises(ExecutionError, match="audio VAE is of another kind"):
        server.run(graph)


def test_turbo_vae_cannot_encode(server):
    graph = graphs.clip()
    graph["grey"] = node("EmptyImage", width=64, height=64, batch_size=1, color=0x808080)
    graph["held"] = node("MagiHumanReferenceImage", vae=["turbo", 0], image=["grey", 0], latent=["empty", 0])
    assert "can only decode" in failure(server, graph, "held")


def test_a_model_outside_of_the_folders_is_refused(server):
    graph = graphs.clip()
    graph["model"]["inputs"]["model"] = "../../etc/passwd"
    with pytest.raises(PromptError, match="etc/passwd"):
        server.run(graphs.film(graph))


def test_zeroed_conditioning_is_taken(server):
    graph = graphs.clip()
    graph["zeroed"] = node("ConditioningZeroOut", conditioning=["text", 0])
    graph["sample"]["inputs"]["positive"] = ["zeroed", 0]
    assert server.run(graphs.film(graph)).end == "execution_success"


def with_picture(server, size: tuple[int, int]) -> dict:
    Image.new("RGBA", size, (200, 0, 0, 120)).save(server.base / "input/tiny.png")
    graph = graphs.clip(seed=size[1])
    graph["picture"] = node("LoadImage", image="tiny.png")
    graph["held"] = node("MagiHumanReferenceImage", vae=["wan", 0], image=["picture", 0], latent=["empty", 0])
    graph["sample"]["inputs"]["latent_image"] = ["held", 0]
    return graphs.film(graph)


def test_a_picture_of_three_columns_is_enough(server):
    assert server.run(with_picture(server, (3, 200))).end == "execution_success"


def test_a_picture_of_one_pixel_is_too_narrow(server):
    with pytest.raises(ExecutionError, match="too narrow for 64x96"):
        server.run(with_picture(server, (1, 1)))


@pytest.mark.parametrize(("rate", "channels", "seconds"), [(8000, 1, 0.3), (48000, 2, 2.0), (44100, 1, 0.0)])
def test_sounds_of_every_kind(server, rate, channels, seconds):
    name = f"sound_{rate}_{channels}.wav"
    with wave.open(str(server.base / "input" / name), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(b"\0\0" * channels * int(rate * seconds))
    graph = graphs.clip(seed=rate)
    graph["recording"] = node("LoadAudio", audio=name)
    graph["driven"] = node("MagiHumanDrivingAudio", audio_vae=["sound", 0], audio=["recording", 0], latent=["empty", 0],
                           length="from the latent", max_seconds=20.0)
    graph["sample"]["inputs"]["latent_image"] = ["driven", 0]
    if seconds:
        assert server.run(graphs.film(graph)).end == "execution_success"
    else:
        with pytest.raises(ExecutionError, match="LoadAudio: No audio frames"):  # ComfyUI's own node says so
            server.run(graphs.film(graph))


def test_a_text_encoder_that_is_not_there_is_refused(server):
    graph = graphs.clip()
    graph["clip"]["inputs"]["text_encoder"] = "nothing.safetensors"
    with pytest.raises(PromptError, match=r"nothing\.safetensors"):
        server.run(graphs.film(graph))


def test_full_guidance_without_a_negative(server):
    graph = graphs.clip("base")
    del graph["sample"]["inputs"]["negative"]
    assert "needs a negative prompt" in failure(server, graph)


def test_empty_prompt(server):
    graph = graphs.clip()
    graph["text"]["inputs"]["prompt"] = "  "
    assert "prompt is empty" in failure(server, graph)
    graph["text"]["inputs"].update(prompt="Somebody speaks.", negative="")  # no negative is no mistake
    assert server.run(graphs.film(graph)).end == "execution_success"
