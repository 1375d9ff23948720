"""Every loader refuses the weights of every other part, and says what they are."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

import magihuman_core
from magihuman_core.errors import CheckpointError

DATA = Path(__file__).parents[1] / "data"
LOADERS = {
    "network": "load_dit",
    "text_encoder": "load_text_encoder",
    "video_vae": "load_video_vae",
    "audio_vae": "load_audio_vae",
    "turbo_vae": "load_turbo_vae",
}


def weights(name: str) -> dict:
    return {k[8:]: v for k, v in load_file(DATA / name).items() if k.startswith("weights.")}


@pytest.fixture(scope="module")
def small_models() -> dict[str, dict]:
    return {
        "network": load_file(DATA / "pipeline" / "weights_base.safetensors"),
        "text_encoder": weights("t5gemma/tiny.safetensors"),
        "video_vae": weights("wan22_vae/tiny.safetensors"),
        "audio_vae": weights("sa_audio/oobleck_tiny.safetensors"),
        "turbo_vae": load_file(DATA / "turbo_vaed" / "tiny_weights.safetensors"),
    }


@pytest.mark.parametrize("given", LOADERS)
@pytest.mark.parametrize("wanted", LOADERS)
def test_a_file_for_another_part_is_refused_by_name(wanted, given, small_models):
    load = getattr(magihuman_core, LOADERS[wanted])
    if wanted != given:
        with pytest.raises(CheckpointError, match=r"is an? .*, where an? .* is expected\. Choose this file as"):
            load(small_models[given])
    elif wanted == "text_encoder":
        config = json.loads((DATA / "t5gemma" / "tiny.json").read_text())["config"]
        load(small_models[given], config=config)
    else:
        load(small_models[given])
