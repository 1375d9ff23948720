"""Weight files as they lie on people's disks: half downloaded, of other formats, beside all sorts of things."""

import hashlib
import json
import os
import struct
import time
import zipfile

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from magihuman_core.checkpoint.header import MAX_HEADER, MAX_TENSORS
from magihuman_core.checkpoint.open import open_stored
from magihuman_core.cli.program import main
from magihuman_core.errors import CheckpointError
from magihuman_core.loading.folder import DEMO, find_models
from magihuman_core.loading.vae import load_turbo_vae
from magihuman_core.tools.convert import convert
from magihuman_core.tools.inspect import describe
from magihuman_core.vae.turbo_config import TurboVAEConfig

SOURCE = next((DEMO / "audio_vae").glob("*.safetensors"))


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    return convert(SOURCE, tmp_path_factory.mktemp("converted") / "audio.safetensors")


@pytest.fixture
def copy(converted, tmp_path):
    path = tmp_path / "audio.safetensors"
    path.write_bytes(converted.read_bytes())
    return path


def problems(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("  problem")]


def test_convert_writes_the_hash_of_every_tensor(converted):
    with safe_open(converted, "pt") as file:
        hashes = json.loads(file.metadata()["sha256"])
        assert sorted(hashes) == sorted(file.keys())
        for name in file.keys():  # noqa: SIM118
            data = file.get_tensor(name).contiguous().view(-1).view(torch.uint8).numpy()
            assert hashlib.sha256(data.tobytes()).hexdigest() == hashes[name]
    said = describe(converted, read_all=True)
    assert not problems(said) and f"SHA-256 of {len(hashes)} of {len(hashes)} tensors" in said


def test_every_flipped_bit_is_found(copy, capsys):
    """60 of 60: none of them makes a value that is not finite, so nothing but the hash can tell."""
    data = bytearray(copy.read_bytes())
    begin = 8 + int.from_bytes(data[:8], "little")
    generator = torch.Generator().manual_seed(0)
    tensors = {key: entry["data_offsets"] for key, entry in json.loads(data[8:begin]).items() if "dtype" in entry}
    rounds: list[dict[str, int]] = []  # {tensor: place}: one bit of each
    for place in torch.randint(begin, len(data), (60,), generator=generator).tolist():
        [tensor] = (key for key, (first, last) in tensors.items() if first <= place - begin < last)
        if all(tensor in places for places in rounds):
            rounds.append({})
        next(places for places in rounds if tensor not in places)[tensor] = place
    for places in rounds:
        for place in places.values():
            data[place] ^= 1
        copy.write_bytes(data)
        [problem] = problems(describe(copy, read_all=True))
        assert f" {len(places)} tensors are not as they were written" in problem
        for place in places.values():
            data[place] ^= 1
    copy.write_bytes(data)
    assert main(["inspect", str(copy), "--read-all"]) == 0
    capsys.readouterr()


@pytest.mark.parametrize("dtype", ["fp16", "int8", "fp8"])
def test_hashes_are_of_what_stands_in_the_file(tmp_path, dtype):
    source = next((DEMO / "audio_vae" if dtype == "fp16" else DEMO / "text_encoder").glob("*.safetensors"))
    path = convert(source, tmp_path / "a.safetensors", dtype=dtype)
    assert not problems(describe(path, read_all=True))


def test_a_file_that_is_zero_in_its_second_half(copy, capsys):
    data = copy.read_bytes()
    copy.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    said = "\n".join(problems(describe(copy, read_all=True)))
    assert "not as they were written" in said and "zero throughout ('" in said
    assert main(["inspect", str(copy), "--read-all"]) == 1
    capsys.readouterr()
    tensors = load_file(SOURCE)  # also where there are no hashes
    first = next(key for key, value in tensors.items() if value.ndim > 1)
    save_file({**tensors, first: torch.zeros_like(tensors[first])}, copy)
    assert "1 tensors are zero throughout" in describe(copy, read_all=True)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("mapped", [False, True])
