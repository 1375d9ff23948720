"""Train the Wan2.2-type encoder and the Turbo decoder together on crops of drawn clips.

    python -m training.train_video_vae --minutes 40          # goes on from its checkpoint when started again
    python -m training.train_video_vae --turbo --minutes 10  # decoders alone, once clips are encoded
    python -m training.train_video_vae --wan-decoder --minutes 6

The latent is kept at mean 0 and variance 1 overall (in normalized units), and the decoder always sees it with
noise: what matters for the image then gets the larger amplitudes, and a generated latent, which is never
exact, still decodes well.
"""

import argparse
import functools

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange

from magihuman_core.vae.turbo import ResNet, TurboVAE
from magihuman_core.vae.turbo_config import TurboVAEConfig
from magihuman_core.vae.video import VideoVAE, VideoVAEConfig
from magihuman_core.vae.video_blocks import ResidualBlock
from training.common import RUNS, Run, autocast, load_checkpoint, set_up
from training.data import Clips
from training.fast_conv import operations as fast
from training.latents import Latents
from training.muon import Optimizers
from training.projection import Projection, blocks, fit

ENCODER = VideoVAEConfig(encoder_dim=16, decoder_dim=8, blocks=1)
TURBO = TurboVAEConfig(decoder_block_out_channels=(32, 32, 64, 96), decoder_layers_per_block=(1, 1, 1, 1, 1))
MOUTH = 6.0  # further weight of the mouth when a decoder is trained alone: moods are told by its corners
EYES = 2.0  # further weight of the eyes
NOISE = 0.04  # standard deviation of the noise on latents, on average; more blurs lines that move by parts of a pixel


def build():
    """(VideoVAE, TurboVAE), untrained.

    Residual branches start small, and some channels start with a constant: the norms keep only the direction of
    a pixel's channels, so brightness needs something to be measured against.
    """
    torch.manual_seed(0)
    vae, turbo = VideoVAE(ENCODER, operations=fast), TurboVAE(TURBO)
    with torch.no_grad():
        for module in (*vae.modules(), *turbo.modules()):
            if isinstance(module, (torch.nn.Conv2d, torch.nn.Conv3d)):
                module.weight *= 3**0.5  # keep the size of signals: torch's default takes a third of their power
        for module in (*vae.modules(), *turbo.modules()):
            if isinstance(module, ResidualBlock):
                module.residual["6"].weight *= 0.2
            elif isinstance(module, ResNet):
                module.conv2.conv.weight *= 0.2
        for first in (vae.encoder.conv1, vae.decoder.conv1, turbo.decoder.conv_in.conv):
            first.bias[:4] = 1.0
    return vae, turbo


def fit_projection(crops, count=150):
    """(mean, matrix) of the linear latent the training starts from; blocks at the mouth count three times."""
    parts, weights = [], []
    for _ in range(count):
        video, weight = crops.batch(1, 5, 128)
        part = blocks(video)[:, 1]  # [1, 8, 8, 3072]
        parts.append(part.flatten(0, 2))
        weights.append(F.avg_pool2d(weight[:, 0], 16).flatten())
    return fit(torch.cat(parts), torch.cat(weights))


class Guide:
    """What the encoder is held near to: a projection fitted to the clips, or an encoder that is gone on from.

    state: {"projection": (mean, matrix)} or {"encoder": `modules` of the checkpoint that is gone on from}.
    """

    def __init__(self, state):
        self.state, self.linear = state, "projection" in state
        if self.linear:
            self.function = Projection(*state["projection"])
        else:
            vae, turbo = build()
            torch.nn.ModuleList([vae.encoder, vae.conv1, turbo]).load_state_dict(state["encoder"])
            self.function = functools.partial(encode, vae)

    @torch.no_grad()
    def __call__(self, video):
        """Frames -> normalized latents."""
        return self.function(video)


