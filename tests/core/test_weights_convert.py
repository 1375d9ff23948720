"""Converting: what is written loads again, is exact where it can be, and is whole or not there."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from magihuman_core.checkpoint.lazy_tensor import InMemory
from magihuman_core.checkpoint.quantized import as_quantized
from magihuman_core.checkpoint.write import write_checkpoint
from magihuman_core.cli import main
from magihuman_core.errors import CheckpointError, InputError
from magihuman_core.loading.text_encoder import load_text_encoder
from magihuman_core.tools.convert import convert
from magihuman_core.tools.inspect import describe
from magihuman_core.weights.comfyui_saved import CONFIG, TOKENIZER, text_tensors
from magihuman_core.weights.open import open_checkpoint
from magihuman_core.weights.recognize import recognize

from .golden import full_disk, relative, small_model
from .test_weights_layouts import computed

ROOT = Path(__file__).resolve().parents[2]


def is_linear(key: str) -> bool:
    return key.startswith("block.") and "norm" not in key


def metadata(path: Path) -> dict:
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_there_and_back_is_bit_equal(official, tmp_path):
    split = convert(official, tmp_path / "split.safetensors", layout="split", role="distilled")
    stored = load_file(split)
    assert "block.layers.0.attention.linear_k_audio.weight" in stored
    assert "block.layers.1.attention.linear_g.weight" in stored
    assert "block.layers.0.attention.linear_qkv.weight" not in stored
    back = convert(split, tmp_path / "back.safetensors")
    again = load_file(back)
    assert set(again) == set(official)
    for key, tensor in official.items():
        assert again[key].dtype == tensor.dtype
        assert torch.equal(again[key], tensor)
    texts = metadata(back)
    assert set(json.loads(texts.pop("sha256"))) == set(official)
    assert texts == {"format": "pt", "kind": "network", "role": "distilled", "version": "1",
                              "source": "split.safetensors"}  # fmt: skip
    assert recognize(open_checkpoint(back, raw=True)).role == "distilled"


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_embedders_heads_and_norms_keep_their_width(dtype, official, tmp_path):
    wanted = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[dtype]
    stored = load_file(convert(official, tmp_path / "x.safetensors", dtype=dtype))
    for key, tensor in official.items():
        assert stored[key].dtype == (wanted if is_linear(key) else torch.float32)
        assert torch.equal(stored[key], tensor.to(stored[key].dtype))


@pytest.mark.parametrize(("dtype", "allowed"), [("fp8", 0.1), ("int8", 0.03)])
def test_quantized_files_compute_nearly_the_same(dtype, allowed, official, tmp_path):
    path = convert(official, tmp_path / "distill.safetensors", dtype=dtype)
    assert 1e-5 < relative(computed(path), computed(official)) <= allowed
    stored, layers = load_file(path), json.loads(metadata(path)["_quantization_metadata"])["layers"]
    narrow = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}[dtype]
    assert {stored[layer + ".weight"].dtype for layer in layers} == {narrow}
    for layer, note in layers.items():  # ComfyUI's own table
        assert note == {"format": {"fp8": "float8_e4m3fn", "int8": "int8_tensorwise"}[dtype]}
        height = stored[layer + ".weight"].shape[0]
        assert stored[layer + ".weight_scale"].shape == ((height, 1) if dtype == "int8" else ())
    for key, tensor in stored.items():
        if is_linear(key) and not key.endswith("_scale"):
            assert tensor.dtype == (torch.bfloat16 if ".linear_g" in key else narrow)
        else:
            assert tensor.dtype == torch.float32
    found = recognize(open_checkpoint(path, raw=True))
    assert (found.layout, found.quantization) == ("split experts", "ComfyUI quantized layers")
    assert found.role == "distilled"
    assert "problem" not in describe(path)


def test_each_linear_of_each_modality_has_a_scale_and_qkv_share_one(official, tmp_path):
    key = "block.layers.0.attention.linear_qkv.weight"
    official[key] = torch.cat([part * 20**i for i, part in enumerate(official[key].chunk(3))])
    path = convert(official, tmp_path / "x.safetensors", dtype="fp8")
    stored = load_file(path)
    stem = key.removesuffix("qkv.weight")
    video, audio = (stored[f"{stem}q_{name}.weight_scale"] for name in ("video", "audio"))
    assert audio > 5 * video
    for part in "kv":
        assert stored[f"{stem}{part}_video.weight_scale"] == video
    assert f"{stem}g_video.weight_scale" not in stored
    read, height = open_checkpoint(path, "network"), official[key].shape[0] // 3
    for i in range(3):  # each modality is as exact as fp8 is, whatever the others' size
        rows = i * height, (i + 1) * height
        assert relative(read.read(key, rows=rows), official[key][slice(*rows)]) <= 0.04
    joined = as_quantized(read.entries[key].rows(0, height - 2))
    assert joined.scale.read().unique().numel() == 1


def test_quantized_files_become_plain_again(official, tmp_path):
    narrow = convert(official, tmp_path / "narrow.safetensors", dtype="int8")
    wide = load_file(convert(narrow, tmp_path / "wide.safetensors"))
    assert set(wide) == set(official)
    assert "_quantization_metadata" not in metadata(tmp_path / "wide.safetensors")
    for key, tensor in official.items():
        assert relative(wide[key], tensor) <= 1e-2


@pytest.mark.parametrize(("kind", "prefix", "rest", "dtype"), [
    ("audio_vae", "pretransform.model.", "model.model.rest", None),
    ("turbo_vae", "module.", "module.aligned_blocks.0.weight", None),
    ("turbo_vae", "module.", "module.discriminator.freqs", None),
    ("text_encoder", "model.", "model.decoder.layers.0.x", "fp8"),
])  # fmt: skip
def test_only_what_is_used_of_a_larger_file_is_written(kind, prefix, rest, dtype, tmp_path):
    weights = small_model(kind)
    left_out = torch.ones(3, dtype=torch.complex64) if "freqs" in rest else torch.zeros(3)
    source = {prefix + k: v for k, v in weights.items()} | {rest: left_out}
    if kind == "turbo_vae":
        torch.save({"ema_state_dict": source}, tmp_path / "checkpoint-1.ckpt")
        source = tmp_path / "checkpoint-1.ckpt"
    path = convert(source, tmp_path / "x.safetensors", dtype=dtype)
    assert {key for key in load_file(path) if not key.endswith("_scale")} == set(weights)
    assert recognize(open_checkpoint(path)).kind == kind


def test_what_comfyui_saved_inside_a_text_encoder_stays_in_it(tmp_path, caplog):
    part = ROOT / "magihuman_core/demo/text_encoder"
    long = " " * 9_000_000  # T5Gemma's has 34 million characters
    texts = {TOKENIZER: (part / "tokenizer.json").read_text() + long, CONFIG: (part / "config.json").read_text()}
    stored = {f"cond_stage_model.transformer.{key}": tensor for key, tensor in open_checkpoint(part).items()}
    saved = tmp_path / "saved.safetensors"
    save_file(stored | {f"cond_stage_model.{key}": tensor for key, tensor in text_tensors(texts).items()}, saved)
    (tmp_path / "config.json").write_text('{"model_type": "another"}')  # of whatever lies beside it
    (tmp_path / "out").mkdir()
    once = convert(saved, tmp_path / "out/once.safetensors", dtype="int8")
    for path in (saved, once, convert(once, tmp_path / "out/twice.safetensors", dtype="bf16")):
        encoder = load_text_encoder(path)
        assert encoder.tokenizer.get_vocab() == load_text_encoder(part).tokenizer.get_vocab()
        assert encoder.config == load_text_encoder(part).config
        assert "its tokenizer is inside" in describe(path)
    assert "too long" not in caplog.text


def test_what_a_file_says_of_itself_is_kept_but_not_how_it_was_stored(official, tmp_path, caplog):
    name = "diffusion_model.block.layers.1.mlp.down_proj"
    lora = {f"{name}.lora_A.weight": torch.ones(2, 128), f"{name}.lora_B.weight": torch.ones(64, 2)}
    told = {"modelspec.license": "apache-2.0", "ss_tag_frequency": '{"a": 1}', "trigger_phrase": "mynah",
            "notice": "mind this"}
    stale = {"sshs_model_hash": "0", "modelspec.hash_sha256": "0", "quantization_map": "{}", "total_size": "1",
             "role": "x", "lora_adapter_metadata": '{"transformer.lora_alpha": 4}', "book": "x" * 9_000_000}
    for weights in (lora, official):
        save_file(weights, tmp_path / "distill.safetensors", {**told, **stale})
        for dtype in ("bf16", None):
            texts = metadata(convert(tmp_path / "distill.safetensors", tmp_path / "x.safetensors", dtype=dtype))
            kind = {"kind": "lora"} if weights is lora else {"kind": "network", "role": "distilled"}
            assert set(json.loads(texts.pop("sha256"))) == set(open_checkpoint(tmp_path / "x.safetensors", raw=True))
            assert texts == told | kind | {"format": "pt", "version": "1", "source": "distill.safetensors"}
        assert "'book' is too long and is left out" in caplog.text


def test_scales_of_a_latent_are_never_rounded(tmp_path):
    weights = small_model("video_vae")
    weights["latent_mean"] = weights["latent_std"] = torch.full((48,), 0.3)
    stored = load_file(convert(weights, tmp_path / "vae.safetensors", dtype="fp16"))
    assert stored["latent_mean"].dtype == torch.float32
    assert stored["conv1.weight"].dtype == torch.float16


def test_the_command_line_converts_and_explains(official, tmp_path, capsys):
    save_file(official, tmp_path / "distill.safetensors")
    target = tmp_path / "small.safetensors"
    assert main(["convert", str(tmp_path / "distill.safetensors"), str(target), "--dtype", "fp8"]) == 0
    output = capsys.readouterr()
    assert output.out == f"{target}: {target.stat().st_size / 1000:.0f} kB written\n"
    assert "distill.safetensors: is written as distilled (" in output.err
    assert main(["inspect", str(target)]) == 0
    assert "a MagiHuman network (distilled" in capsys.readouterr().out
    assert main(["convert", str(target), str(tmp_path / "x.safetensors"), "--role", "base"]) == 0
    assert "is written as" not in capsys.readouterr().err, "it was said"
    assert metadata(tmp_path / "x.safetensors")["role"] == "base"
    assert main(["convert", str(target), str(tmp_path / "x.pth")]) == 2
    assert "Give a name that ends in .safetensors" in capsys.readouterr().err


@pytest.mark.parametrize(("kind", "target", "options", "message"), [
    ("network", "x.safetensors", {"dtype": "int4"}, "dtype is 'int4', expected one of bf16"),
    ("network", "x.safetensors", {"layout": "x"}, "layout is 'x'"),
    ("network", "x.safetensors", {"role": "best"}, "role is 'best'"),
    ("network", "x.safetensors", {"dtype": "fp8", "layout": "official"}, "Use layout split"),
    ("turbo_vae", "x.safetensors", {"layout": "split"}, "layout and role are for networks"),
    ("turbo_vae", "x.safetensors", {"dtype": "fp8"}, "fp8 is for networks"),
    ("network", "x.ckpt", {}, r"ends in \.safetensors"),
    ("network", "none/x.safetensors", {}, "folder does not exist"),
])  # fmt: skip
def test_wrong_options_and_targets_are_named(kind, target, options, message, tmp_path):
    with pytest.raises(InputError, match=message):
        convert(small_model(kind), tmp_path / target, **options)


def test_what_safetensors_cannot_hold_is_named(official, tmp_path):
    with pytest.raises(CheckpointError, match=r"'adapter\.freqs' holds complex64"):
        convert(official | {"adapter.freqs": torch.ones(2, dtype=torch.complex64)}, tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_wrong_sources_are_named(official, tmp_path):
    with pytest.raises(CheckpointError, match="nothing that MagiHuman uses"):
        convert({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
    save_file(official, tmp_path / "x.safetensors")
    for source in (tmp_path / "x.safetensors", tmp_path):
        with pytest.raises(InputError, match="is the source itself"):
            convert(source, tmp_path / "x.safetensors", dtype="bf16")


@pytest.mark.parametrize(("dtype", "value", "message"), [
    *((dtype, torch.nan, r"layers\.1\.mlp\.down_proj.*not numbers") for dtype in (None, "bf16", "fp8", "int8")),
    ("fp16", 1e9, "infinite as float16"),
])  # fmt: skip
def test_values_that_are_not_finite_are_not_written(dtype, value, message, official, tmp_path):
    official["block.layers.1.mlp.down_proj.weight"][3, 5] = value
    with pytest.raises(CheckpointError, match=message):
        convert(official, tmp_path / "x.safetensors", dtype=dtype)
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_leaves_nothing_and_keeps_the_old_file(official, tmp_path):
    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            assert len(list(tmp_path.iterdir())) == 2  # the old file and a temporary one
            raise KeyboardInterrupt

    target = tmp_path / "x.safetensors"
    target.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        convert(official, target, progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]
    assert target.read_bytes() == b"old"
    steps = []
    convert(official, target, progress=lambda done, total: steps.append((done, total)))
    assert steps == sorted(steps)
    assert steps[-1] == (target.stat().st_size,) * 2


def test_a_full_disk_is_named_and_leaves_nothing(official, tmp_path):
    refused = pytest.raises(CheckpointError, match=r"x\.safetensors: cannot be written \(File too large\)")
    with full_disk(300_000), refused:
        convert(official, tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_model_larger_than_the_disk_is_refused_at_once(tmp_path):
    vast = InMemory(torch.empty(2**30, 2**20, device="meta"))
    with pytest.raises(CheckpointError, match=r"cannot be written.*4503599\.6 GB are needed"):
        write_checkpoint(tmp_path / "x.safetensors", {"a": vast})
    assert list(tmp_path.iterdir()) == []


def test_what_is_written_is_what_safetensors_reads(tmp_path):
    """All dtypes, no elements, no dimensions; every tensor aligned to its own size."""
    tensors = {
        "scalar": torch.tensor(3.5), "none": torch.zeros(0, 4), "bytes": torch.arange(7, dtype=torch.uint8),
        "bool": torch.tensor([True, False, True]), "half": torch.randn(3, 3).half(), "long": torch.arange(5),
        "fp8": torch.randn(5).to(torch.float8_e4m3fn), "view": torch.randn(6, 4)[1:3],
    }  # fmt: skip
    path = write_checkpoint(tmp_path / "x.safetensors", open_checkpoint(tensors, raw=True).entries, {"note": "a"})
    read = load_file(path)
    assert set(read) == set(tensors)
    for key, tensor in tensors.items():
        assert read[key].dtype == tensor.dtype
        assert torch.equal(read[key].view(torch.uint8) if key == "fp8" else read[key],
                           tensor.view(torch.uint8) if key == "fp8" else tensor)  # fmt: skip
    mapped = open_checkpoint(path, raw=True, mapped=True)
    assert all(mapped[key].data_ptr() % tensors[key].dtype.itemsize == 0 for key in tensors)
    texts = metadata(path)
    assert set(json.loads(texts.pop("sha256"))) == set(tensors)
    assert texts == {"format": "pt", "note": "a"}
