"""The noise schedule, and the state that sampling begins with."""

import comfy.model_sampling
from torch import Tensor

from ...magihuman_core.sampling.super_resolution import cover_video

START = 0.999  # a schedule that begins at or above this sigma begins from the start state, not from a mixture


class FlowSampling(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
    """Rectified flow whose schedule begins from the model's own start state.

    noise_level: see start_state. So every sampler of ComfyUI starts right, with any noise node.
    """

    noise_level: int | None = None

    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        if float(sigma.max()) < START:
            return super().noise_scaling(sigma, noise, latent_image, max_denoise)
        return start_state(noise, latent_image, self.noise_level)


def start_state(noise: Tensor, latent: Tensor, noise_level: int | None) -> Tensor:
    """What sampling begins with, a packed vector [B, 1, n] as noise and latent are.

    noise_level: None for a model that makes a clip from noise; for super-resolution the level of noise, 0 to 999, that
    covers the upsampled clip it starts from.
    """
    return noise.clone() if noise_level is None else cover_video(latent, noise, noise_level)
