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

from magihuman_core.atomic import whole_file
from magihuman_core.model.sequence import MODALITIES
from magihuman_core.weights import audio_keys, dit_keys
from training import checkpoints, train_network
from training.common import weights_hash
from training.files import DEMO, SOURCE, check_finite, refuse_demo, write
from training.latents import Encoders
from training.options import add_options, command, set_up
from training.preview import preview_of
from training.text import stored_config
from training.train_video_vae import TURBO, load_trained

PLACES = {  # of a stage's network: role, and folder
    "base": ("base", "base"),
    "distilled": ("distilled", "distill"),
    "driven": ("distilled", "distill"),
    "super_resolution": ("sr_540p", "540p_sr"),
}
ORIGINS = {  # what each is trained with, as it records it
    "base": ["latents"],
    "distilled": ["latents", "text_encoder", "teacher"],
    "driven": ["latents", "text_encoder", "distilled"],
    "super_resolution": ["latents", "text_encoder"],
}
# Seconds of a window. Before windows saw the clip's picture, of 2, 2.2, 2.4 and 3 s with 2.4 s alone both lips (0.90
# in every 2 s) and colours (drift of 2.5) were kept in 20 s of driven speech, on seeds 0 to 3. Since then 2.2 to 3 s
# differ little (0.89 to 0.90), and a live clip waits for so much sound. Super-resolution learnt 2 s.
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
    """Everything that has a checkpoint. Returns {part: bytes}.

    Raises Stop where networks and encoders do not fit together or a weight is not finite, before anything is written.
    """
    files, texts = {}, {}  # part: (path, tensors, metadata); path: text
    encoders = Encoders(run)
    vae, turbo = load_trained(run)
    files["vae"] = out / "vae" / "wan2.2_vae_demo.safetensors", halves(vae.state_dict()), {"kind": "video_vae"}
    path = out / "turbo_vae" / "turbo_vae_demo.safetensors"
    files["turbo_vae"] = path, halves(turbo.state_dict()), {"kind": "turbo_vae"}
    texts[path.with_suffix(".json")] = json.dumps(asdict(TURBO), indent=1) + "\n"

    audio = halves(audio_keys.official_state_dict(encoders.audio_vae))
    audio = {f"pretransform.model.{key}": tensor for key, tensor in audio.items()}
    files["audio_vae"] = out / "audio_vae" / "model.safetensors", audio, {"kind": "audio_vae"}

    networks = trained_networks(run, encoders.names)
    preview = preview_of(encoders.video) if networks else None
    for name, dit in networks.items():
        role, folder = PLACES[name]
        path = out / folder / f"magihuman_demo_{role}.safetensors"
        files[role] = path, split_layout(dit), {"role": role, "preview": preview, "clip_seconds": f"{WINDOWS[name]:g}"}
    if "base" in networks:
        encoder = train_network.load_base(run)[1]
        folder, config = out / "text_encoder", stored_config(encoder.tokenizer)
        metadata = {"kind": "text_encoder", "config": config}
        files["text_encoder"] = folder / "model.safetensors", text_encoder_layout(encoder), metadata
        texts[folder / "config.json"] = json.dumps(json.loads(config), indent=1) + "\n"
        texts[folder / "tokenizer.json"] = encoder.tokenizer.to_str(pretty=True)

    for path, tensors, _ in files.values():
        check_finite(path, tensors)
    sizes = {part: write(path, tensors, source=SOURCE, **more) for part, (path, tensors, more) in files.items()}
    for path, text in texts.items():
        with whole_file(path) as file:
            file.write(text.encode())
        path.chmod(0o644)
    return sizes


def trained_networks(run, latents):
    """{stage: network}, moving averages, of all networks that are trained; the driven one in place of the distilled.

    latents: hashes of the run's encoders. Raises Stop where a network was trained with other weights than the run's.
    """
    networks, now = {}, {"latents": latents}
    for name in PLACES:
        if not checkpoints.checkpoints_in(run / name):
            continue
        networks[name], state = train_network.load_network(run, name)
        known = {key: now[key] for key in ORIGINS[name] if key in now}
        checkpoints.check_origins(run / name, state["config"], known)
        if name == "base":
            now["teacher"] = weights_hash(networks[name])
            now["text_encoder"] = weights_hash(train_network.load_base(run)[1])
        elif name == "distilled":
            now["distilled"] = weights_hash(networks[name])
    if "driven" in networks:
        networks.pop("distilled", None)
    return networks


def text_encoder_layout(encoder):
    """The text encoder's weights under official names, matrices in 8 bits."""
    tensors = {}
    for key, tensor in encoder.state_dict().items():
        if key.endswith("_proj.weight"):
            tensors[f"model.{key}._data"], tensors[f"model.{key}._scale"] = quantize(tensor)
        else:
            tensors[f"model.{key}"] = tensor.half()
    return tensors


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--out", type=Path, help="default: export/ in the run's folder")
    where.add_argument("--overwrite-demo", action="store_true", help="write over the weights that are shipped")
    add_options(parser, seed=False)
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
