"""Write the trained weights to magihuman_core/demo/, in the layouts and under the names of the released files.

    python -m training.export                                # whatever has been trained so far
    python -m training.export --out somewhere

Networks: the layout with split experts, 8-bit integers with a scale per row (quanto). Text encoder: the same integers.
Autoencoders: half precision under their official keys.
"""

import argparse
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from magihuman_core.model.sequence import MODALITIES
from magihuman_core.weights import audio_keys, dit_keys
from training import train_audio_vae, train_network, train_video_vae
from training.common import RUNS
from training.text import stored_config

OUT = Path(__file__).parent.parent / "magihuman_core" / "demo"
VERSION = "1"
SOURCE = "trained by this project on drawn, synthetic clips; see CARD.md"


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


def write(path, tensors, **metadata):
    """One safetensors file, whole or not at all. Returns its size in bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    tensors = {key: tensor.detach().contiguous().clone() for key, tensor in tensors.items()}
    save_file(tensors, part, {"format": "pt", "source": SOURCE, "version": VERSION, **metadata})
    part.chmod(0o644)
    part.replace(path)
    return path.stat().st_size


def halves(state):
    return {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in state.items()}


def export(out):
    """Everything that has a checkpoint. Returns {file: bytes}."""
    sizes = {}

    def note(name, size):
        sizes[name] = size

    if (RUNS / "video_vae.pt").exists():
        vae, turbo = train_video_vae.load_trained()
        note("vae", write(out / "vae" / "wan2.2_vae_demo.safetensors", halves(vae.state_dict()), kind="video_vae"))
        note("turbo_vae", write(out / "turbo_vae" / "turbo_vae_demo.safetensors", halves(turbo.state_dict()),
                                kind="turbo_vae"))  # fmt: skip
        config = json.dumps(asdict(train_video_vae.TURBO), indent=1)
        (out / "turbo_vae" / "turbo_vae_demo.json").write_text(config + "\n")
    if (RUNS / "audio_vae.pt").exists():
        audio = audio_keys.official_state_dict(train_audio_vae.load_trained())
        tensors = {f"pretransform.model.{key}": tensor for key, tensor in halves(audio).items()}
        note("audio_vae", write(out / "audio_vae" / "model.safetensors", tensors, kind="audio_vae"))
    if (RUNS / "base.pt").exists():
        dit, encoder = train_network.load_base()
        note("base", write(out / "base" / "magihuman_demo_base.safetensors", split_layout(dit), role="base"))
        folder = out / "text_encoder"
        config = stored_config(encoder.tokenizer)
        tensors = {}
        for key, tensor in encoder.state_dict().items():
            if key.endswith("_proj.weight"):
                tensors[f"model.{key}._data"], tensors[f"model.{key}._scale"] = quantize(tensor)
            else:
                tensors[f"model.{key}"] = tensor.half()
        note("text", write(folder / "model.safetensors", tensors, kind="text_encoder", config=config))
        (folder / "config.json").write_text(json.dumps(json.loads(config), indent=1) + "\n")
        encoder.tokenizer.save(str(folder / "tokenizer.json"))
    for name, role, folder in (("distilled", "distilled", "distill"), ("super_resolution", "sr_540p", "540p_sr")):
        if (RUNS / f"{name}.pt").exists():
            dit = train_network.load_network(name)
            note(role, write(out / folder / f"magihuman_demo_{role}.safetensors", split_layout(dit), role=role))
    return sizes


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    sizes = export(options.out)
    shutil.rmtree(options.out / "__pycache__", ignore_errors=True)
    for name, size in sizes.items():
        print(f"{name:12} {size / 1e6:6.2f} MB")
    print(f"{'total':12} {sum(sizes.values()) / 1e6:6.2f} MB")


if __name__ == "__main__":
    main()
