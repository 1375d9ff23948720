"""Each example workflow, as it is shipped, through the HTTP API of a real server: a film with sound comes out.

Small random models lie under the names of the large files; sizes, lengths and steps are cut down for time.
"""

import json
import wave
from array import array
from math import sin
from pathlib import Path

import av
import pytest
from PIL import Image
from record_object_info import RECORD, slim
from ui_graph import inputs_of, to_api

FOLDER = Path(__file__).resolve().parents[2] / "example_workflows"
WORKFLOWS = sorted(FOLDER.glob("*.json"))
VOICE_SECONDS, CLIP_FRAMES = 0.6, 33
SMALL = {
    "EmptyMagiHumanLatent": {"width": 64, "height": 96, "seconds": 0.4},
    "MagiHumanSampler": {"steps": 2},
    "MagiHumanLatentUpscale": {"target": "factor", "factor": 2.0},
    "MagiHumanExtend": {"seconds": 0.4},
}
# (width, height, frames) of the film that each must give at these sizes
EXPECTED = {
    "lip_sync": (64, 96, 13),
    "picture_to_clip_540p": (128, 192, 9),
    "picture_to_clip_1080p": (128, 192, 9),
    "extend_clip": (64, 96, CLIP_FRAMES + 8),  # of 33 new frames, 25 are the overlap
}


@pytest.fixture(scope="module")
def ready(server):
    """The server, with every file that the workflows name: models in small, a picture, a voice, a clip."""
    copy_models(server.base / "models")
    write_media(server.base / "input")
    return server


def copy_models(models: Path) -> None:
    """Give conftest's small models the names that the workflows use, where that was not done yet."""
    encoder = models / "text_encoders/t5gemma-9b-9b-ul2"
    if not encoder.exists():
        encoder.mkdir()
        for path in (models / "text_encoders/t5gemma").iterdir():
            name = "model-00001-of-00001.safetensors" if path.suffix == ".safetensors" else path.name
            (encoder / name).write_bytes(path.read_bytes())
    sound = models / "vae/stable-audio-open-1.0/model.safetensors"
    if not sound.exists():
        sound.parent.mkdir()
        sound.write_bytes((models / "vae/stable_audio.safetensors").read_bytes())


def write_media(folder: Path) -> None:
    picture = Image.linear_gradient("L").resize((80, 120)).convert("RGB")
    picture.save(folder / "picture.png")
    rate = 16000
    tone = [round(9000 * sin(i * 0.08)) for i in range(round(VOICE_SECONDS * rate))]
    with wave.open(str(folder / "voice.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(array("h", tone).tobytes())
    with av.open(str(folder / "clip.mp4"), "w") as film:
        video, audio = film.add_stream("h264", 25), film.add_stream("aac", 44100)
        video.width, video.height, video.pix_fmt = 64, 96, "yuv420p"
        for shade in range(CLIP_FRAMES):
            frame = av.VideoFrame.from_image(Image.new("RGB", (64, 96), (5 * shade, 90, 160)))
            film.mux(video.encode(frame))
        samples = round(CLIP_FRAMES / 25 * 44100)
        for start in range(0, samples, 1024):
            sound = av.AudioFrame(format="fltp", layout="stereo", samples=1024)
            for plane in sound.planes:
                plane.update(array("f", [0.2 * sin((start + i) * 0.03) for i in range(1024)]).tobytes())
            sound.sample_rate, sound.pts = 44100, start
            film.mux(audio.encode(sound))
        film.mux(video.encode(None))
        film.mux(audio.encode(None))


def reduced(prompt: dict) -> dict:
    """The same prompt, small and short; super-resolution keeps its own few steps."""
    for node in prompt.values():
        source, _ = node["inputs"].get("latent_image", (None, 0))
        if source is None or prompt[source]["class_type"] != "MagiHumanLatentUpscale":
            node["inputs"].update(SMALL.get(node["class_type"], {}))
    return prompt


@pytest.fixture(scope="module")
def known(ready):
    return ready.get("/object_info")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_makes_a_film(ready, known, path):
    prompt = reduced(to_api(json.loads(path.read_text(encoding="utf-8")), known))
    result = ready.run(prompt)
    (save,) = (key for key, node in prompt.items() if node["class_type"] == "SaveVideo")
    (film,) = result.files(save)
    with av.open(str(film)) as file:
        video, audio = file.streams.video[0], file.streams.audio[0]
        width, height, frames = EXPECTED.get(path.stem, (64, 96, 9))
        assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
        assert (audio.rate, audio.channels) == (44100, 2)
        assert (video.width, video.height, video.frames, video.average_rate) == (width, height, frames, 25)
        assert abs(float(audio.duration * audio.time_base) - frames / 25) < 0.05
        assert file.metadata["prompt"]
    with av.open(str(film)) as file:
        loudest = max(abs(frame.to_ndarray()).max() for frame in file.decode(audio=0))
    assert loudest > 1e-3, "the film is silent"


def test_the_names_of_files_are_those_of_the_loaders_choices(ready, known):
    """Nothing was patched away above: each file that a workflow names is one that the loader offers."""
    for path in WORKFLOWS:
        for node in to_api(json.loads(path.read_text(encoding="utf-8")), known).values():
            for name, (kind, options, _) in inputs_of(known[node["class_type"]]).items():
                value = node["inputs"].get(name)
                if kind == "COMBO" and not isinstance(value, list):
                    assert value in options["options"], (path.stem, node["class_type"], name, value)


def test_the_record_for_tests_without_comfyui_is_up_to_date(known):
    """If this fails after a change of the nodes: python tests/comfyui/record_object_info.py"""
    for name, info in json.loads(RECORD.read_text(encoding="utf-8"))["nodes"].items():
        assert slim(known[name]) == info, name