def test_values_that_are_no_numbers_are_seen_while_they_are_read(tmp_path, bad, dtype, mapped):
    values = torch.zeros(3_000_000)
    values[2_500_000] = bad
    if dtype == torch.float8_e4m3fn and bad == float("inf"):
        pytest.skip("this dtype has no infinity")
    save_file({"a.weight": values.to(dtype), "b": torch.ones(3)}, tmp_path / "a.safetensors")
    opened = open_stored(tmp_path / "a.safetensors", mapped=mapped)
    assert opened["b"].sum() == 3
    for wanted in (None, torch.float64) if not mapped else (torch.float64,):
        with pytest.raises(CheckpointError, match=r"a\.safetensors: 'a\.weight' holds values that are not numbers"):
            opened.read("a.weight", wanted)


@pytest.mark.parametrize("ending", [".part", ".incomplete", ".crdownload", ".aria2"])
def test_a_download_that_is_not_finished(copy, ending, caplog):
    renamed = copy.with_name(copy.name + ending)
    renamed.write_bytes(copy.read_bytes()[:1000])
    assert "download that is not finished" in problems(describe(renamed))[0]
    if ending == ".aria2":
        with pytest.raises(CheckpointError, match="not finished"):
            open_stored(copy)
    else:
        open_stored(copy)
        assert "lies beside it" in caplog.text


def minimal(**tensors: torch.Tensor):
    return {key.replace("__", "."): value.clone() for key, value in tensors.items()}


H = torch.zeros(4, 4)
FORMATS = {
    "SVDQuant": minimal(block__layers__0__attention__linear_q__qweight=H.char(),
                        block__layers__0__attention__linear_q__wscales=H,
                        block__layers__0__attention__linear_q__lora_down=H,
                        block__layers__0__attention__linear_q__lora_up=H),
    "weight_scale_inv": minimal(block__layers__0__attention__linear_q__weight=H.to(torch.float8_e4m3fn),
                                block__layers__0__attention__linear_q__weight_scale_inv=H),
    "NF4": {"block.layers.0.attention.linear_q.weight": H.byte(),
            "block.layers.0.attention.linear_q.weight.absmax": H.clone(),
            "block.layers.0.attention.linear_q.weight.quant_state.bitsandbytes__nf4": H.byte()},
    "GPTQ": minimal(a__qweight=H.int(), a__qzeros=H.int(), a__scales=H),
    "LoKr": minimal(diffusion_model__block__layers__0__mlp__up_gate_proj__lokr_w1=H),
    "LoHa": minimal(diffusion_model__block__layers__0__mlp__up_gate_proj__hada_w1_a=H),
    "OFT": minimal(diffusion_model__block__layers__0__mlp__up_gate_proj__oft_blocks=H),
}


@pytest.mark.parametrize("name", FORMATS)
def test_other_formats_are_named_with_what_to_do(tmp_path, name):
    save_file(FORMATS[name], tmp_path / "distill.safetensors")
    said = describe(tmp_path / "distill.safetensors")
    first = next(line for line in said.splitlines() if line.startswith("  is "))
    assert name in first and ("not read here" in first or "ComfyUI's own LoRA loader" in first)
    if "not read here" in first:
        found = find_models(tmp_path)
        assert not found and len(found.problems) == 1


def test_pickles_of_other_packs_are_told_kindly(tmp_path):
    (tmp_path / "base_int8.pt").write_bytes(b"PK\x03\x04" + bytes(100))
    [problem] = problems(describe(tmp_path / "base_int8.pt"))
    assert "can run code" in problem and "convert --dtype int8" in problem


