"""Each example workflow, as it is shipped, through the HTTP API of a real server: a video with audio comes out.

Small random models lie under the names of the large files; sizes, lengths and steps are cut down for time.
"""

import json
from pathlib import Path

import av
import pytest
from record_object_info import RECORD, slim
from ui_graph import to_api

FOLDER = Path(__file__).resolve().parents[2] / "example_workflows"
WORKFLOWS = sorted(FOLDER.glob("*.json"))
SMALL = {
    "EmptyMagiHumanLatent": {"width": 64, "height": 96, "seconds": 0.4},
    "MagiHumanSampler": {"steps": 2},
    "MagiHumanLatentUpscale": {"target": "factor", "factor": 2.0},
    "MagiHumanExtend": {"seconds": 0.4},
}
# (width, height, frames) of the video that each must give at these sizes
EXPECTED = {
    "lip_sync": (64, 96, 13),  # as long as the voice
    "lip_sync_540p": (128, 192, 13),
    "lip_sync_upright": (128, 192, 13),
    "picture_to_clip_540p": (128, 192, 9),
    "picture_to_clip_1080p": (128, 192, 9),
    "extend_clip": (64, 96, 33 + 8),  # of 33 frames that are decoded, 25 are the overlap
}


def reduced(prompt: dict) -> dict:
    """The same prompt, small and short; super-resolution keeps its own few steps."""
    for node in prompt.values():
        source, _ = node["inputs"].get("latent_image", (None, 0))
        if source is None or prompt[source]["class_type"] != "MagiHumanLatentUpscale":
            node["inputs"].update(SMALL.get(node["class_type"], {}))
    return prompt


@pytest.fixture(scope="module")
def known(server):
    return server.get("/object_info")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_makes_a_video(server, known, path):
    prompt = reduced(to_api(json.loads(path.read_text(encoding="utf-8")), known))
    result = server.run(prompt)
    (save,) = (key for key, node in prompt.items() if node["class_type"] == "SaveVideo")
    (video_path,) = result.files(save)
    with av.open(str(video_path)) as file:
        video, audio = file.streams.video[0], file.streams.audio[0]
        width, height, frames = EXPECTED.get(path.stem, (64, 96, 9))
        assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
        assert (audio.rate, audio.channels) == (44100, 2)
        assert (video.width, video.height, video.frames, video.average_rate) == (width, height, frames, 25)
        assert abs(float(audio.duration * audio.time_base) - frames / 25) < 0.05
        assert file.metadata["prompt"]
        assert max(abs(frame.to_ndarray()).max() for frame in file.decode(audio=0)) > 1e-3, "the video is silent"


def test_the_record_for_tests_without_comfyui_is_up_to_date(known):
    """If this fails after a change of the nodes: python tests/comfyui/record_object_info.py"""
    for name, info in json.loads(RECORD.read_text(encoding="utf-8"))["nodes"].items():
        assert slim(known[name]) == info, name
