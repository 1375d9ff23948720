"""What LoRA files put before the names of a network's layers."""

PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "model.", "module.",
            "lora_unet_", "lora_transformer_", "lycoris_")


def first_prefix(name: str) -> str:
    """The first of the prefixes that a name has; "" where it has none."""
    return next((prefix for prefix in PREFIXES if name.startswith(prefix)), "")


def is_prefix(text: str) -> bool:
    """Whether a text is nothing, or prefixes one after the other."""
    while prefix := first_prefix(text):
        text = text.removeprefix(prefix)
    return not text
