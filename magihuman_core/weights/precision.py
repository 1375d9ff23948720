"""What may be quantized and what must keep its precision, under every name: official, split, and our own."""


def keep_fp32(key: str) -> bool:
    """Whether a tensor decides quality, so that it is never rounded.

    Of the network embedders, heads, norms and rotary bands; of VAEs the statistics of the latent; and the scales
    of quantized weights. Norms of VAEs and of the text encoder have the dtype of the other weights there.
    """
    if key.endswith(".scale") or key in ("latent_mean", "latent_std"):
        return True
    return key.startswith(("adapter.", "final_")) or ("norm" in key and not key.startswith(("encoder.", "decoder.")))


def may_quantize(key: str) -> bool:
    """Whether a weight of the network or the text encoder is a matrix that may be kept in 8 bits.

    Not the gate of attention, which is small and worth its precision.
    """
    if key.startswith("encoder."):
        return key.endswith("_proj.weight")
    return key.startswith(("block.", "blocks.")) and not keep_fp32(key) and ".linear_g" not in key
