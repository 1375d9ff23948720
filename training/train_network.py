"""Train the demo's networks on cached latents.

    python -m training.train_network text                    # quick start of the text encoder
    python -m training.train_network base                    # with the text encoder, from noise to velocity

Each goes on from its checkpoint when started again.
"""

import argparse
from dataclasses import asdict

import torch
from torch import nn

from magihuman_core import (
    DiTConfig,
    JointDenoiser,
    MagiHumanDiT,
    flow_sigmas,
    pack_latents,
    sample_unipc,
    unpack_latents,
)
from magihuman_core.nn.layers import RMSNorm
from training import checkpoints
from training.batches import Batches
from training.common import Stop, autocast
from training.data import Clips, sets_in
from training.fit import fit
from training.latents import Encoders
from training.masks import draw_keep, dubbed, mouth_weight, noised, velocity_loss
from training.muon import Together
from training.options import add_options, command, set_up
from training.text import Captions, WithReaders, build_encoder, build_tokenizer
from training.train_video_vae import load_trained, to_images

CONFIG = DiTConfig(
    layers=6, hidden=256, head_dim=64, heads=4, kv_heads=2, video_channels=48, audio_channels=64,
    text_channels=128, gelu_width=448, swiglu_width=448, sandwich_layers=(0, 5), gelu_layers=(0,),
)  # fmt: skip
SHIFT = 3.0  # of the noise levels in training


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


def noise_levels(count):
    """Logit-normal, pushed towards noise as the sampler's are. [n, 1, 1, 1, 1]"""
    u = torch.sigmoid(torch.randn(count))
    u = torch.where(torch.rand(count) < 0.1, torch.rand(count), u)
    return (SHIFT * u / (1 + (SHIFT - 1) * u)).clamp(0.002, 0.9999).view(-1, 1, 1, 1, 1)


def fit_network(options, name, modules, loss, sources, sample, network, *, factors=None, betas=(0.9, 0.97),
                extra=None, origins=None):  # fmt: skip
    """`fit` as all networks use it, with an optimizer for each of `modules`.

    sources: of clips that are trained on, and held out. network: its DiTConfig. factors: on the learning rate, one
    for each module. extra: see `fit`. origins: {name: hash} of the networks that it is trained with, which have to stay
    the same while it is, and in `export`.
    """
    factors = factors or [1.0] * len(modules)
    optimizer = Together(*(adamw(*pair, options.rate, betas) for pair in zip(modules, factors, strict=True)))
    source, held_out = sources
    extra = {} if extra is None else extra
    extra["network"] = asdict(network)
    config = {"latents": source.made_with, "clips": source.description, "network": extra["network"], **(origins or {})}
    config |= {key: getattr(options, key) for key in ("guidance", "warm_up") if key in options}
    fit(options.run / name, modules, optimizer, loss, source, options, config=config, held_out=held_out,
        sample=sample, extra=extra, decay=0.999)  # fmt: skip


