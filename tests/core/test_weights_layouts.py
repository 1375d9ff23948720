"""The network in every layout met in the wild: the same outputs as from the official file."""

import json
import logging

import pytest
import torch
from safetensors.torch import save_file

from magihuman_core import load_dit
from magihuman_core.checkpoint.quantized import as_quantized
from magihuman_core.errors import CheckpointError
from magihuman_core.tools.inspect import describe
from magihuman_core.weights.open import open_checkpoint
from magihuman_core.weights.recognize import recognize

from .golden import outputs, relative, small_model

logger = logging.getLogger(__name__)  # pytest --log-cli-level=INFO shows the errors

HEADS, HEAD_DIM = 2, 32
LINEARS = ("linear_qkv", "linear_proj", "up_gate_proj", "down_proj")


def is_linear(key: str) -> bool:
    return key.startswith("block.") and key.endswith(tuple(f".{name}.weight" for name in LINEARS))


def rewritten(tensors: dict, change, chosen=is_linear) -> dict:
    """The tensors, with change(stem, weight) in the place of those that are chosen."""
    result = {}
    for key, tensor in tensors.items():
        result |= change(key.removesuffix(".weight"), tensor) if chosen(key) else {key: tensor}
    return result


def split(official: dict, heads=HEADS, kv_heads=1, head_dim=HEAD_DIM, sandwich=(0, 2)) -> dict:
    """Split experts, written down here once more: q, k, v, g and the modalities apart."""
    rows = {"q": heads * head_dim, "k": kv_heads * head_dim, "v": kv_heads * head_dim, "g": heads}

    def change(stem, tensor):
        modalities = ("_video", "_audio", "_text") if int(stem.split(".")[2]) in sandwich else ("",)
        result = {}
        for suffix, copy in zip(modalities, tensor.chunk(len(modalities)), strict=True):
            parts = zip(rows, copy.split(list(rows.values())), strict=True) if stem.endswith("qkv") else [("", copy)]
            for letter, part in parts:
                result[f"{stem.removesuffix('qkv')}{letter}{suffix}.weight"] = part.clone()
        return result

    return rewritten(official, change)


def own(official: dict) -> dict:
    """Our own names, as ComfyUI's save nodes write them; taken from the module itself."""
    return load_dit(official).state_dict()


def whole(official: dict) -> dict:
    return prefixed(own(official), "model.diffusion_model.") | {
        "cond_stage_model.transformer.encoder.norm.weight": torch.ones(4),
        "cond_stage_model.tokenizer_json": torch.zeros(3, dtype=torch.uint8),
        "first_stage_model.decoder.head.0.gamma": torch.ones(4)}


def quanto(official: dict) -> dict:
    def change(stem, tensor):
        scale = (tensor.float().abs().amax(1, keepdim=True) / 127).clamp_min(1e-8)
        return {f"{stem}.weight._data": (tensor.float() / scale).round().clamp(-127, 127).to(torch.int8),
                f"{stem}.weight._scale": scale.bfloat16(),
                f"{stem}.input_scale": torch.ones(()), f"{stem}.output_scale": torch.ones(())}

    return rewritten(split(official), change, lambda key: key.startswith("block.") and "norm" not in key)


def fp8(official: dict, scale_name: str | None, dtype=torch.float8_e4m3fn, groups: int = 0) -> dict:
    """scale_name: of {key} or {stem}. groups: 0 a scalar, 1 the same as [1], more: one per group of rows."""
    def change(stem, tensor):
        parts = tensor.float().chunk(max(1, groups))
        scales = [part.abs().max() / torch.finfo(dtype).max if scale_name else torch.ones(()) for part in parts]
        weight = torch.cat([part / scale for part, scale in zip(parts, scales, strict=True)]).to(dtype)
        stored = {f"{stem}.weight": weight}
        if scale_name:
            name = scale_name.format(key=f"{stem}.weight", stem=stem)
            stored[name] = torch.stack(scales) if groups else scales[0]
        return stored

    return rewritten(official, change)


def fp8_split(official: dict) -> dict:
    def change(stem, tensor):
        scale = tensor.float().abs().max() / 448
        return {f"{stem}.weight": (tensor.float() / scale).to(torch.float8_e4m3fn), f"{stem}.weight_scale": scale}

    return rewritten(split(official), change, lambda key: key.startswith("block.") and "norm" not in key
                     and ".linear_g" not in key)


def comfy(official: dict, *, as_bytes: bool = False) -> dict:
    def note(stem, weight):
        text = json.dumps({"format": "float8_e4m3fn"}).encode()
        return {f"{stem}.weight": weight.view(torch.uint8) if as_bytes else weight,
                f"{stem}.comfy_quant": torch.tensor(list(text), dtype=torch.uint8)}

    return rewritten(fp8(official, "{stem}.weight_scale"), note)


