"""Write the trained weights in the layouts and under the names of the released files, to the run's folder export/.

    python -m training.export                                # whatever has been trained so far
    python -m training.export --overwrite-demo               # into magihuman_core/demo/, in place of what is there

Networks: the layout with split experts, 8-bit integers with a scale per row (quanto). Text encoder: the same integers.
Autoencoders: half precision under their official keys.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch

from magihuman_core.model.sequence import MODALITIES
from magihuman_core.weights import audio_keys, dit_keys
from training import checkpoints, train_network
from training.common import Stop, add_options, set_up
from training.files import DEMO, refuse_demo, write
from training.latents import Encoders
from training.preview import preview_of
from training.text import stored_config
from training.train_video_vae import TURBO, load_trained

# Seconds of a window. Of 2, 2.2, 2.4 and 3 s, with 2.4 s alone both lips (0.90 in every 2 s) and colours (drift of 2.5)
# were kept in 20 s of driven speech, on seeds 0 to 3; a live clip waits for so much sound. Super-resolution learnt 2 s.
WINDOWS = {"base": 2.4, "distilled": 2.4, "driven": 2.4, "super_resolution": 2}


def quantize(weight):
    """(int8 data, fp16 scale [rows, 1]) with weight = data * scale, per row."""
    scale = (weight.abs().amax(dim=1, keepdim=True).clamp_min(1e-4) / 127).half().float()
    return (weight / scale).round().clamp(-127, 127).to(torch.int8), scale.half()


def split_layout(dit):
    """The network's weights as files with split experts and quanto's 8-bit weights have them."""
    c = dit.config
    rows = {"q": c.heads * c.head_dim, "k": c.kv_heads * c.head_dim, "v": c.kv_heads * c.head_dim, "g": c.heads}
    tensors = {}
    for key, tensor in dit_keys.official_state_dict(dit).items():
        name = key.removesuffix(".weight").rsplit(".", 1)[-1]
        if not key.startswith("block.") or "norm" in name:
            tensors[key] = tensor.float() if "norm" in name or "bands" in key else tensor.half()
            continue
        sandwich = int(key.split(".")[2]) in c.sandwich_layers
        stem = key.removesuffix(f"{name}.weight")
        for modality, part in zip(MODALITIES, tensor.chunk(3), strict=True) if sandwich else [("", tensor)]:
            end = f"_{modality}" if modality else ""
            if name == "linear_qkv":
                names = (f"linear_{p}" for p in rows)
                pieces = list(zip(names, part.split(list(rows.values())), strict=True))
            else:
                pieces = [(name, part)]
            for piece_name, piece in pieces:
                layer = f"{stem}{piece_name}{end}.weight"
                if piece_name == "linear_g":  # small and precious
                    tensors[layer] = piece.half()
                else:
                    tensors[layer + "._data"], tensors[layer + "._scale"] = quantize(piece)
    return tensors


def halves(state):
    return {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in state.items()}


def export(run, out):
    """Everything that has a checkpoint. Returns {part: bytes}. Raises Stop where networks and encoders do not fit."""
    sizes = {}
    encoders = Encoders(run)
    vae, turbo = load_trained(run)
    sizes["vae"] = write(out / "vae" / "wan2.2_vae_demo.safetensors", halves(vae.state_dict()), kind="video_vae")
    path = out / "turbo_vae" / "turbo_vae_demo.safetensors"
    sizes["turbo_vae"] = write(path, halves(turbo.state_dict()), kind="turbo_vae")
    path.with_suffix(".json").write_text(json.dumps(asdict(TURBO), indent=1) + "\n")

    audio = halves(audio_keys.official_state_dict(encoders.audio_vae))
    audio = {f"pretransform.model.{key}": tensor for key, tensor in audio.items()}
    sizes["audio_vae"] = write(out / "audio_vae" / "model.safetensors", audio, kind="audio_vae")

    preview = preview_of(encoders.video)
    for name, role, folder in (
        ("base", "base", "base"), ("distilled", "distilled", "distill"), ("driven", "distilled", "distill"),
        ("super_resolution", "sr_540p", "540p_sr"),
    ):  # fmt: skip
        if not checkpoints.checkpoints_in(run / name):
            continue
        dit, state = train_network.load_network(run, name)
        made_with = state["config"].get("latents", encoders.names)
        if made_with != encoders.names:
            raise Stop(f"{run / name} was trained on latents of encoders {made_with}, those of the run are now "
                       f"{encoders.names}: train it again.")  # fmt: skip
        path = out / folder / f"magihuman_demo_{role}.safetensors"
        sizes[role] = write(path, split_layout(dit), role=role, preview=preview, clip_seconds=f"{WINDOWS[name]:g}")
        if name == "base":
            sizes["text_encoder"] = write_text_encoder(out / "text_encoder", train_network.load_base(run)[1])
    return sizes


def write_text_encoder(folder, encoder):
    """Weights, configuration and tokenizer. Returns the bytes of the weights."""
    config = stored_config(encoder.tokenizer)
    tensors = {}
    for key, tensor in encoder.state_dict().items():
        if key.endswith("_proj.weight"):
            tensors[f"model.{key}._data"], tensors[f"model.{key}._scale"] = quantize(tensor)
        else:
            tensors[f"model.{key}"] = tensor.half()
    size = write(folder / "model.safetensors", tensors, kind="text_encoder", config=config)
    (folder / "config.json").write_text(json.dumps(json.loads(config), indent=1) + "\n")
    encoder.tokenizer.save(str(folder / "tokenizer.json"))
    return size


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="default: export/ in the run's folder")
    parser.add_argument("--overwrite-demo", action="store_true", help="write over the weights that are shipped")
    add_options(parser)
    options = parser.parse_args()
    set_up(options)
    out = DEMO if options.overwrite_demo else options.out or options.run / "export"
    refuse_demo(out, options.overwrite_demo)
    sizes = export(options.run, out)
    for name, size in {**sizes, "total": sum(sizes.values())}.items():
        print(f"{name:12} {size / 1e6:6.2f} MB")
    print(f"written to {out}")


if __name__ == "__main__":
    main()
