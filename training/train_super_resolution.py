"""Train the small super-resolution network: base latent to the latent of twice the size, in all three shapes.

    python -m training.train_super_resolution pairs --count 220    # may be stopped and started again
    python -m training.train_super_resolution train

The start of its sampling is not pure noise but the upsampled, half-noised base latent. The network therefore learns
the straight way from that start to the sharp latent, at the noise levels of five steps.
"""

import argparse

import numpy as np
import torch
from torch import nn

from magihuman_core import (
    DiTConfig,
    JointDenoiser,
    flow_sigmas,
    pack_latents,
    prepare_super_resolution,
    sample_unipc,
    unpack_latents,
)
from magihuman_core.sizes import audio_length, full_audio, latent_frames
from training.clips import make_clip
from training.common import Progress, RowWriter, Stop, alone, autocast, read_rows, weights_hash
from training.data import (
    LARGE_SEEDS,
    LARGE_SHARES,
    SEEDS_OF_SET,
    ClipSet,
    choice_by_size,
    counts_of,
    open_array,
    sets_in,
    split,
)
from training.latents import Encoders, claim, common_origin, made_with
from training.options import add_options, command, set_up, whole
from training.text import caption_ids
from training.train_network import build_network, fit_network, load_base, plain_attention, sources_of
from training.train_video_vae import load_trained, to_images

CONFIG = DiTConfig(
    layers=4, hidden=128, head_dim=64, heads=2, kv_heads=1, video_channels=48, audio_channels=64,
    text_channels=128, gelu_width=512, swiglu_width=340, sandwich_layers=(0, 3), gelu_layers=(0,), positions="v1",
)  # fmt: skip
FIRST_SEED = LARGE_SEEDS + 100_000
KEEP_FRAME = 0.25
BASE_ERROR = 0.15  # noise on the base latents: generated ones are not exact either


def make_pairs(run, counts):
    """Encode scenes drawn at both sizes into run/pairs. counts: see data.counts_of."""
    encoders = Encoders(run)
    for place, (name, count) in enumerate(counts.items()):
        folder = run / "pairs" / name
        with alone(folder):
            make_set(folder, count, ClipSet(name, 2), FIRST_SEED + place * SEEDS_OF_SET, encoders)


