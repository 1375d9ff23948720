"""Train the Wan2.2-type encoder and the Turbo decoder together on crops of drawn clips.

    python -m training.train_video_vae                       # goes on from its checkpoint when started again
    python -m training.train_video_vae --turbo               # decoders alone, once clips are encoded
    python -m training.train_video_vae --wan-decoder

The latent is kept at mean 0 and variance 1 overall (in normalized units), and the decoder always sees it with
noise: what matters for the image then gets the larger amplitudes, and a generated latent, which is never
exact, still decodes well.
"""

import argparse
import functools
from contextlib import nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from magihuman_core.vae.turbo import ResNet, TurboVAE
from magihuman_core.vae.turbo_config import TurboVAEConfig
from magihuman_core.vae.video import VideoVAE, VideoVAEConfig
from magihuman_core.vae.video_blocks import ResidualBlock
from training import checkpoints
from training.canvas import View
from training.common import Stop, autocast, weights_hash
from training.data import Clips, choice_by_size, sets_in, split
from training.fast_conv import operations as fast
from training.fit import fit
from training.latents import Latents
from training.muon import Optimizers
from training.options import add_options, command, set_up, whole
from training.projection import Projection, blocks, principal_components

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
    vae, turbo = VideoVAE(ENCODER, operations=fast), TurboVAE(TURBO, operations=fast)
    with torch.no_grad():
        for module in (*vae.modules(), *turbo.modules()):
            if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                module.weight *= 3**0.5  # keep the size of signals: torch's default takes a third of their power
        for module in (*vae.modules(), *turbo.modules()):
            if isinstance(module, ResidualBlock):
                module.residual["6"].weight *= 0.2
            elif isinstance(module, ResNet):
                module.conv2.conv.weight *= 0.2
        for first in (vae.encoder.conv1, vae.decoder.conv1, turbo.decoder.conv_in.conv):
            first.bias[:4] = 1.0
    return vae, turbo


def fit_projection(crops, count):
    """(mean, matrix) of the linear latent the training starts from; blocks at the mouth count three times."""
    parts, weights = [], []
    for _ in range(count):
        video, weight = crops.batch(1, 5)
        part = blocks(video)[:, 1]  # [1, h, w, 3072]
        parts.append(part.flatten(0, 2))
        weights.append(F.avg_pool2d(weight[:, 0], 16).flatten())
    return principal_components(torch.cat(parts), torch.cat(weights))


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
            trained_together(vae, turbo).load_state_dict(state["encoder"])
            self.function = functools.partial(encode, vae)

    @torch.no_grad()
    def __call__(self, video):
        """Frames -> normalized latents."""
        return self.function(video)