class Crops:
    """Random windows of clips: frames [B, 3, F, s, s] in [-1, 1] and weights [B, 1, 1, s, s], see face_map."""

    def __init__(self, folders, seed):
        self.sources = [Clips(folder) for folder in folders if (folder / "meta.jsonl").exists()]
        self.random = np.random.default_rng(seed)

    def batch(self, count, frames, crop):
        videos, weights = [], []
        for _ in range(count):
            large = len(self.sources) > 1 and self.random.random() < 0.3
            source = self.sources[1 if large else 0]
            size = source.video.shape[2]
            clip = self.random.integers(len(source))
            start = self.random.integers(source.video.shape[1] - frames + 1)
            top, left = (16 * int(v) for v in self.random.integers(0, (size - crop) // 16 + 1, 2))
            part = source.video[clip, start : start + frames, top : top + crop, left : left + crop]
            videos.append(torch.from_numpy(part.astype(np.float32)))
            weights.append(face_map(crop, top, left, size))
        video = rearrange(torch.stack(videos), "b f h w c -> b c f h w") / 127.5 - 1
        return video.contiguous(), torch.cat(weights)


def image_loss(found, wanted, weight, fine):
    """Weighted squared error; with `fine` twice that, absolute error, and that of the steps from pixel to pixel.

    The absolute parts sharpen edges, but from the start they only teach medians: flat areas of two colours.
    Returns the loss and the plain squared error.
    """
    difference = found - wanted
    mse = difference.square()
    loss = (weight * mse).mean() * (16.0 if fine else 8.0)
    if fine:
        loss = loss + (weight * difference.abs()).mean()
        for axis in (3, 4):
            loss = loss + 0.2 * difference.diff(dim=axis).abs().mean()
    return loss, mse.detach().mean()


def encode(vae, video):
    """Frames in one piece -> normalized mean latents, with gradients."""
    return vae.statistics.normalize(vae.moments(video)[0].float())


def train(options):
    vae, turbo = build()
    modules = torch.nn.ModuleList([vae.encoder, vae.conv1, turbo])
    optimizer = Optimizers(modules, options.rate, weight_decay=1e-3)
    run = Run(RUNS / "video_vae.pt", modules, optimizer, options, more=lambda: {"guide": guide.state})
    crops = Crops([RUNS / "clips", RUNS / "clips256"], seed=run.step)
    guide = Guide(run.state["guide"] if run.state else {"projection": fit_projection(crops)})
    torch.manual_seed(run.step)
    # Whole images have their true edges. At the start parts as well: more different ones a minute.
    windows = [(4, 5, 64)] * guide.linear + [(2, 5, 128), (1, 9, 128)]
    while run.unfinished:
        count, frames, crop = windows[run.step % len(windows)]
        video, weight = crops.batch(count, frames, crop)
        with autocast():
            latent = encode(vae, video)
            target = guide(video)
            # At first the decoder hears the projection itself, then more and more the encoder.
            told = torch.rand(latent.shape[0], 1, 1, 1, 1) < (1 - run.step / 400 if guide.linear else 0)
            said = torch.where(told, target, latent)
            noise = NOISE * 2 * torch.rand(latent.shape[0], 1, 1, 1, 1)
            noisy = said + noise * torch.randn_like(latent)
            found = turbo(turbo.statistics.denormalize(noisy))
        loss, mse = image_loss(found.float(), video, weight, fine=run.step > 1000 or not guide.linear)
        spread = latent.square().mean()
        near = F.mse_loss(latent, target)
        # The encoder may leave its guide later, but not far: its order is what makes it easy to learn.
        regular = (1.0 if run.step < 600 and guide.linear else 0.05) * near
        regular = regular + 0.02 * (spread - 1).square() + 0.02 * latent.mean(dim=(0, 2, 3, 4)).square().mean()
        (loss + regular).backward()
        torch.nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimizer.step(run.rate)
        if run.count(200, loss=loss.detach(), mse=mse, spread=spread.detach(), near=near.detach()):
            crops.sources[0].refresh()
            run.save()
    run.save()


def load_trained():
    """(VideoVAE, TurboVAE) as trained so far (moving averages); decoders trained further are taken."""
    vae, turbo = build()
    modules = torch.nn.ModuleList([vae.encoder, vae.conv1, turbo])
    modules.load_state_dict(load_checkpoint(RUNS / "video_vae.pt")["average"]["module"])
    if state := load_checkpoint(RUNS / "turbo.pt"):
        torch.nn.ModuleList([turbo]).load_state_dict(state["average"]["module"])
    if state := load_checkpoint(RUNS / "wan_decoder.pt"):
        torch.nn.ModuleList([vae.decoder, vae.conv2]).load_state_dict(state["average"]["module"])
    return vae.eval(), turbo.eval()


class Windows:
    """Windows of encoded clips with their frames: what a decoder alone is trained on."""

    def __init__(self, vae, seed):
        self.vae, self.random = vae, np.random.default_rng(seed)
        self.latents = Latents(RUNS / "clips")
        self.large = Crops([RUNS / "clips256"], seed)

    def small_window(self, length):
        """(latent [1, 48, length, 8, 8], frames, weight, whether it begins the clip)."""
        clip = int(self.random.choice(self.latents.index))
        latent, _ = self.latents.get(clip)
        start = max(0, int(self.random.integers(-2, latent.shape[1] - length + 1)))
        first = max(0, 4 * start - 3)
        pixels = self.latents.clips.video[clip, first : 4 * (start + length) - 3].astype(np.float32)
        video = rearrange(torch.from_numpy(pixels), "f h w c -> 1 c f h w") / 127.5 - 1
        return latent[None, :, start : start + length], video, face_map(128, 0, 0, 128, MOUTH), start == 0

    def large_window(self):
        """The same for a part of an image of twice the size, encoded now."""
        video, weight = self.large.batch(1, 5, 128)
        with torch.no_grad(), autocast():
            return encode(self.vae, video).float(), video, weight, True


def face_map(crop, top, left, size, mouth=2.0):
    """Weights [1, 1, 1, crop, crop] of a part of an image, heavier at eyes and mouth, where the fine lines are."""
    axis = (np.arange(crop) + 0.5) / size
    weights = np.ones((crop, crop), np.float32)
    for (x, y), (width, height), more in (((0.5, 0.63), (0.20, 0.13), mouth), ((0.5, 0.39), (0.25, 0.12), EYES)):
        weights += more * np.outer(np.abs(axis + top / size - y) < height, np.abs(axis + left / size - x) < width)
    return torch.from_numpy(weights)[None, None, None]


def train_decoder(options):
    """Train a decoder further for the frozen encoder: the Turbo decoder, or the Wan2.2-type one."""
    vae, turbo = load_trained()
    name = "wan_decoder" if options.wan_decoder else "turbo"
    modules = torch.nn.ModuleList([vae.decoder, vae.conv2] if options.wan_decoder else [turbo])
    modules.train().requires_grad_(True)
    optimizer = Optimizers(modules, options.rate, weight_decay=1e-3)
    run = Run(RUNS / f"{name}.pt", modules, optimizer, options)
    windows = Windows(vae, run.step)
    length = 2 if options.wan_decoder else 4  # the Turbo decoder also looks at the latents before and after
    while run.unfinished:
        latent, video, weight, first = windows.large_window() if run.step % 4 == 3 else windows.small_window(length)
        if options.wan_decoder and not first:
            continue  # causal: only a clip's beginning can be decoded without its past
        latent = latent + NOISE * 2 * torch.rand(()) * torch.randn_like(latent)
        with autocast():
            raw = vae.statistics.denormalize(latent)
            found = vae.frames(raw) if options.wan_decoder else turbo(raw, first)
        loss, mse = image_loss(found.float(), video, weight, fine=not options.wan_decoder or run.step > 300)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimizer.step(run.rate)
        if run.count(200, loss=loss.detach(), mse=mse):
            run.save()
    run.save()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--rate", type=float, default=4e-4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turbo", action="store_true", help="the Turbo decoder alone, on encoded clips")
    parser.add_argument("--wan-decoder", action="store_true", help="the Wan2.2-type decoder alone")
    options = parser.parse_args()
    set_up(options.threads)
    (train_decoder if options.wan_decoder or options.turbo else train)(options)
