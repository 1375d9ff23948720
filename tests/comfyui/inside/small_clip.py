"""A clip for the small models, how the tests here sample it, and what they compare it with."""

import comfy.nested_tensor
import comfy.sd
import torch
from magihuman_pack.magihuman_core import JointDenoiser, flow_sigmas, pack_latents, sample_unipc, unpack_latents
from magihuman_pack.nodes.adapter import sampling

generator = torch.Generator().manual_seed(4)


def random(*shape):
    return torch.randn(shape, generator=generator)


VIDEO, AUDIO = random(1, 48, 3, 4, 6), random(1, 64, 9)
TEXT, OTHER = random(1, 7, 32), random(1, 9, 32)


def sample(model, positive=TEXT, negative=None, options=None):
    """[video, audio] latents through ComfyUI, after two steps of UniPC. options: of the positive conditioning."""
    nested = comfy.nested_tensor.NestedTensor
    guidance = None if negative is None else sampling.Guidance()
    guider = sampling.StreamGuider(model, guidance, [[positive, options or {}]],
                                   None if negative is None else [[negative, {}]])
    out = guider.sample(nested([VIDEO, AUDIO]), nested([torch.zeros_like(VIDEO), torch.zeros_like(AUDIO)]),
                        sampling.make_sampler("unipc"), flow_sigmas(2), seed=1, disable_pbar=True)
    return out.unbind()


def sample_by_core(network, latent_format, negative=None):
    """The same with a network of the core's, in the core's own loop."""
    x, shapes = pack_latents(VIDEO, AUDIO)
    with torch.no_grad():
        denoiser = JointDenoiser(network, shapes, TEXT, negative)
        video, audio = unpack_latents(sample_unipc(denoiser, x, flow_sigmas(2), disable=True), shapes)
    return latent_format.process_out(video), audio


def with_lora(model, lora, strength=0.7):
    return comfy.sd.load_lora_for_models(model, None, lora, strength, 0)[0]


def max_error(got, wanted) -> float:
    """The largest difference of two tensors, or of two clips."""
    if isinstance(got, torch.Tensor):
        got, wanted = [got], [wanted]
    assert [tuple(a.shape) for a in got] == [tuple(b.shape) for b in wanted]
    return _largest([(a - b).abs().max() for a, b in zip(got, wanted, strict=True)])


def relative_error(got, wanted) -> float:
    """The norm of the difference of two clips, in parts of the wanted one's; of video and audio the larger."""
    return _largest([(a - b).norm() / b.norm() for a, b in zip(got, wanted, strict=True)])


def _largest(errors) -> float:
    return float(torch.stack(errors).max())  # torch's maximum of anything and NaN is NaN
