"""Small models of each kind, as tests/data has them."""

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

DATA = Path(__file__).parents[1] / "data"
SMALL_MODELS = {
    "network": "pipeline/weights_base",
    "text_encoder": "t5gemma/tiny",
    "video_vae": "wan22_vae/tiny",
    "audio_vae": "sa_audio/oobleck_tiny",
    "turbo_vae": "turbo_vaed/tiny_weights",
}


def small_model(kind: str) -> dict[str, Tensor]:
    """A model's weights, without the inputs and outputs that some were recorded with."""
    tensors = load_file(DATA / f"{SMALL_MODELS[kind]}.safetensors")
    weights = {key.removeprefix("weights."): value for key, value in tensors.items() if key.startswith("weights.")}
    return weights or tensors
