"""The node between the base clip and super-resolution."""

from dataclasses import replace

import torch
from comfy_api.latest import io

from ..magihuman_core.errors import InputError
from ..magihuman_core.recipes import upscaled_size
from ..magihuman_core.sampling.frozen import all_generated, keep_image
from ..magihuman_core.sampling.super_resolution import upsample
from ..magihuman_core.sizes import PIXELS_PER_LATENT
from .adapter.media import image_latent
from .adapter.streams import split, with_streams

UPSCALED = "magihuman_upscaled"  # marks a LATENT made for a super-resolution model
FACTOR = "factor"


class MagiHumanLatentUpscale(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MagiHumanLatentUpscale",
            display_name="MagiHuman Latent Upscale",
            category="MagiHuman/latent",
            description="Enlarges a finished clip's latent for a super-resolution model, which then adds the detail. "
                        "Its sound is kept as it is.",
            search_aliases=["super resolution", "upscale latent", "hires", "1080p", "magihuman"],
            inputs=[
                io.Latent.Input("latent", tooltip="A finished clip, from the base or distilled model."),
                io.Combo.Input("target", options=["540p", "1080p", FACTOR], default="540p", tooltip=(
                    "540p and 1080p: the area of 896x512 and 1920x1088 at the clip's own aspect. factor: by the "
                    "number below. Use the super-resolution model of the same name.")),
                io.Float.Input("factor", default=2.0, min=1.0, max=8.0, step=0.1, advanced=True, tooltip=(
                    "Only for target 'factor', 1 to 8; width and height are floored to multiples of 32 pixels.")),
                io.Vae.Input("vae", optional=True, tooltip="The Wan2.2 VAE, where there is a reference image."),
                io.Image.Input("image", optional=True, tooltip=(
                    "The clip's reference image once more: encoded at the large size, it keeps the first frame "
                    "sharp.")),
            ],
            outputs=[io.Latent.Output(tooltip="For MagiHuman Sampler with a super-resolution model.")],
        )

    @classmethod
    def execute(cls, latent, target, factor, vae=None, image=None) -> io.NodeOutput:
        video, audio = split(latent)
        width, height = video.shape[4] * PIXELS_PER_LATENT, video.shape[3] * PIXELS_PER_LATENT
        wanted = (int(width * factor), int(height * factor)) if target == FACTOR else target
        width, height = upscaled_size(width, height, wanted)
        large = upsample(video, height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT)
        start = replace(all_generated(large, audio), audio_mask=torch.zeros_like(audio[:, :1]))
        if image is not None:
            if vae is None:
                raise InputError("To use the image, connect the Wan2.2 VAE as well.")
            start = keep_image(start, image_latent(vae, image, large))
        return io.NodeOutput({**with_streams(latent, start), UPSCALED: True})


NODES = [MagiHumanLatentUpscale]