def adamw(module, factor, rate, betas):
    """AdamW for the weights of a module; norms, biases and embeddings do not decay."""
    decay, plain = [], []
    for key, parameter in module.named_parameters():
        if parameter.requires_grad:
            (decay if parameter.ndim > 1 and "embed_tokens" not in key else plain).append(parameter)
    groups = [{"params": decay, "weight_decay": 0.02}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW([{**group, "factor": factor} for group in groups], lr=rate, betas=betas, fused=True)


def base_loss(dit, encoder, size):
    """The loss of the base network, which trains the text encoder along."""

    def loss(batches, step):
        video, audio, ids, other = batches.draw_some_without_text(size)
        keep = draw_keep(video, audio)
        video = dubbed(video, other, keep)
        x_v, x_a, noise_v, noise_a = noised(video, audio, noise_levels(len(video)), keep)
        with autocast():
            found = dit(x_v, x_a, encoder(ids).float(), attention=plain_attention)
        v, a = velocity_loss(found, (noise_v - video, noise_a - audio), keep, mouth_weight(video))
        return v + a, {"video": v.detach(), "audio": a.detach()}

    return loss


def load_network(run, name):
    """(network, the state of its run), moving average; of the base run without the text encoder."""
    state = checkpoints.load_stage(run, name)
    with checkpoints.fitting(run / name):
        dit = build_network(DiTConfig(**state["network"]))
        weights = {key[2:]: value for key, value in state["average"]["module"].items() if key.startswith("0.")}
        dit.load_state_dict(weights)
    return dit.eval(), state


def load_base(run):
    """(network, text encoder, the state of its run), moving averages."""
    dit, state = load_network(run, "base")
    encoder = build_encoder(build_tokenizer())
    weights = {key[2:]: value for key, value in state["average"]["module"].items() if key.startswith("1.")}
    with checkpoints.fitting(run / "base"):
        encoder.load_state_dict(weights)
    return dit, encoder.eval(), state


def sampler_of(run, held_out, encoder, solver):
    """What `fit` shows of a network: a held-out clip through the autoencoder, and one made from its prompt.

    encoder: of the prompts; None where it is trained along, beside the network.
    """
    _, turbo = load_trained(run)
    video, audio, ids = held_out.example()

    def sample(average):
        generator = torch.Generator().manual_seed(0)
        noise = (torch.randn(latent.shape, generator=generator) for latent in (video, audio))
        x, shapes = pack_latents(*noise)
        own = average[1] if encoder is None else encoder
        model = JointDenoiser(average[0], shapes, own(ids))
        made, _ = unpack_latents(solver(model, x, flow_sigmas(8), disable=True), shapes)
        return tuple(to_images(turbo.decode(v), 8) for v in (video, made))

    return sample


def train_text(options, encoder):
    """The text encoder's quick start."""
    modules = WithReaders(encoder)
    optimizer = Together(torch.optim.AdamW(modules.parameters(), lr=options.rate, weight_decay=1e-3))
    clips = [Clips(folder) for folder in sets_in(options.run / "clips")]
    captions = Captions(clips, encoder.tokenizer, options.seed)

    def loss(captions, step):
        return modules.loss(captions, options.batch)

    fit(options.run / "text", modules, optimizer, loss, captions, options,
        config={"clips": [part.description for part in clips]})  # fmt: skip


def train_base(options, encoder):
    """Network and text encoder together."""
    state = checkpoints.load_stage(options.run, "text")
    with checkpoints.fitting(options.run / "text"):
        WithReaders(encoder).load_state_dict(state["modules"])
    dit = build_network()
    sources = sources_of(options, encoder.tokenizer)
    fit_network(options, "base", nn.ModuleList([dit, encoder]), base_loss(dit, encoder, options.batch), sources,
                sampler_of(options.run, sources[1], None, sample_unipc), CONFIG)  # fmt: skip


def sources_of(options, tokenizer, base=None, kind=Batches, part="clips"):
    """(clips to train on, held-out clips), of a folder of the run.

    Raises Stop where their latents are not of the encoders that the run has now, or not of those that `base`, the state
    of the base network's run, was trained with.
    """
    sources = tuple(kind(options.run / part, tokenizer, options.seed, held) for held in (False, True))
    names = Encoders(options.run).names
    if sources[0].made_with != names:
        raise Stop(f"The latents in {options.run / part} were made with encoders {sources[0].made_with}, those of the "
                   f"run are now {names}: make them again, see encoders.json there.")  # fmt: skip
    if base is not None:
        checkpoints.check_origins(options.run / "base", base["config"], {"latents": names})
    return sources


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    stages = parser.add_subparsers(dest="stage", required=True)
    add_options(stages.add_parser("text"), steps=900, rate=1.5e-3, batch=64)
    add_options(stages.add_parser("base"), steps=11_000, rate=1e-3, batch=8)
    options = parser.parse_args()
    set_up(options)
    (train_text if options.stage == "text" else train_base)(options, build_encoder(build_tokenizer()))


if __name__ == "__main__":
    main()