def comfy_int8(official: dict) -> dict:
    def change(stem, tensor):
        scale = tensor.float().abs().amax(1, keepdim=True) / 127
        note = torch.tensor(list(b'{"format": "int8_tensorwise"}'), dtype=torch.uint8)
        return {f"{stem}.weight": (tensor.float() / scale).round().to(torch.int8), f"{stem}.weight_scale": scale,
                f"{stem}.comfy_quant": note}

    return rewritten(official, change)


def old_comfy(official: dict) -> dict:
    stored = rewritten(fp8(official, "{stem}.scale_weight"), lambda stem, weight: {
        f"{stem}.weight": weight, f"{stem}.scale_input": torch.ones(())})
    return prefixed(stored | {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}, "model.diffusion_model.")


def prefixed(official: dict, prefix: str) -> dict:
    return {prefix + key: value for key, value in official.items()}


FP8 = "fp8 (e4m3), with scales"
COMFY = "ComfyUI quantized layers"
# name -> (how to write it, relative error of outputs allowed, layout in words, quantization in words)
LAYOUTS = {
    "official": (dict, 0, "official", None),
    "split": (split, 0, "split experts", None),
    "model.diffusion_model.": (lambda sd: prefixed(sd, "model.diffusion_model."), 0, "official", None),
    "diffusion_model.": (lambda sd: prefixed(sd, "diffusion_model."), 0, "official", None),
    "model.": (lambda sd: prefixed(sd, "model."), 0, "official", None),
    "our own": (own, 0, "our own names", None),
    "a checkpoint with text encoder and VAE": (whole, 0, "our own names", None),
    "split with prefix": (lambda sd: prefixed(split(sd), "diffusion_model."), 0, "split experts", None),
    "quanto": (quanto, 3e-2, "split experts", "quanto int8, a scale per row"),
    "fp8 .__fp8_scale": (lambda sd: fp8(sd, "{key}.__fp8_scale"), 1e-1, "official", FP8),
    "fp8 __fp8_scale": (lambda sd: fp8(sd, "{key}__fp8_scale"), 1e-1, "official", FP8),
    "fp8 weight_scale": (lambda sd: fp8(sd, "{stem}.weight_scale"), 1e-1, "official", FP8),
    "fp8 scale_weight": (lambda sd: fp8(sd, "{stem}.scale_weight"), 1e-1, "official", FP8),
    "fp8 weight.scale": (lambda sd: fp8(sd, "{key}.scale"), 1e-1, "official", FP8),
    "fp8 scale as [1]": (lambda sd: fp8(sd, "{stem}.weight_scale", groups=1), 1e-1, "official", FP8),
    "fp8 split": (fp8_split, 1e-1, "split experts", FP8),
    "fp8 without scales": (lambda sd: fp8(sd, None), 1e-1, "official", "fp8 (e4m3), without scales"),
    "e5m2": (lambda sd: fp8(sd, "{stem}.weight_scale", torch.float8_e5m2), 2e-1, "official",
             "fp8 (e5m2), with scales"),
    "comfy_quant": (comfy, 1e-1, "official", COMFY),
    "comfy_quant as bytes": (lambda sd: comfy(sd, as_bytes=True), 1e-1, "official", COMFY),
    "comfy_quant int8": (comfy_int8, 3e-2, "official", COMFY),
    "scaled_fp8 with prefix": (old_comfy, 1e-1, "official", FP8),
}  # fmt: skip


def computed(source) -> torch.Tensor:
    return outputs(load_dit(source, dtype=torch.float32))


