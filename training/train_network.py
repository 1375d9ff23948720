"""Train the demo's networks on cached latents.

    python -m training.train_network text                    # quick start of the text encoder
    python -m training.train_network base                    # with the text encoder, from noise to velocity
    python -m training.train_network distilled               # learns the guided velocity of the base network

Each goes on from its checkpoint when started again.
"""

import argparse
import copy
from dataclasses import asdict

import numpy as np
import torch
from torch import nn

from magihuman_core import (
    DiTConfig,
    JointDenoiser,
    MagiHumanDiT,
    flow_sigmas,
    pack_latents,
    sample_renoise,
    sample_unipc,
    unpack_latents,
)
from magihuman_core.nn.layers import RMSNorm
from magihuman_core.text.prompt import DEFAULT_NEGATIVE_PROMPT
from training import checkpoints
from training.common import Stop, add_options, autocast, set_up
from training.data import Clips, split
from training.fit import fit
from training.latents import Latents
from training.muon import Together
from training.text import START, Captions, WithReaders, build_encoder, build_tokenizer, caption_ids
from training.train_video_vae import load_trained, to_images

CONFIG = DiTConfig(
    layers=6, hidden=256, head_dim=64, heads=4, kv_heads=2, video_channels=48, audio_channels=64,
    text_channels=128, gelu_width=448, swiglu_width=448, sandwich_layers=(0, 5), gelu_layers=(0,),
)  # fmt: skip
DROP_TEXT = 0.1  # share of batches without text
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

    def __init__(self, folder, tokenizer, seed, held_out=False):
        self.latents, self.random = Latents(folder), np.random.default_rng(seed)
        self.made_with, self.description = self.latents.made_with, self.latents.clips.description
        negative = tokenizer.encode(DEFAULT_NEGATIVE_PROMPT, add_special_tokens=False).ids
        # Without text: either the default negative prompt or nothing.
        self.no_text = (torch.tensor([negative]), torch.tensor([tokenizer.encode(START + "x").ids]))
        self.groups = {}  # length -> [(index, ids)]
        for index in split(range(len(self.latents.clips)), held_out):
            meta = self.latents.clips.meta[index]
            for phrasing in range(3):
                ids = caption_ids(tokenizer, meta["attributes"], meta["syllables"], phrasing)
                self.groups.setdefault(len(ids), []).append((index, torch.tensor(ids)))
        sizes = {length: len(group) for length, group in self.groups.items()}
        # A rare length would give the same few clips again and again; with few clips all lengths are rare.
        self.lengths = np.array([length for length, n in sizes.items() if n >= min(8, max(sizes.values()))])
        self.share = np.array([sizes[length] for length in self.lengths], float)
        self.share /= self.share.sum()

    def draw(self, count):
        """(video [n, 48, T, h, w], audio [n, 64, A], ids [n, length]) with prompts of one length."""
        group = self.groups[int(self.random.choice(self.lengths, p=self.share))]
        chosen = [group[i] for i in self.random.integers(len(group), size=count)]
        pairs = [self.latents.get(index) for index, _ in chosen]
        videos, audios = zip(*pairs, strict=True)
        return torch.stack(videos), torch.stack(audios), torch.stack([ids for _, ids in chosen])

    def draw_some_without_text(self, count):
        """The same, but a tenth of the batches has no text. Whole batches: two lengths would need two passes."""
        video, audio, ids = self.draw(count)
        if self.random.random() < DROP_TEXT:
            ids = self.no_text[int(self.random.integers(2))].expand(count, -1)
        return video, audio, ids


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
    """Mean squared errors (video, audio) over what is not frozen; the mouth counts more."""
    frames, driving = keep
    error = (found[0] - wanted[0]).square() * weight
    mask = torch.ones(len(error), 1, error.shape[2], 1, 1)
    mask[frames, :, 0] = 0
    video = (error * mask).mean() / mask.mean() / weight.mean()
    audio = (found[1] - wanted[1]).square().mean((1, 2))[~driving]
    return video, audio.mean() if len(audio) else found[1].sum() * 0


def mouth_weight(video):
    """Weights [1, 1, 1, h, w] of latent pixels, heavier where the mouth is."""
    weight = torch.ones(1, 1, 1, *video.shape[3:])
    rows, columns = (
        slice(round(part.start * side / 8), round(part.stop * side / 8))
        for part, side in zip((MOUTH_ROWS, MOUTH_COLUMNS), video.shape[3:], strict=True)
    )
    weight[..., rows, columns] = MOUTH_WEIGHT
    return weight


def fit_network(options, name, modules, loss, sources, sample, network):
    """`fit` as all networks use it. sources: of clips that are trained on, and held out. network: its DiTConfig."""
    decay, plain = [], []
    for key, parameter in modules.named_parameters():
        if parameter.requires_grad:
            (decay if parameter.ndim > 1 and "embed_tokens" not in key else plain).append(parameter)
    groups = [{"params": decay, "weight_decay": 0.02}, {"params": plain, "weight_decay": 0.0}]
    optimizer = Together(torch.optim.AdamW(groups, lr=options.rate, betas=(0.9, 0.97), fused=True))
    source, held_out = sources
    network = asdict(network)
    config = {"latents": source.made_with, "clips": source.description, "network": network}
    if "guidance" in options:
        config["guidance"] = options.guidance
    fit(options.run / name, modules, optimizer, loss, source, options, config=config, held_out=held_out,
        sample=sample, extra={"network": network}, decay=0.999)  # fmt: skip


