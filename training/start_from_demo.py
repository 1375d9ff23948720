"""Checkpoints to train on from, made of the demo's own files: the work of earlier machines is not lost.

    python -m training.start_from_demo       # never overwrites a checkpoint

Weights come back at the precision they were stored in; optimizers start anew.
"""

import argparse
from dataclasses import asdict

import torch
from torch import nn

from magihuman_core import load_audio_vae, load_dit, load_text_encoder, load_turbo_vae, load_video_vae
from magihuman_core.weights.audio_keys import official_state_dict
from training import checkpoints, train_audio_vae, train_network, train_super_resolution, train_video_vae
from training.common import alone, weights_hash
from training.files import DEMO
from training.options import add_options, command, set_up
from training.text import WithReaders

STAGES = ("video_vae", "wan_decoder", "audio_vae", "text", "base", "distilled", "super_resolution")


def file_of(part):
    return next((DEMO / part).glob("*.safetensors"))


def write_start(folder, modules, config, **extra):
    """Write step 0 of a stage unless it has a checkpoint."""
    with alone(folder):
        if checkpoints.checkpoints_in(folder):
            print(f"{folder} has a checkpoint, which stays")
            return
        weights = modules.state_dict()
        checkpoints.save(folder, {"modules": weights, "average": {"steps": 0, "module": weights}, "optimizer": None,
                                  "step": 0, "seconds": 0.0, "config": config, **extra})  # fmt: skip
    print(f"{folder} begun")


def start(run, stages=None):
    """Begin all stages of a run, or only these."""

    def keep(stage, modules, config, **extra):
        if stages is None or stage in stages:
            write_start(run / stage, modules, config, **extra)

    vae, turbo = train_video_vae.build()
    vae.load_state_dict(load_video_vae(file_of("vae"), dtype=torch.float32).state_dict())
    turbo.load_state_dict(load_turbo_vae(DEMO / "turbo_vae", dtype=torch.float32).state_dict())
    modules = train_video_vae.trained_together(vae, turbo)
    keep("video_vae", modules, {}, guide={"encoder": modules.state_dict()})
    names = {"video": train_video_vae.encoder_hash(vae)}
    keep("wan_decoder", nn.ModuleList([vae.decoder, vae.conv2]), {"encoder": names["video"]})

    audio_vae = train_audio_vae.build()
    audio_vae.load_state_dict(official_state_dict(load_audio_vae(file_of("audio_vae"))))
    keep("audio_vae", train_audio_vae.with_reader(audio_vae), {})
    names["audio"] = weights_hash(audio_vae.encoder)

    encoder = load_text_encoder(file_of("text_encoder"), dtype=torch.float32)
    known = {"text_encoder": weights_hash(encoder)}  # to the networks of the demo, whatever the run's own learns
    keep("text", WithReaders(encoder), {})
    if state := checkpoints.load(run / "text"):  # it may have learnt more by now
        with checkpoints.fitting(run / "text"):
            WithReaders(encoder).load_state_dict(state["modules"])
    networks = {}
    for name, part, config in (
        ("base", "base", train_network.CONFIG),
        ("distilled", "distill", train_network.CONFIG),
        ("super_resolution", "540p_sr", train_super_resolution.CONFIG),
    ):
        dit = train_network.build_network(config)
        dit.load_state_dict(load_dit(file_of(part), dtype=torch.float32, positions=config.positions).state_dict())
        # The distilled network has its fake beside it, which begins as the base network.
        modules = nn.ModuleList({"base": [dit, encoder], "distilled": [dit, networks.get("base")]}.get(name, [dit]))
        networks[name] = dit
        origins = {"distilled": {**known, "teacher": weights_hash(networks["base"])}, "super_resolution": known}
        keep(name, modules, {"latents": names, **origins.get(name, {})}, network=asdict(config))


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--stages", nargs="+", choices=STAGES, help="only these")
    add_options(parser)
    options = parser.parse_args()
    set_up(options)
    start(options.run, options.stages)


if __name__ == "__main__":
    main()
