"""What a checkpoint is and what to do with it, told from real key lists and from small real weights."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from magihuman_core.checkpoint.checkpoint import Checkpoint
from magihuman_core.checkpoint.lazy_tensor import InMemory
from magihuman_core.errors import CheckpointError
from magihuman_core.tools.inspect import describe
from magihuman_core.weights.open import open_checkpoint
from magihuman_core.weights.recognize import recognize, require_kind
from magihuman_core.weights.roles import find_role

from .golden import LOADERS, load_small, real_model, small_model


def real_checkpoint(kind: str, prefix: str = "") -> Checkpoint:
    return Checkpoint({prefix + key: InMemory(tensor) for key, tensor in real_model(kind).items()}, f"the real {kind}")


@pytest.mark.parametrize("kind", LOADERS)
def test_the_real_models_are_recognized_and_told_apart(kind):
    checkpoint = real_checkpoint(kind)
    assert recognize(checkpoint).kind == kind
    assert recognize(checkpoint).quantization is None
    for wanted in LOADERS:
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


@pytest.mark.parametrize("given", LOADERS)
def test_every_loader_refuses_the_files_of_other_parts_by_name(given):
    for wanted in LOADERS:
        expected = pytest.raises(CheckpointError, match=r"is an? .*, where an? .* is expected\. Choose this file as")
        with nullcontext() if wanted == given else expected:
            load_small(wanted, small_model(given))


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
    "sr/checkpoint-1080.safetensors": None,
    "SR540_int8.safetensors": "sr_540p",
    "magihuman-super-resolution-540.safetensors": "sr_540p",
    "magihuman_1080P.safetensors": "sr_1080p",
    "sr_540p/weights/x.safetensors": "sr_540p",
    "540p_sr/weights/fp8/model.safetensors.index.json": "sr_540p",
    "magihuman_distill-00001-of-00002.safetensors": "distilled",
    "magihuman_base_540p.safetensors": "base",
    "magihuman_step5400.safetensors": None,
    "magihuman_distill_step15400.safetensors": "distilled",
    "distill/step-540.safetensors": "distilled",
    "magihuman-10800.safetensors": None,
    "magihuman-20251080p.safetensors": None,
    "base/checkpoint-54000": "base",
    "sr_540p/checkpoint-10800.safetensors": "sr_540p",
    "gtx1080/magihuman_int8.safetensors": None,
    "/home/gtx1080/nets/magihuman_int8.safetensors": None,
    "/home/gtx1080p/models/magihuman_int8.safetensors": None,
    "/home/base/models/fp8.safetensors": None,
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


def section(text: str, name: str) -> str:
    return next(part for part in text.split("\n\n") if part.splitlines()[0].endswith(name))


EXPLAINED = {  # file, words about it
    "distill/model.safetensors.index.json": ["distilled", "8 steps"],
    "base/model.safetensors.index.json": ["32 steps"],
    "540p_sr/model.safetensors.index.json": ["540p"],
    "1080p_sr/model.safetensors.index.json": ["1080p"],
    "turbo_vae/checkpoint-340000.ckpt": ["Turbo VAE (fast video decoder)"],
    "turbo_vae/TurboV3-Wan22-TinyShallow_7_7.json": ["configuration of the Turbo VAE"],
    "vae/wan2.2_vae.safetensors": ["Wan2.2 video VAE"],
    "audio_vae/model.safetensors": ["Oobleck audio VAE", "models/vae", "only the VAE inside this file is read"],
    "text_encoder/model.safetensors": ["T5Gemma"],
    "text_encoder/tokenizer.json": ["a tokenizer of", "entries, for the text encoder"],
    "text_encoder/config.json": ["a configuration"],
}


def test_inspect_explains_every_file_of_a_folder(random_models, tmp_path):
    text = describe(random_models, read_all=True)
    sections = {str(Path(part.splitlines()[0]).relative_to(random_models)): part for part in text.split("\n\n")}
    files = [path.relative_to(random_models) for path in random_models.rglob("*") if path.is_file()]
    # Shards stand together under their index.
    assert sorted(sections) == sorted(EXPLAINED) == sorted(str(path) for path in files if "-of-" not in path.name)
    for name, words in EXPLAINED.items():
        assert all(word in sections[name] for word in words), name
    assert "problem" not in text
    lines = [line.split(None, 1)[1] for line in text.splitlines() if line.startswith("  memory")]
    assert len(lines) == 8 and sum("for 5 s at 448x256 (estimated); with less it runs" in line for line in lines) == 4
    assert "activations" not in text and "FLOP" not in text
    text = describe(random_models, details=True)
    lines = [line.split(None, 1)[1] for line in text.splitlines() if line.startswith("  memory")]
    parts = [line.split(",")[0] for line in lines]
    assert sorted(parts) == ["Turbo VAE", "audio VAE", *4 * ["network"], "text encoder", "video VAE"]
    assert sum("448x256, 5 s" in line for line in lines) == 4 and sum("1920x1088" in line for line in lines) == 1
    assert all("weights and" in line and "activations" in line for line in lines)

    (tmp_path / "pointer.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid")
    (tmp_path / "README.md").write_text("# Model")
    text = describe(tmp_path)
    assert "README.md" not in text and "1 files that are not weights" in text
    assert "not a weight file" in describe(tmp_path / "README.md")
    assert text.count("problem") == 1 and "Git-LFS pointer" in section(text, "pointer.safetensors")


def test_inspect_finds_what_loading_would_find(tmp_path):
    path, whole = tmp_path / "vae.safetensors", small_model("video_vae")
    save_file({k: v for k, v in whole.items() if k != "decoder.head.2.bias"}, path)
    assert "decoder.head.2.bias" in describe(path).split("problem")[1]
    save_file({**whole, "conv1.weight": torch.full_like(whole["conv1.weight"], torch.nan)}, path)
    assert "not numbers" in describe(path, read_all=True).split("problem")[1]


def test_inspect_counts_and_names(tmp_path):
    tensors = {"decoder.upsamples.0.residual.2.weight": torch.zeros(1000, 1100), "b": torch.zeros(3).half()}
    save_file(tensors, tmp_path / "x.safetensors")
    text = describe(tmp_path / "x.safetensors")
    assert "Wan2.1" in text
    assert "2 tensors, 1.10 million values, 4.4 MB (F32 4.4 MB, F16 6 bytes)" in text
    assert "'decoder.upsamples.0.residual.2.weight'" in text
    with pytest.raises(CheckpointError, match="no such file"):
        describe(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "an empty folder" in describe(tmp_path / "empty")
