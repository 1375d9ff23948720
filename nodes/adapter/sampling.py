"""Guider, samplers and one whole sampling run, on ComfyUI's machinery."""

import logging
import math
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from torch import Tensor

from ...magihuman_core.errors import InputError
from ...magihuman_core.recipes import SR_540P, Guidance
from ...magihuman_core.runtime.memory import Estimate, clip_in_words, network_activations
from ...magihuman_core.sampling.denoiser import video_scales
from ...magihuman_core.sampling.solvers import SOLVERS
from ...magihuman_core.sizes import TEXT_TOKENS
from .flow import START, start_state
from .model import MagiHumanModel
from .streams import check_shapes

log = logging.getLogger(__name__)


class StreamGuider(comfy.samplers.CFGGuider):
    """A GUIDER with a scale for each stream, noise level and latent frame.

    guidance: None to use the positive alone; otherwise a negative is needed. Raises InputError without.
    """

    def __init__(self, model, guidance: Guidance | None, positive, negative=None):
        super().__init__(model)
        if guidance is not None and negative is None:
            raise InputError("This way of sampling needs a negative prompt: connect `negative` of MagiHuman Text "
                             "Encode.")
        self.guidance = guidance
        conds = {"positive": positive} if guidance is None else {"positive": positive, "negative": negative}
        self.inner_set_conds(conds)
        # ComfyUI reports this number; the scales themselves change from step to step.
        self.set_cfg(1.0 if guidance is None else guidance.video)

    def sample(self, noise, latent_image, *args, **kwargs):
        streams = latent_image.unbind() if latent_image.is_nested else [latent_image]
        self._shapes = [tuple(stream.shape) for stream in streams]
        if isinstance(self.model_patcher.model, MagiHumanModel):
            check_shapes(self._shapes, model_channels(self.model_patcher))
            if log.isEnabledFor(logging.INFO):
                log.info("%s", self.memory())
        return super().sample(noise, latent_image, *args, **kwargs)

    def memory(self) -> Estimate:
        """What sampling this clip needs on the device, of which ComfyUI keeps as much there as fits."""
        model = self.model_patcher.model
        conds = [cond.get("cross_attn") for group in self.original_conds.values() for cond in group]
        text = max((cond.shape[1] for cond in conds if cond is not None), default=TEXT_TOKENS)
        (batch, _, frames, height, width), (_, _, audio) = self._shapes
        size = (frames, height, width)
        compute_dtype = model.diffusion_model.compute_dtype
        activations = batch * network_activations(
            model.network_config, size, audio, text, compute_dtype, "cuda", False)
        weights = self.model_patcher.model_size()
        order = ["a narrower weight_dtype in Load MagiHuman Model", "a smaller picture or a shorter clip"]
        advice = ", then ".join(order if weights > activations else reversed(order))
        return Estimate("network", clip_in_words(size, audio, text), weights, activations, advice=advice)

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        options = dict(model_options or {})
        if self.guidance is not None:
            scale = self._scale(self.guidance, float(timestep.flatten()[0]), x.device)

            def guide(args: dict) -> Tensor:
                return args["uncond"] + scale * (args["cond"] - args["uncond"])

            options.update(sampler_cfg_function=guide, disable_cfg1_optimization=True)
        return super().predict_noise(x, timestep, options, seed)

    def _scale(self, guidance: Guidance, sigma: float, device: torch.device) -> Tensor:
        """The guidance scale of every value of the packed vector, [1, 1, n]."""
        video, audio = self._shapes
        frames = video_scales(guidance, sigma, video[2], device)
        flat = frames.expand(video[1:]).reshape(1, 1, -1)  # [T, 1, 1] -> [C, T, H, W] -> [1, 1, n]
        return torch.cat([flat, flat.new_full((1, 1, math.prod(audio[1:])), guidance.audio)], dim=-1)


def make_sampler(solver: str, noise_level: int = SR_540P.noise_level, **options: Any) -> comfy.samplers.KSAMPLER:
    """A SAMPLER: "unipc" or "renoise". noise_level: see start_state; options go to the solver."""
    solve = SOLVERS[solver]

    def sample(model, x, sigmas, extra_args=None, callback=None, disable=None, **options):
        base = getattr(getattr(model, "inner_model", None), "inner_model", None)
        if isinstance(base, MagiHumanModel) and float(sigmas[0]) >= START:
            # ComfyUI has already mixed noise and latent for sigmas[0], which is just below 1 here: taken anew from
            # its parts, so that the start is exact, and right with a changed schedule object too.
            x = start_state(model.noise, model.latent_image, noise_level if base.super_resolution else None)
        return solve(model, x, sigmas, extra_args, callback, disable, **options)

    sample.__name__ = solver  # ComfyUI's log names it
    return comfy.samplers.KSAMPLER(sample, extra_options=options)


def run(guider: StreamGuider, sampler, sigmas: Tensor, latent: dict, seed: int) -> dict:
    """What SamplerCustomAdvanced with RandomNoise does: sample a LATENT and return one, with previews."""
    patcher = guider.model_patcher
    result = dict(latent)
    ratios = [result.pop(f"downscale_ratio_{axis}", None) for axis in ("spacial", "temporal")]
    start = comfy.sample.fix_empty_latent_channels(patcher, latent["samples"], *ratios)
    noise = comfy.sample.prepare_noise(start, seed, latent.get("batch_index"))
    callback = latent_preview.prepare_callback(patcher, len(sigmas) - 1)
    samples = guider.sample(noise, start, sampler, sigmas, denoise_mask=latent.get("noise_mask"), callback=callback,
                            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED, seed=seed)
    result["samples"] = samples.to(comfy.model_management.intermediate_device())
    return result


def model_role(model) -> str:
    """The role of a MODEL: base, distilled, sr_540p or sr_1080p; "" where it is not MagiHuman's."""
    return model.model.role if isinstance(model.model, MagiHumanModel) else ""


def model_channels(model) -> tuple[int, int]:
    """(video, audio) latent channels of a MagiHuman MODEL."""
    return model.model.latent_format.channels
