"""The noise schedule, and the state that sampling begins with."""

import copy

import comfy.model_sampling
import torch
from torch import Tensor

from ...magihuman_core.sampling.super_resolution import cover_video
from .streams import nested

START = 0.999  # a schedule that begins at or above this sigma begins from the start state, not from a mixture


class StartState(comfy.model_sampling.CONST):
    """Mixed into a schedule of flow, which then begins from the model's own start state.

    noise_level: see start_state. So every sampler of ComfyUI starts right, with any noise node.
    """

    noise_level: int | None = None

    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        if noise.is_nested:  # of nodes that add noise to latents
            pairs = zip(noise.unbind(), latent_image.unbind(), strict=True)
            return nested(*(self.noise_scaling(sigma, *pair, max_denoise) for pair in pairs))
        if float(sigma.max()) < START:
            return super().noise_scaling(sigma, noise, latent_image, max_denoise)
        return start_state(noise, latent_image, self.noise_level)

    def inverse_noise_scaling(self, sigma, latent):
        """What a schedule that ends with noise gives: at its very end, there is no clip that it could be parted in."""
        return latent if float(sigma.max()) >= START else super().inverse_noise_scaling(sigma, latent)


class FlowSampling(StartState, comfy.model_sampling.ModelSamplingDiscreteFlow):
    """Rectified flow with the model's own start state."""


def with_start_state(schedule, old):
    """Another node's schedule, made to begin as the model's own (`old`) does; one that is no flow is left as it is."""
    if isinstance(schedule, StartState) or not isinstance(schedule, comfy.model_sampling.CONST):
        return schedule
    begun = copy.copy(schedule)  # the node's object stays what it is
    begun.__class__ = type("MagiHuman" + type(schedule).__name__, (StartState, type(schedule)), {})
    begun.noise_level = getattr(old, "noise_level", None)
    return begun


def start_state(noise: Tensor, latent: Tensor, noise_level: int | None) -> Tensor:
    """What sampling begins with, a packed vector [B, 1, n] as noise and latent are.

    noise_level: None for a model that makes a clip from noise; for super-resolution the level of noise, 0 to 999, that
    covers the upsampled clip it starts from. Where there is no noise (Disable Noise), another sampler has begun, and
    the latent is how far it came.
    """
    if not torch.count_nonzero(noise):
        return latent.clone()
    return noise.clone() if noise_level is None else cover_video(latent, noise, noise_level)