def make_set(folder, count, clip_set, first_seed, encoders):
    """One set: small.npy, video.npy (the large latents) and audio.npy, float16, and meta.jsonl."""
    (height, width), seconds = clip_set.size, clip_set.seconds
    length = audio_length(seconds)
    shape = count, 48, latent_frames(length)
    small = open_array(folder / "small.npy", np.float16, (*shape, height // 32, width // 32))
    large = open_array(folder / "video.npy", np.float16, (*shape, height // 16, width // 16))
    audio = open_array(folder / "audio.npy", np.float16, (count, 64, length))
    claim(folder, encoders.names)
    done = len(read_rows(folder / "meta.jsonl"))
    progress = Progress(f"pairs made in {folder}", done, count)
    with RowWriter(folder / "meta.jsonl") as meta:
        for index in range(done, count):
            clip = make_clip(first_seed + index, height, width, seconds)
            pixels = clip.video.astype(np.float32)
            halves = pixels.reshape(-1, height // 2, 2, width // 2, 2, 3).mean(axis=(2, 4))
            small[index], large[index] = encoders.video(halves), encoders.video(pixels)
            audio[index] = encoders.audio(clip.audio[0])
            meta.write({"attributes": clip.attributes, "syllables": clip.syllables})
            progress.step()


class Pairs:
    """The encoded pairs of one set."""

    def __init__(self, folder, tokenizer):
        self.folder, self.tokenizer = folder, tokenizer
        self.arrays = [open_array(folder / f"{name}.npy") for name in ("small", "video", "audio")]
        self.made_with, self.meta = made_with(folder), read_rows(folder / "meta.jsonl")
        if len(self.meta) < len(self.arrays[0]):
            raise Stop(f"{folder} holds {len(self.meta)} of {len(self.arrays[0])} pairs: make the others first.")

    def __len__(self):
        return len(self.meta)

    def get(self, index, phrasing=0):
        """(small, large, audio, ids) of one clip, fp32 with a leading axis of 1."""
        tensors = (torch.from_numpy(array[index].astype(np.float32))[None] for array in self.arrays)
        meta = self.meta[index]
        return *tensors, torch.tensor([caption_ids(self.tokenizer, meta["attributes"], meta["syllables"], phrasing)])


class PairSource:
    """Random pairs of all sets."""

    def __init__(self, folder, tokenizer, seed, held_out=False):
        self.random, self.held_out = np.random.default_rng(seed), held_out
        self.sets = [Pairs(part, tokenizer) for part in sets_in(folder)]
        self.made_with = common_origin(self.sets)
        self.description = [f"{len(pairs)} pairs of {pairs.arrays[1].shape[2:]}" for pairs in self.sets]

    def draw(self):
        """(small, large, audio, ids) of a random clip, mostly short parts: many more steps a minute."""
        pairs = choice_by_size(self.random, self.sets)
        index = int(self.random.choice(split(range(len(pairs)), self.held_out, takes=1)))
        small, large, audio, ids = pairs.get(index, int(self.random.integers(3)))
        if self.random.random() < 0.8:
            T = int(self.random.integers(3, 6))
            start = int(self.random.integers(small.shape[2] - T + 1))
            small, large = small[:, :, start : start + T], large[:, :, start : start + T]
            audio = audio[:, :, 4 * start : 4 * start + full_audio(T)]
        return small, large, audio, ids


def levels(count):
    """Noise levels around those of five steps: shift 5 of u near 1, 0.8, ..., 0.2."""
    u = (torch.randint(1, 6, (count,)) / 5 + 0.06 * torch.randn(count)).clamp(0.02, 0.9998)
    return 5 * u / (1 + 4 * u)


def loss_for(dit, encoder, size):
    """The loss for `fit`: the mean over `size` clips, one after the other."""

    def loss(pairs, step):
        total = 0.0
        for s in levels(size).tolist():
            small, large, audio, ids = pairs.draw()
            small = small + BASE_ERROR * torch.rand(()) * torch.randn_like(small)
            start, context = prepare_super_resolution(
                small, audio, *large.shape[-2:], video_noise=torch.randn_like(large),
                audio_noise=torch.randn_like(audio))  # fmt: skip
            x = torch.lerp(large, start, s)
            first = 0
            if torch.rand(()) < KEEP_FRAME:
                x[:, :, 0], first = large[:, :, 0], 1
            with torch.no_grad():
                text = encoder(ids).float()
            with autocast():
                found = dit(x, context, text, attention=plain_attention)[0]
            error = (found - (start - large))[:, :, first:]
            total = total + error.square().mean() / size
        return total, {"video": total.detach()}

    return loss


def sampler_of(run, held_out, encoder):
    """What `fit` shows: a held-out clip enlarged by repeating pixels, by the network, and as it was drawn."""
    _, turbo = load_trained(run)
    pairs = held_out.sets[0]
    small, large, audio, ids = pairs.get(split(range(len(pairs)), True, takes=1)[0])
    small, large, audio = small[:, :, :3], large[:, :, :3], audio[:, :, :11]

    def sample(average):
        generator = torch.Generator().manual_seed(0)
        noise = (torch.randn(x.shape, generator=generator) for x in (large, audio))
        start, context = prepare_super_resolution(
            small, audio, *large.shape[-2:], **dict(zip(("video_noise", "audio_noise"), noise, strict=True)))
        x, shapes = pack_latents(start, context)
        model = JointDenoiser(average[0], shapes, encoder(ids), frozen_audio=(context, torch.zeros(1, 1, 1)))
        found = unpack_latents(sample_unipc(model, x, flow_sigmas(5), disable=True), shapes)[0]
        first, *others = (to_images(turbo.decode(video), 3) for video in (small, found, large))
        return first.repeat(2, axis=1).repeat(2, axis=2), *others

    return sample


def train(options):
    """The network, on pairs."""
    _, encoder, state = load_base(options.run)
    encoder.requires_grad_(False)
    sources = sources_of(options, encoder.tokenizer, state, PairSource, "pairs")
    dit = build_network(CONFIG)
    fit_network(options, "super_resolution", nn.ModuleList([dit]), loss_for(dit, encoder, options.batch), sources,
                sampler_of(options.run, sources[1], encoder), CONFIG,
                origins={"text_encoder": weights_hash(encoder)})  # fmt: skip


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    stages = parser.add_subparsers(dest="stage", required=True)
    pairs = stages.add_parser("pairs")
    pairs.add_argument("--count", type=whole(1), default=220, help="of all sets together")
    pairs.add_argument("--sets", nargs="+", metavar="SHAPE_SECONDS", help="equal shares of these sets")
    add_options(pairs, seed=False)
    add_options(stages.add_parser("train"), steps=12_000, rate=1.5e-3, batch=2)
    options = parser.parse_args()
    set_up(options)
    if options.stage == "pairs":
        make_pairs(options.run, counts_of(options.count, options.sets or LARGE_SHARES))
    else:
        train(options)


if __name__ == "__main__":
    main()