def assert_within_rounding(got: torch.Tensor, want: torch.Tensor, name: str) -> None:
    """Each value lies within half a step of its format, a scale taken from the largest value around it."""
    if "int8" in name or name == "quanto":
        allowed = want.abs().amax(1, keepdim=True) * 0.5 / 127 + want.abs() * 2**-7  # and bf16 of scale and result
    elif name == "fp8 without scales":
        allowed = want.abs() * 2**-4 + 2**-10
    else:
        bits = 2 if name == "e5m2" else 3
        allowed = want.abs() * (2.0 ** -(bits + 1) + 2**-8) + want.abs().max() * 2**-18
    assert bool(((got - want).abs() <= allowed).all())


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_outputs_of_the_official_one(name, official, tmp_path):
    write, tolerance, layout, quantization = LAYOUTS[name]
    stored = {key: value.contiguous() for key, value in write(official).items()}
    path = tmp_path / "net.safetensors"
    save_file(stored, path)
    checkpoint = open_checkpoint(path, "network")
    assert set(checkpoint) == set(official)
    for key, tensor in official.items():
        assert checkpoint.shape(key) == tuple(tensor.shape)
        if not is_linear(key) or tolerance == 0:
            assert torch.equal(checkpoint[key], tensor)
        else:
            assert_within_rounding(checkpoint[key].float(), tensor.float(), name)
    error = relative(computed(path), computed(official))
    logger.info("%s: relative error of the outputs %.1e", name, error)
    assert error <= tolerance
    if tolerance:
        assert error > 1e-5  # it was quantized indeed
        # Apart from rounding nothing is lost: weights that the format can hold come back.
        kept = {key: checkpoint.read(key, torch.float32) for key in official}
        assert relative(computed(write(kept)), computed(kept)) <= 1e-2
    found = recognize(open_checkpoint(path, raw=True))
    assert (found.kind, found.layout, found.quantization) == ("network", layout, quantization)
    assert "problem" not in describe(path)


def table_of(stored: dict, prefix: str = "", **note) -> dict[str, str]:
    """Metadata with ComfyUI's table of the linear layers among these."""
    layers = {prefix + key.removesuffix(".weight"): note for key in stored if is_linear(key)}
    return {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}


PREFIXES = ("", "diffusion_model.", "model.diffusion_model.")


@pytest.mark.parametrize("in_table", PREFIXES)
@pytest.mark.parametrize("in_keys", PREFIXES)
def test_quantization_named_in_the_header_only(in_keys, in_table, official, tmp_path):
    """With the prefix of a whole checkpoint or without: ComfyUI's loader takes it off in its own way."""
    stored = fp8(official, "{stem}.weight_scale")
    stored = {key: value.view(torch.uint8) if is_linear(key) else value for key, value in stored.items()}
    texts = table_of(stored, in_table, format="float8_e4m3fn")
    save_file(prefixed(stored, in_keys), tmp_path / "net.safetensors", metadata=texts)
    assert relative(computed(tmp_path / "net.safetensors"), computed(official)) <= 1e-1
    # Rotated weights have the same dtype and scales as others: the table alone tells them.
    rotated = {key: value for key, value in comfy_int8(official).items() if not key.endswith(".comfy_quant")}
    texts = table_of(rotated, in_table, format="int8_tensorwise", params={"convrot": True})
    save_file(prefixed(rotated, in_keys), tmp_path / "net.safetensors", metadata=texts)
    with pytest.raises(CheckpointError, match="'convrot' is not read here"):
        open_checkpoint(tmp_path / "net.safetensors", "network")


def test_the_tables_of_all_shards_count(official, tmp_path):
    stored = {key: value for key, value in comfy_int8(official).items() if not key.endswith(".comfy_quant")}
    first = {key: value for key, value in stored.items() if ".layers.0." in key}
    second = {key: value for key, value in stored.items() if key not in first}
    save_file(first, tmp_path / "model-00001-of-00002.safetensors", table_of(first, format="int8_tensorwise"))
    last = tmp_path / "model-00002-of-00002.safetensors"
    save_file(second, last, table_of(second, format="int8_tensorwise"))
    assert relative(computed(tmp_path), computed(official)) <= 3e-2
    save_file(second, last, table_of(second, format="int8_tensorwise", convrot=True))
    with pytest.raises(CheckpointError, match="'convrot' is not read here"):
        open_checkpoint(tmp_path, "network")
    save_file(second, last, {"_quantization_metadata": "{"})
    with pytest.raises(CheckpointError, match="table of quantized layers is damaged"):
        open_checkpoint(tmp_path, "network")


def test_a_table_that_names_other_layers_than_the_quantized_ones_is_refused(official, tmp_path):
    stored = {key: value for key, value in comfy_int8(official).items() if not key.endswith(".comfy_quant")}
    path = tmp_path / "net.safetensors"
    save_file(stored, path, table_of({"block.layers.9.linear_qkv.weight": 0}, format="int8_tensorwise"))
    with pytest.raises(CheckpointError, match=r"does not name it, but 'block\.layers\.9\.linear_qkv', which is not"):
        open_checkpoint(path, "network")
    layers = json.loads(table_of(stored, format="int8_tensorwise")["_quantization_metadata"])["layers"]
    layers["another.part"] = {"format": "nvfp4"}  # such as one that was taken out
    save_file(stored, path, {"_quantization_metadata": json.dumps({"layers": layers})})
    assert relative(computed(path), computed(official)) <= 3e-2


