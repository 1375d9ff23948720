"""Core's Train LoRA node on our MODEL: it knows one stream, so the video alone is trained."""

import pytest
import torch
from comfy_extras.nodes_train import TrainLoraNode
from small_clip import TEXT, VIDEO, max_error, sample, with_lora


def train(model, latent, steps, bypass=False, checkpointing=False):
    """(LoRA, losses) of the node."""
    settings = {
        "batch_size": 1, "steps": steps, "grad_accumulation_steps": 1, "learning_rate": 0.01, "rank": 4,
        "optimizer": "AdamW", "loss_function": "MSE", "seed": 3, "training_dtype": "fp32", "lora_dtype": "fp32",
        "quantized_backward": False, "algorithm": "LoRA", "gradient_checkpointing": checkpointing,
        "checkpoint_depth": 2, "offloading": False, "existing_lora": "[None]", "bucket_mode": False,
        "bypass_mode": bypass,
    }
    with torch.inference_mode():  # as in a server
        out = TrainLoraNode.execute(
            model=[model], latents=[{"samples": latent.clone()}], positive=[[[TEXT.clone(), {}]]],
            **{name: [value] for name, value in settings.items()})
    return out.args[0], out.args[1]["loss"]


@pytest.mark.parametrize(("steps", "bypass", "checkpointing"), [
    (24, False, False), (3, True, False), (3, False, True),
])  # fmt: skip
def test_a_lora_learns_one_clip(model, plain, steps, bypass, checkpointing):
    clip = model.model.latent_format.process_out(VIDEO * 0.2 + 0.5)
    lora, losses = train(model, clip, steps, bypass, checkpointing)
    assert len(losses) == steps
    if steps > 20:
        first, last = (sum(part) / 8 for part in (losses[:8], losses[-8:]))
        assert last < 0.8 * first, losses
    assert max_error(sample(model), plain) == 0, "the model itself stays as it is"
    changed = with_lora(model, lora, 1.0)
    assert changed.patches
    assert max_error(sample(changed), plain) > 1e-2
