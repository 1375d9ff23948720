"""Train the demo's networks on cached latents.

    python -m training.train_network base --minutes 50       # with the text encoder, from noise to velocity
    python -m training.train_network distilled --minutes 12  # learns the guided velocity of the base network

Each goes on from its checkpoint when started again.
"""

import argparse
import copy

import numpy as np
import torch
from torch import nn

from magihuman_core import DiTConfig, MagiHumanDiT, flow_sigmas
from magihuman_core.nn.layers import RMSNorm
from magihuman_core.text.prompt import DEFAULT_NEGATIVE_PROMPT
from training.common import RUNS, Run, autocast, load_checkpoint, set_up
from training.latents import Latents
from training.text import START, build_encoder, build_tokenizer, caption_ids, pretrain

CONFIG = DiTConfig(
    layers=6, hidden=256, head_dim=64, heads=4, kv_heads=2, video_channels=48, audio_channels=64,
    text_channels=128, gelu_width=448, swiglu_width=448, sandwich_layers=(0, 5), gelu_layers=(0,),
)  # fmt: skip
DROP_TEXT = 0.1
KEEP_FRAME = 0.25  # share of clips with a clean first latent frame: reference picture
KEEP_AUDIO = 0.15  # share with clean audio: driving sound
SHIFT = 3.0  # of the noise levels in training
MOUTH_ROWS, MOUTH_COLUMNS, MOUTH_WEIGHT = slice(4, 7), slice(2, 6), 2.5


def plain_attention(q, k, v):
    """Attention by two matrix products: for short sequences in training faster on a CPU than the fused one."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # [B, heads, L, d]
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return (scores.softmax(-1).to(v.dtype) @ v).transpose(1, 2)


def build_network(config=CONFIG):
    """An untrained network: small last layers of every branch, heads that say zero."""
    torch.manual_seed(0)
    dit = MagiHumanDiT(config)
    with torch.no_grad():
        for name, module in dit.named_modules():
            if isinstance(module, RMSNorm):
                module.weight.zero_()
            if name.endswith(("linear_proj", "down_proj")):
                module.weight *= (2 * config.layers) ** -0.5 * 3**0.5
            if name.startswith("final_linear"):
                module.weight.zero_()
    return dit


class Batches:
    """Clips whose prompts have the same number of tokens: text is never padded."""

    def __init__(self, folder, tokenizer, seed):
        self.latents, self.tokenizer = Latents(folder), tokenizer
        self.random = np.random.default_rng(seed)
        negative = tokenizer.encode(DEFAULT_NEGATIVE_PROMPT, add_special_tokens=False).ids
        # Without text: either the default negative prompt or nothing.
        self.no_text = (torch.tensor([negative]), torch.tensor([tokenizer.encode(START + "x").ids]))
        self.prompts, self.groups = {}, {}
        self.refresh()

    def refresh(self):
        self.latents.refresh()
        for index in self.latents.index:
            if index in self.prompts:
                continue
            meta = self.latents.clips.meta[index]
            self.prompts[index] = ids = []
            for phrasing in range(3):
                row = caption_ids(self.tokenizer, meta["attributes"], meta["syllables"], phrasing)
                ids.append(torch.tensor(row))
                self.groups.setdefault(len(row), []).append((index, phrasing))
        lengths = [n for n, group in self.groups.items() if len(group) >= 8]
        self.lengths = np.array(lengths)
        self.share = np.array([len(self.groups[n]) for n in lengths], float)
        self.share /= self.share.sum()
        return len(self.latents.index)

    def draw(self, count):
        """(video [n, 48, T, h, w], audio [n, 64, A], ids [n, length]) with prompts of one length."""
        group = self.groups[int(self.random.choice(self.lengths, p=self.share))]
        chosen = [group[i] for i in self.random.integers(len(group), size=count)]
        pairs = [self.latents.get(index) for index, _ in chosen]
        ids = torch.stack([self.prompts[index][phrasing] for index, phrasing in chosen])
        return torch.stack([p[0] for p in pairs]), torch.stack([p[1] for p in pairs]), ids


def noise_levels(count):
    """Logit-normal, pushed towards noise as the sampler's are. [n, 1, 1, 1, 1]"""
    u = torch.sigmoid(torch.randn(count))
    u = torch.where(torch.rand(count) < 0.1, torch.rand(count), u)
    return (SHIFT * u / (1 + (SHIFT - 1) * u)).clamp(0.002, 0.9999).view(-1, 1, 1, 1, 1)


def noised(video, audio, s, keep):
    """Inputs at noise levels s, with what is frozen left clean, and the noise. keep: (frames, sounds) bool [n]."""
    noise_v, noise_a = torch.randn_like(video), torch.randn_like(audio)
    x_v = torch.lerp(video, noise_v, s)
    x_a = torch.lerp(audio, noise_a, s[:, :, :, 0, 0])
    frames, driving = keep
    x_v[frames, :, 0] = video[frames, :, 0]
    x_a[driving] = audio[driving]
    return x_v, x_a, noise_v, noise_a


def velocity_loss(found, wanted, keep, weight):
    """Mean squared errors (video, audio) over what is not frozen; mouth cells count more."""
    frames, driving = keep
    error = (found[0] - wanted[0]).square() * weight
    mask = torch.ones(len(error), 1, error.shape[2], 1, 1)
    mask[frames, :, 0] = 0
    video = (error * mask).mean() / mask.mean() / weight.mean()
    audio = (found[1] - wanted[1]).square().mean((1, 2))[~driving]
    return video, audio.mean() if len(audio) else found[1].sum() * 0


