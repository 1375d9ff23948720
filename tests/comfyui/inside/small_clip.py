"""A clip for the small models, and how the programs here sample it. To be imported after load_pack."""

import comfy.nested_tensor
import torch
from magihuman_pack.magihuman_core import flow_sigmas
from magihuman_pack.nodes.adapter import sampling

generator = torch.Generator().manual_seed(3)


def random(*shape):
    return torch.randn(shape, generator=generator)


VIDEO, AUDIO = random(1, 48, 3, 4, 6), random(1, 64, 9)
TEXT, OTHER = random(1, 7, 32), random(1, 9, 32)


def sample(model, steps=2, negative=None, sampler="unipc"):
    nested = comfy.nested_tensor.NestedTensor
    guidance = None if negative is None else sampling.Guidance()
    guider = sampling.make_guider(model, guidance, [[TEXT, {}]], None if negative is None else [[negative, {}]])
    out = guider.sample(nested([VIDEO, AUDIO]), nested([torch.zeros_like(VIDEO), torch.zeros_like(AUDIO)]),
                        sampling.make_sampler(sampler), flow_sigmas(steps), seed=1, disable_pbar=True)
    return out.unbind()
