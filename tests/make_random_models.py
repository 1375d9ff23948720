"""Write a folder of small models with random weights, in the layout of the official downloads.

    python tests/make_random_models.py FOLDER

It serves tests, and a first try of the command line without a download. What it makes is noise.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

if __name__ == "__main__":  # run from a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from magihuman_core.model.config import DiTConfig
from magihuman_core.model.dit import MagiHumanDiT
from magihuman_core.text.encoder import TextEncoder
from magihuman_core.text.prompt import DEFAULT_NEGATIVE_PROMPT
from magihuman_core.vae.audio import AudioVAE, AudioVAEConfig
from magihuman_core.vae.turbo import TurboVAE, TurboVAEConfig
from magihuman_core.vae.video import VideoVAE, VideoVAEConfig
from magihuman_core.weights.audio_keys import official_state_dict
from magihuman_core.weights.dit_keys import official_state_dict as official_dit

NOTICE = "These are small models with random weights, for trying out only. What they make is noise."
HIDDEN, HEAD_DIM, HEADS, KV_HEADS = 64, 32, 2, 1
VIDEO, AUDIO, TEXT = 48, 64, 32  # channels
SHARDS = 3
NETWORK = DiTConfig(
    layers=6, hidden=HIDDEN, head_dim=HEAD_DIM, heads=HEADS, kv_heads=KV_HEADS, video_channels=VIDEO,
    audio_channels=AUDIO, text_channels=TEXT, gelu_width=256, swiglu_width=168, sandwich_layers=(0, 1, 4, 5),
    gelu_layers=(0, 1),
)  # fmt: skip

TEXT_ENCODER = {
    "model_type": "t5gemma",
    "encoder": {
        "model_type": "t5_gemma_module", "hidden_size": TEXT, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "intermediate_size": 64,
        "vocab_size": 1024, "query_pre_attn_scalar": 16, "sliding_window": 4096,
    },
}  # fmt: skip
TURBO_VAE = {
    "latent_channels": VIDEO, "out_channels": 3, "patch_size": 2,
    "decoder_block_out_channels": [8, 8, 16, 16],
    "decoder_layers_per_block": [1, 1, 1, 1, 1], "decoder_spatio_temporal_scaling": [False, True, True, True],
    "decoder_spatio_only": [False, True, False, False], "decoder_is_dw_conv": [False] * 5,
    "first_chunk_size": 7, "step_size": 7,
}  # fmt: skip


def make_models(folder: str | Path, networks=("distill", "base", "540p_sr", "1080p_sr")) -> Path:
    """Write all parts below folder, the same ones each time."""
    folder = Path(folder)
    generator = torch.Generator().manual_seed(1)
    for name in networks:
        _write_sharded(folder / name, _network(generator))
    _write_turbo_vae(folder / "turbo_vae", generator)
    config = VideoVAEConfig(encoder_dim=4, decoder_dim=4, blocks=1)
    _write(folder / "vae" / "wan2.2_vae.safetensors", _filled(VideoVAE(config), generator))
    config = AudioVAEConfig(widths=(4, 4, 8, 8, 16, 16), latent_channels=AUDIO)
    sound = {"pretransform.model." + key: _random(key, tuple(t.shape), generator)
             for key, t in official_state_dict(AudioVAE(config)).items()}
    sound["model.model.to_timestep_embed.0.weight"] = torch.zeros(2, 2)  # a piece of the rest of Stable Audio
    _write(folder / "audio_vae" / "model.safetensors", sound)
    _write_text_encoder(folder / "text_encoder", generator)
    return folder


def _network(generator: torch.Generator) -> dict[str, Tensor]:
    official = official_dit(MagiHumanDiT(NETWORK, dtype=torch.float32))
    # In the order in which the values were always drawn.
    keys = sorted(official, key=lambda key: (key.startswith("block"), key.startswith("final"), "text" in key))
    tensors = {key: _random(key, tuple(official[key].shape), generator) for key in keys}
    return tensors | {"adapter.rope.bands": official["adapter.rope.bands"]}


def _write_sharded(folder: Path, tensors: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    weight_map = {}
    for shard in range(SHARDS):
        name = f"model-{shard + 1:05d}-of-{SHARDS:05d}.safetensors"
        part = {key: tensors[key] for key in sorted(tensors)[shard::SHARDS]}
        save_file(part, folder / name)
        weight_map.update(dict.fromkeys(part, name))
    size = sum(t.nbytes for t in tensors.values())
    index = {"metadata": {"total_size": size, "notice": NOTICE}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")


def _write_turbo_vae(folder: Path, generator: torch.Generator) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    weights = _filled(TurboVAE(TurboVAEConfig.from_mapping(TURBO_VAE)), generator)
    weights = {"module." + key: tensor for key, tensor in weights.items()}
    weights["module.aligned_feature_projection_heads.0.weight"] = torch.zeros(2, 2)  # training only
    torch.save({"step": 340000, "ema_state_dict": weights}, folder / "checkpoint-340000.ckpt")
    text = json.dumps(TURBO_VAE, indent=1)
    (folder / "TurboV3-Wan22-TinyShallow_7_7.json").write_text(text, encoding="utf-8")


def _write_text_encoder(folder: Path, generator: torch.Generator) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    weights = _filled(TextEncoder(TEXT_ENCODER), generator)
    weights = {"model." + key: tensor for key, tensor in weights.items()}
    weights["model.decoder.norm.weight"] = torch.zeros(TEXT)  # a piece of the decoder, which is not needed
    _write(folder / "model.safetensors", weights)
    (folder / "config.json").write_text(json.dumps(TEXT_ENCODER, indent=1), encoding="utf-8")
    # Bytes, and what is frequent in the negative prompt: any text can be read, English in few tokens.
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = TEXT_ENCODER["encoder"]["vocab_size"]
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([DEFAULT_NEGATIVE_PROMPT], trainer)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
    save_file(tensors, path, metadata={"notice": NOTICE})


def _filled(module: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    return {key: _random(key, tuple(t.shape), generator) for key, t in module.state_dict().items()}


def _random(key: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Values that keep signals near their size from layer to layer."""
    if key.endswith(("gamma", "weight_g")):
        return torch.ones(shape)
    if len(shape) == 1:  # biases, snakes, and norms that are stored as weight - 1
        return torch.zeros(shape)
    fan_in = torch.Size(shape[1:]).numel()
    return torch.randn(shape, generator=generator) * fan_in**-0.5


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(f"{make_models(sys.argv[1])}: {NOTICE}")  # noqa: T201