def base_loss(dit, encoder, size):
    """The loss of the base network, which trains the text encoder along."""

    def loss(batches, step):
        video, audio, ids = batches.draw_some_without_text(size)
        keep = torch.rand(size) < KEEP_FRAME, torch.rand(size) < KEEP_AUDIO
        x_v, x_a, noise_v, noise_a = noised(video, audio, noise_levels(size), keep)
        with autocast():
            found = dit(x_v, x_a, encoder(ids).float(), attention=plain_attention)
        v, a = velocity_loss(found, (noise_v - video, noise_a - audio), keep, mouth_weight(video))
        return v + a, {"video": v.detach(), "audio": a.detach()}

    return loss


def load_network(run, name):
    """(network, the state of its run), moving average; of the base run without the text encoder."""
    state = checkpoints.load_stage(run, name)
    dit = build_network(DiTConfig(**state["network"]))
    weights = {key[2:]: value for key, value in state["average"]["module"].items() if key.startswith("0.")}
    dit.load_state_dict(weights)
    return dit.eval(), state


def load_base(run):
    """(network, text encoder, the state of its run), moving averages."""
    dit, state = load_network(run, "base")
    encoder = build_encoder(build_tokenizer())
    weights = {key[2:]: value for key, value in state["average"]["module"].items() if key.startswith("1.")}
    encoder.load_state_dict(weights)
    return dit, encoder.eval(), state


def distilled_loss(teacher, student, encoder, size, scales):
    """The loss of the distilled network: the guided velocity at the eight levels it will be asked at."""
    levels = flow_sigmas(8)[:-1]
    video_scale, audio_scale = scales

    def loss(batches, step):
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

    return loss


def sampler_of(run, held_out, encoder, solver):
    """What `fit` shows of a network: a held-out clip through the autoencoder, and one made from its prompt."""
    _, turbo = load_trained(run)
    group = held_out.groups[max(held_out.groups)]
    index, ids = group[0]
    latents = held_out.latents.get(index)

    def sample(average):
        generator = torch.Generator().manual_seed(0)
        noise = (torch.randn(1, *latent.shape, generator=generator) for latent in latents)
        x, shapes = pack_latents(*noise)
        own = average[1] if len(average) > 1 else encoder
        model = JointDenoiser(average[0], shapes, own(ids[None]))
        video, _ = unpack_latents(solver(model, x, flow_sigmas(8), disable=True), shapes)
        return tuple(to_images(turbo.decode(v), 8) for v in (latents[0][None], video))

    return sample


def train_text(options, encoder):
    """The text encoder's quick start."""
    modules = WithReaders(encoder)
    optimizer = Together(torch.optim.AdamW(modules.parameters(), lr=options.rate, weight_decay=1e-3))
    clips = Clips(options.run / "clips")
    captions = Captions(clips, encoder.tokenizer, options.seed)

    def loss(captions, step):
        return modules.loss(captions, options.batch)

    fit(options.run / "text", modules, optimizer, loss, captions, options,
        config={"clips": clips.description})  # fmt: skip


def train_base(options, encoder):
    """Network and text encoder together."""
    WithReaders(encoder).load_state_dict(checkpoints.load_stage(options.run, "text")["modules"])
    dit = build_network()
    sources = sources_of(options, encoder.tokenizer)
    fit_network(options, "base", nn.ModuleList([dit, encoder]), base_loss(dit, encoder, options.batch), sources,
                sampler_of(options.run, sources[1], encoder, sample_unipc), CONFIG)  # fmt: skip


def train_distilled(options):
    """A copy of the base network learns what guidance makes of it."""
    teacher, encoder, state = load_base(options.run)
    teacher.requires_grad_(False)
    student = copy.deepcopy(teacher).train().requires_grad_(True)
    sources = sources_of(options, encoder.tokenizer)
    check_latents(options.run, state, sources[0].made_with)
    loss = distilled_loss(teacher, student, encoder, options.batch, options.guidance)
    fit_network(options, "distilled", nn.ModuleList([student]), loss, sources,
                sampler_of(options.run, sources[1], encoder, sample_renoise), CONFIG)  # fmt: skip


def sources_of(options, tokenizer):
    """(clips to train on, held-out clips)."""
    return tuple(Batches(options.run / "clips", tokenizer, options.seed, held) for held in (False, True))


def check_latents(run, base, made_with):
    """Raises Stop where the base network was trained on latents of other encoders than these are."""
    known = base["config"].get("latents", made_with)
    if known != made_with:
        raise Stop(f"{run / 'base'} was trained on latents of encoders {known}, these are of {made_with}: "
                   "train the base network again.")  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    stages = parser.add_subparsers(dest="stage", required=True)
    add_options(stages.add_parser("text"), steps=900, rate=1.5e-3, batch=64)
    add_options(stages.add_parser("base"), steps=11_000, rate=1e-3, batch=8)
    distilled = stages.add_parser("distilled")
    add_options(distilled, steps=1400, rate=3e-4, batch=8)
    distilled.add_argument("--guidance", type=float, nargs=2, default=(2.5, 3.0), help="video, audio")
    options = parser.parse_args()
    set_up(options)
    if options.stage == "distilled":
        train_distilled(options)
    else:
        (train_text if options.stage == "text" else train_base)(options, build_encoder(build_tokenizer()))


if __name__ == "__main__":
    main()