def test_what_lies_about_in_folders_stops_nothing(tmp_path, converted, capsys):
    folder = tmp_path / "models"
    (folder / "sub").mkdir(parents=True)
    (folder / "AUDIO.SAFETENSORS").write_bytes(converted.read_bytes())
    for name, content in (("._AUDIO.safetensors", b"\0\5\x16\7"), (".DS_Store", b"\0\0\0\1Bud1"),
                          ("Thumbs.db", b"\xd0"), ("sub/._x.safetensors", b"\0"), ("desktop.ini", b"[x]")):
        (folder / name).write_bytes(content)
    os.mkfifo(folder / "pipe.safetensors")
    (folder / "gone.safetensors").symlink_to("nowhere")
    (folder / "loop.safetensors").symlink_to("loop.safetensors")
    save_file({"block.layers.0.attention.linear_q.weight": H.to(torch.float8_e4m3fn),
               "block.layers.0.attention.linear_q.weight_scale": torch.ones(0)}, folder / "scale_distill.safetensors")
    start = time.monotonic()
    models = find_models(folder)
    assert models["audio_vae"] == folder / "AUDIO.SAFETENSORS"
    said = describe(folder)
    assert time.monotonic() - start < 5
    assert "an Oobleck audio VAE" in said and "._" not in said and "pipe" not in said
    assert main(["inspect", str(folder)]) == 1
    capsys.readouterr()


def test_a_fault_in_one_file_does_not_spoil_a_folder(tmp_path, converted, monkeypatch):
    import magihuman_core.loading.folder as folder
    import magihuman_core.tools.inspect as inspect

    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors").write_bytes(converted.read_bytes())

    def faulty(path, *arguments, open_checkpoint=folder.open_checkpoint, **options):
        if "a.safetensors" in str(path):
            raise ZeroDivisionError("division by zero")
        return open_checkpoint(path, *arguments, **options)

    monkeypatch.setattr(folder, "open_checkpoint", faulty)
    monkeypatch.setattr(inspect, "open_checkpoint", faulty)
    assert find_models(tmp_path)["audio_vae"] == tmp_path / "b.safetensors"
    said = describe(tmp_path)
    assert "internal error: ZeroDivisionError" in said and "an Oobleck audio VAE" in said


@pytest.mark.parametrize("kind", ["tensors", "lists", "a long name"])
def test_large_headers_cost_nothing(tmp_path, kind):
    import resource

    if kind == "tensors":
        entry = b'"%08d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},'
        text = b"{" + b"".join(entry % number for number in range(MAX_TENSORS + 1))[:-1] + b"}"
    elif kind == "lists":
        text = b'{"a":[' + b"[]," * (MAX_HEADER // 3) + b"[]]}"
    else:
        text = json.dumps({"a" * 100_000: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(CheckpointError, match=r"a\.safetensors: (names|has a header|is damaged)"):
        open_stored(tmp_path / "a.safetensors")
    assert time.monotonic() - start < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


@pytest.mark.parametrize("member", ["archive/data.pkl", "archive/data/0"])
def test_an_archive_that_grows_is_not_opened(tmp_path, member):
    import resource

    path = tmp_path / "turbo.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open(member, "w", force_zip64=True) as file:
            for _ in range(64):
                file.write(bytes(4 << 20))
        archive.writestr("archive/version", "3\n")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for read in (lambda: load_turbo_vae(path), lambda: describe(path), lambda: find_models(tmp_path)):
        try:
            found = read()
        except CheckpointError as error:
            found = str(error)
        assert "compressed" in str(found) or not found
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


@pytest.mark.parametrize("change", [
    {"decoder_layers_per_block": [10**7, 2, 2, 3, 3]}, {"decoder_block_out_channels": [10**9, 128, 256, 512]},
    {"step_size": 10**9}, {"decoder_dw_kernel_size": 10**9 + 1}])
def test_a_configuration_of_more_layers_than_there_are(change):
    with pytest.raises(CheckpointError, match="more layers or channels"):
        TurboVAEConfig.from_mapping(change)


def test_a_zero_byte_in_a_name():
    for read in (open_stored, describe):
        with pytest.raises(CheckpointError):
            read("a\0.safetensors")
