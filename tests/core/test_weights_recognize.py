"""What a checkpoint is and what to do with it, told from real key lists and from small real weights."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import magihuman_core
from magihuman_core.checkpoint.checkpoint import Checkpoint
from magihuman_core.checkpoint.lazy_tensor import InMemory
from magihuman_core.errors import CheckpointError
from magihuman_core.tools.inspect import describe
from magihuman_core.weights.open import open_checkpoint
from magihuman_core.weights.recognize import recognize, require_kind
from magihuman_core.weights.roles import find_role

from .golden import DATA, small_model

REAL = {
    "network": "real_config/dit_keys.json",
    "text_encoder": "real_config/t5gemma_encoder_keys.json",
    "video_vae": "real_config/wan22_vae_keys.json",
    "audio_vae": "real_config/sa_audio_keys.json",
    "turbo_vae": "turbo_vaed/real_keys.json",
}


def real_checkpoint(kind: str, prefix: str = "") -> Checkpoint:
    """The real model's names, shapes and dtypes, without storage."""
    keys = json.loads((DATA / REAL[kind]).read_text())["keys"]
    table = {prefix + k: InMemory(torch.empty(v["shape"], dtype=getattr(torch, v["dtype"][6:]), device="meta"))
             for k, v in keys.items()}  # fmt: skip
    return Checkpoint(table, f"the real {kind}")


@pytest.mark.parametrize("kind", REAL)
def test_the_real_models_are_recognized_and_told_apart(kind):
    checkpoint = real_checkpoint(kind)
    assert recognize(checkpoint).kind == kind
    assert recognize(checkpoint).quantization is None
    for wanted in REAL:
        if wanted == kind:
            require_kind(checkpoint, wanted)
        else:
            with pytest.raises(CheckpointError, match=r"is an? .*, where an? .* is expected\. Choose this"):
                require_kind(checkpoint, wanted)


@pytest.mark.parametrize(
    ("kind", "prefix"),
    [("text_encoder", "model."), ("audio_vae", "pretransform.model."), ("turbo_vae", "module."),
     ("network", "model.diffusion_model."), ("network", "diffusion_model.")],
)  # fmt: skip
def test_prefixes_do_not_hide_a_model(kind, prefix):
    assert recognize(real_checkpoint(kind, prefix)).kind == kind


@pytest.mark.parametrize(
    ("key", "words"),
    [("blocks.0.cross_attn.k.weight", "a Wan video model"),
     ("model.diffusion_model.blocks.0.cross_attn.k.weight", "a Wan video model"),
     ("decoder.upsamples.0.residual.2.weight", "Wan2.1"),
     ("encoder.down_blocks.0.norm1.gamma", "Wan2.1"),
     ("decoder.up_blocks.0.resnets.0.conv1.weight", "VAE of an image model"),
     ("encoder.block.0.layer.0.SelfAttention.q.weight", "T5 text encoder"),
     ("model.layers.0.self_attn.q_proj.weight", "language model"),
     ("double_blocks.0.img_attn.qkv.weight", "Flux"),
     ("transformer_blocks.0.attn1.to_k.weight", "another diffusion model")],
)  # fmt: skip
def test_other_peoples_models_are_named(key, words):
    found = recognize({key: torch.zeros(1)})
    assert found.kind == "unknown"
    assert words in found.what
    with pytest.raises(CheckpointError, match="Choose another file"):
        require_kind({key: torch.zeros(1)}, "network")


def test_a_wrong_file_is_refused_where_it_is_opened(tmp_path):
    tensors = small_model("turbo_vae")
    save_file(tensors, tmp_path / "turbo.safetensors")
    with pytest.raises(CheckpointError, match=r"turbo\.safetensors: is a Turbo VAE .* as the Turbo VAE"):
        open_checkpoint(tmp_path / "turbo.safetensors", "network")
    assert open_checkpoint(tmp_path / "turbo.safetensors", "turbo_vae")


LOADERS = {
    "network": magihuman_core.load_dit,
    "text_encoder": magihuman_core.load_text_encoder,
    "video_vae": magihuman_core.load_video_vae,
    "audio_vae": magihuman_core.load_audio_vae,
    "turbo_vae": magihuman_core.load_turbo_vae,
}


@pytest.mark.parametrize("given", LOADERS)
@pytest.mark.parametrize("wanted", LOADERS)
def test_every_loader_refuses_the_files_of_other_parts_by_name(wanted, given):
    options = {}
    if wanted == "text_encoder":
        options = {"config": json.loads((DATA / "t5gemma" / "tiny.json").read_text())["config"]}
    if wanted == given:
        LOADERS[wanted](small_model(given), **options)
    else:
        with pytest.raises(CheckpointError, match=r"is an? .*, where an? .* is expected\. Choose this file as"):
            LOADERS[wanted](small_model(given), **options)