class Crops:
    """Random windows of clips: frames [B, 3, F, h, w] in [-1, 1] and weights [B, 1, 1, h, w], see face_map.

    run: whose clips are taken; three in ten windows are parts of the large ones. large: all of them are.
    """

    def __init__(self, run, seed, held_out=False, large=False):
        self.small = [] if large else [Clips(folder) for folder in sets_in(run / "clips")]
        self.large = [Clips(folder) for folder in sets_in(run / "large")]
        self.held_out, self.random = held_out, np.random.default_rng(seed)

    @property
    def description(self):
        return [source.description for source in (*self.small, *self.large)]

    def batch(self, count, frames, crop=None):
        """Windows of one shape: squares of `crop` pixels, or as large as a small clip of their shape."""
        large = not self.small or self.random.random() < 0.3
        source = choice_by_size(self.random, self.large if large else self.small)
        size = source.video.shape[2:4]
        height, width = (crop or side // (2 if large else 1) for side in size)
        videos, weights = [], []
        for _ in range(count):
            clip = self.random.choice(split(range(len(source)), self.held_out))
            start = self.random.integers(source.video.shape[1] - frames + 1)
            top, left = (16 * int(self.random.integers(0, (a - b) // 16 + 1))
                         for a, b in zip(size, (height, width), strict=True))  # fmt: skip
            part = source.video[clip, start : start + frames, top : top + height, left : left + width]
            videos.append(torch.from_numpy(part.astype(np.float32)))
            weights.append(face_map(size)[..., top : top + height, left : left + width])
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


def encoder_hash(vae):
    """Tells the weights of this encoder from others."""
    return weights_hash(vae.encoder, vae.conv1)


def trained_together(vae, turbo):
    """What `train` trains."""
    return nn.ModuleList([vae.encoder, vae.conv1, turbo])


def train(options):
    """Encoder and Turbo decoder together."""
    vae, turbo = build()
    modules, folder = trained_together(vae, turbo), options.run / "video_vae"
    optimizer = Optimizers(modules, options.rate, weight_decay=1e-3)
    crops, held_out = (Crops(options.run, options.seed, held) for held in (False, True))
    state = checkpoints.load(folder)
    with checkpoints.fitting(folder) if state else nullcontext():
        guide = Guide(state["guide"] if state else {"projection": fit_projection(crops, options.projection_windows)})
    # Whole images have their true edges. At the start parts as well: more different ones a minute.
    windows = [(4, 5, 64)] * guide.linear + [(2, 5), (1, 9)]

    def loss(crops, step):
        video, weight = crops.batch(*windows[step % len(windows)])
        with autocast():
            latent = encode(vae, video)
            target = guide(video)
            # At first the decoder hears the projection itself, then more and more the encoder.
            told = torch.rand(latent.shape[0], 1, 1, 1, 1) < (1 - step / 400 if guide.linear else 0)
            said = torch.where(told, target, latent)
            noise = NOISE * 2 * torch.rand(latent.shape[0], 1, 1, 1, 1)
            noisy = said + noise * torch.randn_like(latent)
            found = turbo(turbo.statistics.denormalize(noisy))
        image, mse = image_loss(found.float(), video, weight, fine=step > 1000 or not guide.linear)
        spread = latent.square().mean()
        near = F.mse_loss(latent, target)
        # The encoder may leave its guide later, but not far: its order is what makes it easy to learn.
        regular = (1.0 if step < 600 and guide.linear else 0.05) * near
        regular = regular + 0.02 * (spread - 1).square() + 0.02 * latent.mean(dim=(0, 2, 3, 4)).square().mean()
        return image + regular, {"loss": image.detach(), "mse": mse, "spread": spread.detach(), "near": near.detach()}

    shown, _ = held_out.batch(1, 9)

    def sample(average):
        encoder, conv1, decoder = average
        own_vae, _ = build()
        own_vae.encoder, own_vae.conv1 = encoder, conv1
        return to_images(shown), to_images(decoder(decoder.statistics.denormalize(encode(own_vae, shown))))

    fit(folder, modules, optimizer, loss, crops, options, held_out=held_out, sample=sample,
        config={"clips": crops.description, "projection": options.projection_windows}, extra={"guide": guide.state})


def to_images(video, every=2):
    """Some frames of [1, 3, F, H, W] in -1..1 as uint8 [n, H, W, 3]."""
    frames = (video[0, :, ::every].float().clamp(-1, 1) + 1) * 127.5
    return frames.round().byte().permute(1, 2, 3, 0).cpu().numpy()


def load_trained(run):
    """(VideoVAE, TurboVAE) as trained so far (moving averages); decoders trained further for this encoder are taken."""
    vae, turbo = build()
    state = checkpoints.load_stage(run, "video_vae")
    with checkpoints.fitting(run / "video_vae"):
        trained_together(vae, turbo).load_state_dict(state["average"]["module"])
    encoder = encoder_hash(vae)
    decoders = {"turbo": [turbo], "wan_decoder": [vae.decoder, vae.conv2]}
    for stage, parts in decoders.items():
        if state := checkpoints.load_further(run, stage, encoder):
            with checkpoints.fitting(run / stage):
                nn.ModuleList(parts).load_state_dict(state["average"]["module"])
    return vae.eval(), turbo.eval()


class Windows:
    """Windows of encoded clips with their frames: what a decoder alone is trained on."""

    def __init__(self, vae, run, seed, held_out=False):
        self.vae, self.random = vae, np.random.default_rng(seed)
        self.held_out = held_out
        self.sets = [Latents(folder) for folder in sets_in(run / "clips")]
        if any(latents.made_with["video"] != encoder_hash(vae) for latents in self.sets):
            raise Stop(f"The latents in {run / 'clips'} are of another encoder: make them again, see encoders.json.")
        self.large = Crops(run, seed, held_out, large=True)

    @property
    def description(self):
        return [latents.clips.description for latents in self.sets]

    def small_window(self, length):
        """(latent [1, 48, length, h, w], frames, weight, whether it begins the clip)."""
        latents = choice_by_size(self.random, self.sets)
        clip = int(self.random.choice(split(range(len(latents)), self.held_out)))
        latent, _ = latents.get(clip)
        start = max(0, int(self.random.integers(-2, latent.shape[1] - length + 1)))
        first = max(0, 4 * start - 3)
        pixels = latents.clips.video[clip, first : 4 * (start + length) - 3].astype(np.float32)
        video = rearrange(torch.from_numpy(pixels), "f h w c -> 1 c f h w") / 127.5 - 1
        return latent[None, :, start : start + length], video, face_map(video.shape[-2:], MOUTH), start == 0

    def large_window(self):
        """The same for a part of an image of twice the size, encoded now."""
        self.large.random = self.random
        video, weight = self.large.batch(1, 5)
        with torch.no_grad(), autocast():
            return encode(self.vae, video).float(), video, weight, True


def face_map(size, mouth=2.0):
    """Weights [1, 1, 1, h, w] of an image of this size, heavier at eyes and mouth, where the fine lines are."""
    view, weights = View(*size), np.ones(size, np.float32)
    for (x, y), (width, height), more in (((0.5, 0.63), (0.20, 0.13), mouth), ((0.5, 0.39), (0.25, 0.12), EYES)):
        weights += more * ((np.abs(view.y - y) < height) & (np.abs(view.x - x) < width))
    return torch.from_numpy(weights)[None, None, None]


def train_decoder(options):
    """A decoder further for the frozen encoder: the Turbo decoder, or the Wan2.2-type one."""
    vae, turbo = load_trained(options.run)
    wan = options.wan_decoder
    modules = nn.ModuleList([vae.decoder, vae.conv2] if wan else [turbo]).train()
    optimizer = Optimizers(modules, options.rate, weight_decay=1e-3)
    length = 2 if wan else 4  # the Turbo decoder also looks at the latents before and after

    def decode(modules, latent, first):
        raw = vae.statistics.denormalize(latent)
        if not wan:
            return modules[0](raw, first)
        vae.decoder, vae.conv2 = modules
        return vae.frames(raw)

    def loss(windows, step):
        latent, video, weight, first = windows.large_window() if step % 4 == 3 else windows.small_window(length)
        while wan and not first:  # causal: only a clip's beginning can be decoded without its past
            latent, video, weight, first = windows.small_window(length)
        latent = latent + NOISE * 2 * torch.rand(()) * torch.randn_like(latent)
        with autocast():
            found = decode(modules, latent, first)
        image, mse = image_loss(found.float(), video, weight, fine=not wan or step > 300)
        return image, {"loss": image.detach(), "mse": mse}

    windows, held_out = (Windows(vae, options.run, options.seed, held) for held in (False, True))
    shown, pictures, _, _ = held_out.large_window()

    def sample(average):
        return to_images(pictures, 1), to_images(decode(average, shown, True), 1)

    fit(options.run / ("wan_decoder" if wan else "turbo"), modules, optimizer, loss, windows, options,
        held_out=held_out, sample=sample,
        config={"encoder": encoder_hash(vae), "clips": windows.description})  # fmt: skip


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    alone = parser.add_mutually_exclusive_group()
    alone.add_argument("--turbo", action="store_true", help="the Turbo decoder alone, on encoded clips")
    alone.add_argument("--wan-decoder", action="store_true", help="the Wan2.2-type decoder alone")
    parser.add_argument("--projection-windows", type=whole(1), default=150, help="that the first guide is fitted to")
    add_options(parser, steps=27_000, rate=4e-4)
    options = parser.parse_args()
    set_up(options)
    (train_decoder if options.wan_decoder or options.turbo else train)(options)


if __name__ == "__main__":
    main()
