"""Checkpoints to train on from, made of the demo's own files: the work of earlier machines is not lost.

    python -m training.start_from_demo       # never overwrites a checkpoint

Weights come back at the precision they were stored in; optimizers start anew.
"""

import torch
from torch import nn

from magihuman_core import load_audio_vae, load_dit, load_text_encoder, load_turbo_vae, load_video_vae
from magihuman_core.weights.audio_keys import official_state_dict
from training import train_audio_vae, train_network, train_super_resolution, train_video_vae
from training.common import RUNS, save_atomically
from training.export import OUT


def file_of(part):
    return next((OUT / part).glob("*.safetensors"))


def keep(name, modules, **more):
    """Write training/runs/<name>.pt unless it is there."""
    path = RUNS / f"{name}.pt"
    if path.exists():
        print(f"{path.name} exists and stays")
        return
    weights = modules.state_dict()
    save_atomically({"modules": weights, "average": {"steps": 0, "module": weights}, "optimizer": None, "step": 0,
                     "spent": 0.0, **more}, path)
    print(f"{path.name} written")


def main():
    vae = load_video_vae(file_of("vae"), dtype=torch.float32)
    turbo = load_turbo_vae(OUT / "turbo_vae", dtype=torch.float32)
    own_vae, own_turbo = train_video_vae.build()
    own_vae.load_state_dict(vae.state_dict())
    own_turbo.load_state_dict(turbo.state_dict())
    modules = nn.ModuleList([own_vae.encoder, own_vae.conv1, own_turbo])
    keep("video_vae", modules, guide={"encoder": modules.state_dict()})
    keep("wan_decoder", nn.ModuleList([own_vae.decoder, own_vae.conv2]))

    audio_vae = train_audio_vae.build()
    audio_vae.load_state_dict(official_state_dict(load_audio_vae(file_of("audio_vae"))))
    keep("audio_vae", audio_vae)

    encoder = load_text_encoder(file_of("text_encoder"), dtype=torch.float32)
    for name, part, config in (
        ("base", "base", train_network.CONFIG),
        ("distilled", "distill", train_network.CONFIG),
        ("super_resolution", "540p_sr", train_super_resolution.CONFIG),
    ):
        dit = train_network.build_network(config)
        dit.load_state_dict(load_dit(file_of(part), dtype=torch.float32, positions=config.positions).state_dict())
        keep(name, nn.ModuleList([dit, encoder] if name == "base" else [dit]), config=config)


if __name__ == "__main__":
    main()
