"""Train the small super-resolution network: base latent to the latent of twice the size.

    python -m training.train_super_resolution pairs --count 200    # may be stopped and started again
    python -m training.train_super_resolution train --minutes 8

The start of its sampling is not pure noise but the upsampled, half-noised base latent. The network therefore learns
the straight way from that start to the sharp latent, at the noise levels of five steps.
"""

import argparse
import json

import numpy as np
import torch
from torch import nn

from magihuman_core import DiTConfig, prepare_super_resolution
from training.clips import audio_tokens, make_clip
from training.common import RUNS, autocast, set_up
from training.data import open_array
from training.text import build_tokenizer, caption_ids
from training.train_network import build_network, load_base, plain_attention, run_training

CONFIG = DiTConfig(
    layers=4, hidden=128, head_dim=64, heads=2, kv_heads=1, video_channels=48, audio_channels=64,
    text_channels=128, gelu_width=512, swiglu_width=340, sandwich_layers=(0, 3), gelu_layers=(0,), positions="v1",
)  # fmt: skip
FIRST_SEED = 300_000
FRAMES, SIZE = 49, 128
KEEP_FRAME = 0.25
BASE_ERROR = 0.15  # noise on the base latents: generated ones are not exact either


def make_pairs(folder, count):
    """Encode scenes drawn at both sizes: small.npy, large.npy and sound.npy, float16, and meta.jsonl."""
    from training import train_audio_vae, train_video_vae

    vae, _ = train_video_vae.load_trained()
    audio_vae = train_audio_vae.load_trained()
    T, cells = (FRAMES - 1) // 4 + 1, SIZE // 16
    small = open_array(folder / "small.npy", np.float16, (count, 48, T, cells, cells))
    large = open_array(folder / "large.npy", np.float16, (count, 48, T, 2 * cells, 2 * cells))
    audio = open_array(folder / "sound.npy", np.float16, (count, 64, audio_tokens(FRAMES)))
    path = folder / "meta.jsonl"
    done = len(path.read_text().split("\n")) - 1 if path.exists() else 0
    with path.open("a") as meta:
        for index in range(done, count):
            clip = make_clip(FIRST_SEED + index, 2 * SIZE, FRAMES)
            video = torch.from_numpy(clip.video).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
            with torch.inference_mode():
                half = nn.functional.avg_pool3d(video, (1, 2, 2))
                with autocast():
                    small[index] = train_video_vae.encode(vae, half)[0].float().numpy()
                    large[index] = train_video_vae.encode(vae, video)[0].float().numpy()
                audio[index] = audio_vae.encode(torch.from_numpy(clip.audio)[None])[0].numpy()
            meta.write(json.dumps({"attributes": clip.attributes, "syllables": clip.syllables}) + "\n")
            meta.flush()


class Pairs:
    """Encoded pairs in memory."""

    def __init__(self, folder, tokenizer, seed):
        self.random = np.random.default_rng(seed)
        self.folder, self.tokenizer = folder, tokenizer
        self.arrays = [open_array(folder / f"{name}.npy") for name in ("small", "large", "sound")]
        self.refresh()
        self.latents = self

    def refresh(self):
        lines = (self.folder / "meta.jsonl").read_text().split("\n")[:-1]
        self.meta = [json.loads(line) for line in lines]
        return len(self.meta)

    def draw(self):
        """(small, large, sound, ids), each of one clip, fp32 with a leading axis of 1."""
        index = int(self.random.integers(len(self.meta)))
        small, large, audio = (torch.from_numpy(a[index].astype(np.float32))[None] for a in self.arrays)
        if self.random.random() < 0.8:  # mostly short parts: many more steps a minute
            T = int(self.random.integers(3, 6))
            start = int(self.random.integers(small.shape[2] - T + 1))
            small, large = small[:, :, start : start + T], large[:, :, start : start + T]
            audio = audio[:, :, 4 * start : 4 * start + 4 * T - 1]
        tensors = small, large, audio
        meta = self.meta[index]
        ids = caption_ids(self.tokenizer, meta["attributes"], meta["syllables"], int(self.random.integers(3)))
        return (*tensors, torch.tensor([ids]))


def levels(count):
    """Noise levels around those of five steps: shift 5 of u near 1, 0.8, ..., 0.2."""
    u = (torch.randint(1, 6, (count,)) / 5 + 0.06 * torch.randn(count)).clamp(0.02, 0.9998)
    return 5 * u / (1 + 4 * u)


def make_loss_for(dit, encoder, size):
    """make_loss for `run_training`: the mean over `size` clips, one after the other."""

    def make_loss(pairs):
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

    return make_loss


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("pairs", "train"))
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    set_up(options.threads)
    folder = RUNS / "pairs"
    if options.what == "pairs":
        make_pairs(folder, options.count)
        return
    options.text_minutes = 0
    options.batches = Pairs(folder, build_tokenizer(), np.random.SeedSequence().entropy % 2**32)
    _, encoder = load_base()
    dit = build_network(CONFIG)
    run_training(options, "super_resolution", nn.ModuleList([dit]), make_loss_for(dit, encoder, options.batch), CONFIG)


if __name__ == "__main__":
    main()