ROLES = {
    "base": "base",
    "base/model.safetensors": "base",
    "distill": "distilled",
    "540p_sr": "sr_540p",
    "1080p_sr": "sr_1080p",
    "distill-merger_bf16.safetensors": "distilled",
    "540p_sr_merge_bf16.safetensors": "sr_540p",
    "1080p_sr_merge_fp8.safetensors": "sr_1080p",
    "distill_fp8/model.safetensors.index.json": "distilled",
    "magi_human_bf16.safetensors": "base",
    "magi_human_quanto_bf16_int8.safetensors": "base",
    "magi_human_distill_quanto_bf16_int8.safetensors": "distilled",
    "magi_human_sr1080_bf16.safetensors": "sr_1080p",
    "daVinci-MagiHuman-Distill-1080p/model.safetensors": "distilled",
    "daVinci-MagiHuman-Base-1080p/sr": "sr_1080p",
    "sr_1080p/sr_transformer": "sr_1080p",
    "fp8.safetensors": None,
    "database/x.safetensors": None,
    "/home/base/models/diffusion_models/fp8.safetensors": None,
}


@pytest.mark.parametrize("path", ROLES)
def test_a_role_is_read_from_names_in_use(path):
    assert find_role(Path("/") / path, {}) == ROLES[path]


def test_metadata_decides_over_names_and_first_stages_are_not_super_resolution(tmp_path):
    assert find_role(Path("base.safetensors"), {"role": "sr_540p"}) == "sr_540p"
    assert find_role(Path("base.safetensors"), {"role": "nonsense"}) == "base"
    folder = tmp_path / "MagiHuman-Base-1080p"
    for part in ("transformer", "sr"):
        (folder / part).mkdir(parents=True)
    assert find_role(folder / "transformer", {}) == "base"
    assert find_role(folder / "sr", {}) == "sr_1080p"


@pytest.fixture
def model_folder(tmp_path) -> Path:
    """A small folder as a user would have it, with some of everything."""
    for name in ("audio", "t5gemma", "wan", "turbo_vae"):
        (tmp_path / name).mkdir()
    audio = {"pretransform.model." + k: v for k, v in small_model("audio_vae").items()}
    audio["model.model.to_cond.weight"] = torch.zeros(2)
    save_file(audio, tmp_path / "audio" / "model.safetensors")
    save_file(small_model("video_vae"), tmp_path / "wan" / "Wan2.2_VAE.safetensors")
    turbo = small_model("turbo_vae")
    averaged = {"module." + k: v for k, v in turbo.items() if not k.startswith("__")}
    torch.save({"ema_state_dict": averaged}, tmp_path / "turbo_vae" / "checkpoint-340000.ckpt")
    config = json.loads((DATA / "turbo_vaed" / "tiny_weights.json").read_text())["config"]
    (tmp_path / "turbo_vae" / "TurboV3.json").write_text(json.dumps(config))
    (tmp_path / "pointer.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid")
    (tmp_path / "README.md").write_text("# Model")
    (tmp_path / "t5gemma" / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}, "added_tokens": []}')
    return tmp_path


def section(text: str, name: str) -> str:
    return next(part for part in text.split("\n\n") if part.splitlines()[0].endswith(name))


def test_inspect_explains_every_file_of_a_folder(model_folder):
    text = describe(model_folder, read_all=True)
    for file in model_folder.rglob("*"):
        if file.is_file():
            assert str(file) in text
    audio = section(text, "audio/model.safetensors")
    assert "Oobleck audio VAE" in audio
    assert "models/vae" in audio
    assert "only the VAE inside this file is read" in audio
    assert "Wan2.2 video VAE" in section(text, "Wan2.2_VAE.safetensors")
    assert "Turbo VAE (fast video decoder)" in section(text, "checkpoint-340000.ckpt")
    assert "configuration of the Turbo VAE" in section(text, "TurboV3.json")
    assert "tokenizer of 1 entries" in section(text, "tokenizer.json")
    assert "not a weight file" in section(text, "README.md")
    assert text.count("problem") == 1
    assert "Git-LFS pointer" in section(text, "pointer.safetensors")


def test_inspect_finds_what_loading_would_find(model_folder):
    path = model_folder / "wan" / "Wan2.2_VAE.safetensors"
    whole = load_file(path)
    save_file({k: v for k, v in whole.items() if k != "decoder.head.2.bias"}, path)
    assert "decoder.head.2.bias" in section(describe(path), "Wan2.2_VAE.safetensors").split("problem")[1]
    save_file({**whole, "conv1.weight": torch.full_like(whole["conv1.weight"], torch.nan)}, path)
    assert "not numbers" in describe(path, read_all=True).split("problem")[1]


def test_inspect_counts_and_names(tmp_path):
    tensors = {"decoder.upsamples.0.residual.2.weight": torch.zeros(1000, 1100), "b": torch.zeros(3).half()}
    save_file(tensors, tmp_path / "x.safetensors")
    text = describe(tmp_path / "x.safetensors")
    assert "Wan2.1" in text
    assert "2 tensors, 1.10 million values, 4.2 MiB (F32 4.2 MiB, F16 6 bytes)" in text
    assert "'decoder.upsamples.0.residual.2.weight'" in text
    with pytest.raises(CheckpointError, match="no such file"):
        describe(tmp_path / "nowhere")
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    assert "an empty folder" in describe(tmp_path)