def mouth_weight(video):
    weight = torch.ones(1, 1, 1, *video.shape[3:])
    k = video.shape[3] // 8
    rows, columns = (slice(s.start * k, s.stop * k) for s in (MOUTH_ROWS, MOUTH_COLUMNS))
    weight[..., rows, columns] = MOUTH_WEIGHT
    return weight


def step_inputs(batches, size):
    """One step's clips: most with their prompts, a few without. [(video, audio, ids or None)]"""
    dropped = int(batches.random.binomial(size, DROP_TEXT))
    parts = [batches.draw(size - dropped)]
    if dropped:
        video, audio, _ = batches.draw(dropped)
        none = batches.no_text[int(batches.random.integers(2))].expand(dropped, -1)
        parts.append((video, audio, none))
    return parts


def run_training(options, name, modules, make_loss, config):
    """The loop that all networks share. make_loss(modules, batches) -> (loss, numbers for the log)."""
    decay, plain = [], []
    for key, parameter in modules.named_parameters():
        if parameter.requires_grad:
            (decay if parameter.ndim > 1 and "embed_tokens" not in key else plain).append(parameter)
    groups = [{"params": decay, "weight_decay": 0.02}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=options.rate, betas=(0.9, 0.97), fused=True)
    path = RUNS / f"{name}.pt"
    if not path.exists() and options.text_minutes and name == "base":
        pretrain(modules[1], options.batches.latents.clips.meta, options.text_minutes)
    run = Run(path, modules, optimizer, options, 0.999, lambda: {"config": config})
    torch.manual_seed(run.step + 1)
    while run.unfinished:
        for group in optimizer.param_groups:
            group["lr"] = run.rate
        loss, numbers = make_loss(options.batches)
        loss.backward()
        numbers["norm"] = nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if run.count(50, **numbers):
            print(f"{options.batches.refresh()} clips", flush=True)
            if run.step % 100 == 0:
                run.save()
    run.save()


def base_loss(dit, encoder, size):
    """make_loss of the base network, which trains the text encoder along."""

    def make_loss(batches):
        total_v, total_a = 0.0, 0.0
        for video, audio, ids in step_inputs(batches, size):
            n = len(video)
            keep = torch.rand(n) < KEEP_FRAME, torch.rand(n) < KEEP_AUDIO
            x_v, x_a, noise_v, noise_a = noised(video, audio, noise_levels(n), keep)
            with autocast():
                found = dit(x_v, x_a, encoder(ids).float(), attention=plain_attention)
            v, a = velocity_loss(found, (noise_v - video, noise_a - audio), keep, mouth_weight(video))
            total_v, total_a = total_v + v * n / size, total_a + a * n / size
        return total_v + total_a, {"video": total_v.detach(), "audio": total_a.detach()}

    return make_loss


def load_base(average=True):
    """(network, text encoder) of the base run."""
    dit, encoder = build_network(), build_encoder(build_tokenizer())
    state = load_checkpoint(RUNS / "base.pt")
    nn.ModuleList([dit, encoder]).load_state_dict(state["average"]["module"] if average else state["modules"])
    return dit.eval(), encoder.eval()


def load_network(name, config=CONFIG):
    """A network of another run (moving average)."""
    state = load_checkpoint(RUNS / f"{name}.pt")
    dit = build_network(state["config"])
    nn.ModuleList([dit]).load_state_dict(state["average"]["module"])
    return dit.eval()


def distilled_loss(teacher, student, encoder, size, scales):
    """make_loss of the distilled network: the guided velocity at the eight levels it will be asked at."""
    levels = flow_sigmas(8)[:-1]
    video_scale, audio_scale = scales

    def make_loss(batches):
        video, audio, ids = batches.draw(size)
        s = levels[torch.randint(len(levels), (size,))].view(-1, 1, 1, 1, 1)
        keep = torch.rand(size) < KEEP_FRAME, torch.rand(size) < KEEP_AUDIO
        x_v, x_a, _, _ = noised(video, audio, s, keep)
        with autocast():
            with torch.no_grad():
                text = encoder(ids).float()
                none = encoder(batches.no_text[0]).float().expand(size, -1, -1)
                (v1, a1), (v0, a0) = teacher.forward_many(
                    [(x_v, x_a, text), (x_v, x_a, none)], attention=plain_attention)
                scale = torch.where(s > 0.5, video_scale, 1 + 0.5 * (video_scale - 1))
                wanted = v0 + scale * (v1 - v0), a0 + audio_scale * (a1 - a0)
            found = student(x_v, x_a, text, attention=plain_attention)
        v, a = velocity_loss(found, wanted, keep, mouth_weight(video))
        return v + a, {"video": v.detach(), "audio": a.detach()}

    return make_loss


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", choices=("base", "distilled"))
    parser.add_argument("--minutes", type=float, default=50)
    parser.add_argument("--text-minutes", type=float, default=1.5)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--guidance", type=float, nargs=2, default=(2.5, 3.0), help="video, audio (distilled)")
    options = parser.parse_args()
    set_up(options.threads)
    options.batches = Batches(RUNS / "clips", build_tokenizer(), seed=np.random.SeedSequence().entropy % 2**32)
    if options.name == "base":
        options.rate = options.rate or 1e-3
        dit, encoder = build_network(), build_encoder(build_tokenizer())
        run_training(options, "base", nn.ModuleList([dit, encoder]), base_loss(dit, encoder, options.batch), CONFIG)
    else:
        options.rate = options.rate or 3e-4
        teacher, encoder = load_base()
        teacher.requires_grad_(False)
        student = copy.deepcopy(teacher).train().requires_grad_(True)
        loss = distilled_loss(teacher, student, encoder, options.batch, options.guidance)
        run_training(options, "distilled", nn.ModuleList([student]), loss, CONFIG)


if __name__ == "__main__":
    main()