def test_a_scale_for_each_modality_of_a_stacked_tensor(official):
    key = "block.layers.0.mlp.down_proj.weight"
    uneven = torch.cat([part * 30**i for i, part in enumerate(official[key].chunk(3))])
    read = open_checkpoint(fp8({key: uneven}, "{stem}.weight_scale", groups=3))[key]
    for got, want in zip(read.chunk(3), uneven.chunk(3), strict=True):
        assert relative(got, want) <= 4e-2


def test_data_and_scale_stay_at_hand_undecoded(official):
    """The seam for computing with quantized weights: also behind joined and cut rows."""
    key = "block.layers.0.attention.linear_qkv.weight"
    height, gates = 390 // 3, HEADS
    for stored in (quanto(official), fp8(official, "{stem}.weight_scale"), fp8_split(official)):
        checkpoint = open_checkpoint(stored, "network")
        part = as_quantized(checkpoint.entries[key].rows(height, 2 * height - gates))  # audio's q, k, v
        assert part.data.dtype in (torch.int8, torch.float8_e4m3fn)
        scale = part.scale.read()
        decoded = part.data.read().float() * (scale[:, None] if scale.dim() else scale)
        expected = checkpoint.read(key, torch.float32)[height : 2 * height - gates]
        assert torch.allclose(decoded, expected, rtol=1e-6)
    for stored in (fp8_split(official), official):  # with the bf16 gates, and all in bf16
        assert as_quantized(open_checkpoint(stored, "network").entries[key]) is None


def without(stored: dict, key: str) -> dict:
    assert key in stored
    return {k: v for k, v in stored.items() if k != key}


PROJ = "block.layers.0.attention.linear_proj"
BROKEN = [  # how it is made of the official one, words of the message
    (lambda w: without(split(w), PROJ[:-4] + "k_audio.weight"), r"qkv\.weight' cannot .* the part audio k is missing"),
    (lambda w: without(split(w), PROJ + "_text.weight"), r"proj\.weight' cannot .* the part text is missing"),
    (lambda w: split(w) | w, "both split and joined"),
    (lambda w: split(w) | {PROJ[:-4] + "q.weight": torch.ones(64, 64)}, r"qkv.* the part q has no place beside"),
    (lambda w: own(w) | {PROJ[:-4] + "k_audio.weight": torch.ones(64, 64)}, r"the part audio k has no place beside"),
    (lambda w: own(w) | {PROJ + "_text.weight": torch.ones(64, 64)}, r"linear_proj_text\.weight' is there under two"),
    (lambda w: split(w) | {PROJ + "_text.weight": torch.zeros(64, 63)}, "different widths"),
    (lambda w: without(quanto(w), PROJ + "_text.weight._scale"), r"linear_proj_text\.weight\._data.*with a scale"),
    (lambda w: fp8(w, "{key}.scale") | {PROJ + ".weight.scale": torch.ones(7)}, r"scales of shape \[7\] for 192 rows"),
    (lambda w: w | {PROJ + ".weight": torch.ones(192, 64, dtype=torch.int8)}, "int8 weights need a scale"),
]


@pytest.mark.parametrize(("write", "message"), BROKEN)
def test_incomplete_and_unknown_layouts_are_named(write, message, official):
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(write(official), "network")


@pytest.mark.parametrize(
    ("note", "message"),
    [(b'{"format": "nvfp4"}', "'nvfp4' is not read here"), (b"{", "description is damaged"),
     (b'{"format": "int8_tensorwise", "convrot": true}', "'convrot' is not read"), (b"[1]", "is damaged"),
     (b'{"format": "int8_tensorwise"}', "stored as float8_e4m3fn where int8_tensorwise"), (b"\xff", "damaged"),
     (b'{"format": "float8_e4m3fn"}' + b" " * 5000, "description is damaged")],
)  # fmt: skip
def test_comfy_formats_that_are_not_known_are_named(note, message, official):
    stored = comfy(official)
    stored["block.layers.1.mlp.down_proj.comfy_quant"] = torch.tensor(list(note), dtype=torch.uint8)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(stored, "network")


def test_the_text_encoder_in_int8_and_fp8_is_decoded_too(tmp_path):
    weights = small_model("text_encoder")
    key = next(key for key in weights if key.endswith("q_proj.weight"))
    scale = weights[key].abs().amax(1, keepdim=True) / 127
    stored = {k: v for k, v in weights.items() if k != key}
    stored[key + "._data"] = (weights[key] / scale).round().to(torch.int8)
    stored[key + "._scale"] = scale.bfloat16()
    save_file(stored, tmp_path / "te.safetensors")
    checkpoint = open_checkpoint(tmp_path / "te.safetensors", "text_encoder")
    assert set(checkpoint) == set(weights)
    assert relative(checkpoint[key], weights[key]) <= 1e-2
