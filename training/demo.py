"""A folder of demo weights in use: what evaluation makes clips with."""

import numpy as np
import torch

from magihuman_core import (
    Guidance,
    JointDenoiser,
    flow_sigmas,
    load_audio_vae,
    load_dit,
    load_text_encoder,
    load_turbo_vae,
    load_video_vae,
    pack_latents,
    prepare_super_resolution,
    sample_renoise,
    sample_unipc,
    unpack_latents,
)
from magihuman_core.sampling.frozen import JointLatent, all_generated, empty_latent
from magihuman_core.sizes import audio_length
from magihuman_core.text.prompt import DEFAULT_NEGATIVE_PROMPT
from training.common import Stop


def to_pixels(video):
    """[1, 3, F, H, W] in -1..1 -> uint8 [F, H, W, 3]."""
    return ((video[0].float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 3, 0).numpy()


def from_pixels(video):
    """The other way."""
    return torch.from_numpy(np.asarray(video, np.float32)).permute(3, 0, 1, 2)[None] / 127.5 - 1


class Demo:
    """All parts of a folder of demo weights, and the ways to make a clip with them."""

    def __init__(self, folder, guidance=None):
        def find(part):
            for path in (folder / part).glob("*.safetensors"):
                return path
            raise Stop(f"{folder} holds no {part}: train it, then run python -m training.export first.")

        self.folder, self.guidance = folder, guidance or Guidance()
        self.text_encoder = load_text_encoder(find("text_encoder"), dtype=torch.float32)
        self.turbo = load_turbo_vae(folder / "turbo_vae", dtype=torch.float32)
        self.vae = load_video_vae(find("vae"), dtype=torch.float32)
        self.audio_vae = load_audio_vae(find("audio_vae"))
        self.networks = {}
        for role, part in (("base", "base"), ("distilled", "distill"), ("sr", "540p_sr")):
            if (folder / part).is_dir():
                positions = "v1" if role == "sr" else "v2"
                self.networks[role] = load_dit(find(part), dtype=torch.float32, positions=positions)

    def network(self, role):
        """"base", "distilled" or "sr". Raises Stop where the folder has none."""
        if role not in self.networks:
            raise Stop(f"{self.folder} holds no {role} network: train it, then run python -m training.export, or "
                       "choose --rows that do without it.")  # fmt: skip
        return self.networks[role]

    def encode(self, clip):
        """Latents of a drawn clip, of which nothing is kept: a JointLatent."""
        return all_generated(self.vae.encode(from_pixels(clip.video)),
                             self.audio_vae.encode(torch.from_numpy(clip.audio)[None]))  # fmt: skip

    def generate(self, prompt, seed, role="distilled", *, sampler=None, sigmas=None, latent: JointLatent | None = None):
        """Latents (video, audio) of one clip. latent: what is kept, and the shapes; 2 s, square, where not given."""
        generator = torch.Generator().manual_seed(seed)
        latent = latent or empty_latent(128, 128, audio_length(2), (48, 64))
        noise = (torch.randn(part.shape, generator=generator) for part in (latent.video, latent.audio))
        x, shapes = pack_latents(*noise)
        text = self.text_encoder.encode(prompt)
        negative = self.text_encoder.encode(DEFAULT_NEGATIVE_PROMPT) if role == "base" else None
        model = JointDenoiser(self.network(role), shapes, text, negative, self.guidance,
                              frozen_video=latent.frozen_video, frozen_audio=latent.frozen_audio)  # fmt: skip
        sigmas = flow_sigmas(32 if role == "base" else 8) if sigmas is None else sigmas
        sampler = sampler or (sample_unipc if role == "base" else sample_renoise)
        options = {"extra_args": {"seed": seed}} if sampler is sample_renoise else {}
        return unpack_latents(sampler(model, x, sigmas, disable=True, **options), shapes)

    def enlarge(self, prompt, seed, video, audio, factor=2):
        """The video latent at `factor` times the size, by the super-resolution network."""
        generator = torch.Generator().manual_seed(seed + 10_000)
        height, width = (side * factor for side in video.shape[3:])
        noise = torch.randn((*video.shape[:3], height, width), generator=generator)
        start, context = prepare_super_resolution(
            video, audio, height, width, video_noise=noise, audio_noise=torch.randn(audio.shape, generator=generator))
        x, shapes = pack_latents(start, context)
        model = JointDenoiser(self.network("sr"), shapes, self.text_encoder.encode(prompt),
                              frozen_audio=(context, torch.zeros(1, 1, 1)))  # fmt: skip
        return unpack_latents(sample_unipc(model, x, flow_sigmas(5), disable=True), shapes)[0]

    def decode(self, video, audio):
        """(pixels uint8 [F, H, W, 3], waveform [2, n])."""
        return to_pixels(self.turbo.decode(video)), self.audio_vae.decode(audio)[0].numpy()
