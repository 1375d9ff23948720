"""A table of masks that core's nodes lay on a finished clip, through each way of sampling: how much is kept of what."""

import pytest
import torch
from comfy_extras.nodes_lt import LTXVConcatAVLatent, LTXVSeparateAVLatent
from comfy_extras.nodes_mask import SolidMask
from magihuman_pack.nodes import sampling
from magihuman_pack.nodes.adapter.streams import nested
from small_clip import AUDIO, VIDEO, relative_error
from test_mixed import TEXTS, base, run, stock  # noqa: F401  base is a fixture
from test_table_sampling import CLIP, advanced, ours, streams

import nodes


def masked(level, height=64, width=96, *, stream=None):
    """A finished clip with a mask of core's nodes on all of it, or on one of its streams."""
    mask = run(SolidMask, level, width, height)
    if stream is None:
        return nodes.SetLatentNoiseMask().set_mask(CLIP, mask)[0]
    parts = list(LTXVSeparateAVLatent.execute(CLIP).args)
    parts[stream] = nodes.SetLatentNoiseMask().set_mask(parts[stream], mask)[0]
    return run(LTXVConcatAVLatent, *parts)


def latent_mask(level, shape):
    return {"samples": CLIP["samples"], "noise_mask": nested(torch.full(shape, level), torch.ones(1, 1, 9))}


MASKS = {
    # name: (latent, whether video and audio are kept: 1 wholly, 0.5 in part, 0 not at all)
    "0 on all": (masked(0.0), (1, 0)),  # core lays a mask of a picture on the first stream alone
    "1 on all": (masked(1.0), (0, 0)),
    "half on all": (masked(0.5), (0.5, 0)),
    "0 on the picture": (masked(0.0, stream=0), (1, 0)),
    "1 on the picture": (masked(1.0, stream=0), (0, 0)),
    "half on the picture": (masked(0.5, stream=0), (0.5, 0)),
    "0 on the sound": (masked(0.0, stream=1), (0, 1)),
    "1 on the sound": (masked(1.0, stream=1), (0, 0)),
    "half on the sound": (masked(0.5, stream=1), (0, 0.5)),
    "0, of another size": (masked(0.0, 17, 200, stream=0), (1, 0)),
    "0, of one pixel": (masked(0.0, 1, 1, stream=0), (1, 0)),
    "0, of another size, on the sound": (masked(0.0, 200, 17, stream=1), (0, 1)),
    "0, as large as the latent": (latent_mask(0.0, (1, 1, 3, 4, 6)), (1, 0)),
    "0, for all channels": (latent_mask(0.0, (1, 48, 3, 4, 6)), (1, 0)),
    "0, for all frames in one": (latent_mask(0.0, (1, 1, 1, 4, 6)), (1, 0)),
}
SAMPLED = {
    "KSampler": lambda model, latent: stock(model, latent),
    "SamplerCustomAdvanced": lambda model, latent: streams(advanced(model, ours(model, "full CFG"), latent=latent)),
    "MagiHuman Sampler": lambda model, latent: streams(run(
        sampling.MagiHumanSampler, model=model, **TEXTS, latent_image=latent, seed=7, mode="auto", steps=2,
        sr_noise_level=220)),
}


@pytest.mark.parametrize("sampler", SAMPLED)
def test_masks(base, sampler):  # noqa: F811
    free = SAMPLED[sampler](base, CLIP)
    for name, (latent, kept) in MASKS.items():
        try:
            got = SAMPLED[sampler](base, latent)
        except ValueError as error:  # core's own guider brings a mask of a picture to a picture's latent alone
            assert sampler == "KSampler" and name.endswith("on the sound") and "spatial dimensions" in str(error)
            continue
        for stream, result, start, other in zip(kept, got, (VIDEO, AUDIO), free, strict=True):
            assert result.shape == start.shape and bool(torch.isfinite(result).all()), name
            away, far = relative_error([result], [start]), relative_error([other], [start])
            low, high = {1: (0, 1e-5), 0.5: (0.05 * far, 0.95 * far), 0: (0.5 * far, 10)}[stream]
            assert low <= away < high, (name, away, far)


@pytest.mark.parametrize("sampler", SAMPLED)
def test_a_mask_for_each_frame_is_read_in_time(base, sampler):  # noqa: F811
    frames = torch.zeros(9, 64, 96)
    frames[6:] = 1
    got = SAMPLED[sampler](base, nodes.SetLatentNoiseMask().set_mask(CLIP, frames)[0])[0]
    assert relative_error([got[:, :, 0]], [VIDEO[:, :, 0]]) < 1e-5
    assert relative_error([got[:, :, 2]], [VIDEO[:, :, 2]]) > 0.1
