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
    "MagiHumanWindows": {"window_seconds": 0.4, "overlap_seconds": 0.16},
    "MagiHumanVoiceDraft": {"seconds": 0.4, "steps": 1, "takes": 2},
}
# (width, height, frames) of the video that each must give at these sizes
EXPECTED = {
    "lip_sync": (64, 96, 15),  # as long as the voice, to its end
    "lip_sync_540p": (128, 192, 15),
    "lip_sync_upright": (128, 192, 15),
    "long_speech": (64, 96, 15),
    "dub": (64, 96, 33),  # as long as the old clip
    "retake": (64, 96, 33),
    "picture_to_clip_540p": (128, 192, 9),
    "picture_to_clip_1080p": (128, 192, 9),
    "extend_clip": (64, 96, 33 + 12),  # of 37 frames that are decoded, 25 are the overlap
}
SEVERAL = {"seeds_batch": 2}  # clips that come of one run
SOUND_ONLY = ["voice_draft"]


def reduced(prompt: dict) -> dict:
    """The same prompt, small and short; super-resolution keeps its own few steps."""
    for node in prompt.values():
        source, _ = node["inputs"].get("latent_image", (None, 0))
        if source is None or prompt[source]["class_type"] != "MagiHumanLatentUpscale":
            node["inputs"].update(SMALL.get(node["class_type"], {}))
        if node["inputs"].get("batch_size", 1) > 1:
            node["inputs"]["batch_size"] = 2
    return prompt


@pytest.fixture(scope="module")
def known(server):
    return server.get("/object_info")


@pytest.mark.parametrize("path", [path for path in WORKFLOWS if path.stem not in SOUND_ONLY],
                         ids=lambda path: path.stem)
def test_workflow_makes_a_video(server, known, path):
    prompt = reduced(to_api(json.loads(path.read_text(encoding="utf-8")), known))
    result = server.run(prompt)
    (save,) = (key for key, node in prompt.items() if node["class_type"] == "SaveVideo")
    videos = result.files(save)
    assert len(videos) == SEVERAL.get(path.stem, 1)
    for video_path in videos:
        with av.open(str(video_path)) as file:
            video, audio = file.streams.video[0], file.streams.audio[0]
            width, height, frames = EXPECTED.get(path.stem, (64, 96, 9))
            assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
            assert (audio.rate, audio.channels) == (44100, 2)
            assert (video.width, video.height, video.frames, video.average_rate) == (width, height, frames, 25)
            assert abs(float(audio.duration * audio.time_base) - frames / 25) < 0.05
            assert file.metadata["prompt"]
            assert max(abs(frame.to_ndarray()).max() for frame in file.decode(audio=0)) > 1e-3, "the video is silent"


def test_voice_draft_makes_takes_that_differ(server, known):
    prompt = reduced(to_api(json.loads((FOLDER / "voice_draft.json").read_text(encoding="utf-8")), known))
    result = server.run(prompt)
    (preview,) = (key for key, node in prompt.items() if node["class_type"] == "PreviewAudio")
    takes = []
    for path in result.files(preview):
        with av.open(str(path)) as file:
            takes.append(b"".join(frame.to_ndarray().tobytes() for frame in file.decode(audio=0)))
    assert len(set(takes)) == 2 and all(any(take) for take in takes)


def test_the_record_for_tests_without_comfyui_is_up_to_date(known):
    """If this fails after a change of the nodes: python tests/comfyui/record_object_info.py"""
    for name, info in json.loads(RECORD.read_text(encoding="utf-8"))["nodes"].items():
        assert slim(known[name]) == info, name
