"""Damaged and hostile weight files: one sentence each, with the file and the remedy, and nothing else."""

import json
import os
import struct
import tempfile
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from magihuman_core.checkpoint.assign import assign_weights
from magihuman_core.checkpoint.fingerprint import fingerprint
from magihuman_core.errors import CheckpointError, InputError
from magihuman_core.loading.folder import find_models
from magihuman_core.loading.text_encoder import load_tokenizer
from magihuman_core.tools.convert import convert
from magihuman_core.tools.inspect import describe
from magihuman_core.weights.open import open_checkpoint

from .golden import safetensors_bytes, write_index

GOOD = {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
        "b": {"dtype": "BF16", "shape": [3], "data_offsets": [16, 22]}}  # fmt: skip

A = json.dumps(GOOD["a"]).encode()


def file_bytes(header: object, data: int = 22) -> bytes:
    return safetensors_bytes(header, bytes(data))


def changed(key: str = "b", **fields: object) -> dict:
    return {**GOOD, key: {**GOOD[key], **fields}}


DAMAGED = {
    "empty": (b"", "is empty"),
    "lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git-LFS pointer"),
    "web page": (b"\n<!DOCTYPE html><html><head><title>Log in</title>", "web page"),
    "web page, bare": (b"<html>", "web page"),
    "text": (b"No such model.\nPlease log in", "'No such model.'"),
    "zip pickle": (b"PK\x03\x04" + bytes(50), "pickle"),
    "old pickle": (b"\x80\x02}q\x00." + bytes(50), "pickle"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(50), "compressed"),
    "json": (b'{"error": "not found"}', "JSON"),
    "noise": (bytes(range(256)), "not a safetensors file"),
    "only a length": (struct.pack("<Q", 100), "not a safetensors file"),
    "absurd header length": (struct.pack("<Q", 2**62) + b"{}", "not a safetensors file"),
    "header longer than the file": (struct.pack("<Q", 90_000_000) + b'{"a":', "cut off inside its header"),
    "header over 100 MB": (struct.pack("<Q", 100_000_001) + b"{" + bytes(200), "not a safetensors file"),
    "truncated": (file_bytes(GOOD, 21), "is cut off"),
    "trailing bytes": (file_bytes(GOOD, 23), "1 bytes follow"),
    "not json": (file_bytes(b"{'a': 1}"), "not valid JSON"),
    "not utf-8": (file_bytes(b'{"\xff": 1}'), "not valid JSON"),
    "deep nesting": (file_bytes(b'{"a":' + b"[" * 100_000), "not valid JSON"),
    "huge number": (file_bytes(b'{"a":' + b"1" * 100_000 + b"}"), "damaged"),
    "duplicate key": (file_bytes(b'{"a":%b,"a":%b}' % (A, A)), "'a' stands twice"),
    "entry is no object": (file_bytes({"a": 3}), "'a' has no description"),
    "no shape": (file_bytes({"a": {"dtype": "F32", "data_offsets": [0, 22]}}), "'a' has no valid shape"),
    "negative shape": (file_bytes(changed(shape=[-3])), "'b' has no valid shape"),
    "shape of booleans": (file_bytes(changed(shape=[True, 3])), "'b' has no valid shape"),
    "shape too deep": (file_bytes(changed(shape=[3] + [1] * 30)), "'b' has no valid shape"),
    "absurd shape without elements": (file_bytes(changed(shape=[0, 2**62])), "'b' has no valid shape"),
    "absurd shape": (file_bytes(changed(shape=[2**60, 2**60])), "its shape needs"),
    "unknown dtype": (file_bytes(changed(dtype="F7")), "'b' has the unknown dtype 'F7'"),
    "wrong dtype": (file_bytes(changed(dtype="F32")), "'b' has 6 bytes, its shape needs 12"),
    "one offset": (file_bytes(changed(data_offsets=[16])), "'b' has no valid place"),
    "offsets backwards": (file_bytes(changed(data_offsets=[22, 16])), "'b' has -6 bytes"),
    "overlapping": (file_bytes(changed(data_offsets=[10, 16]), 16), "'b' overlaps another tensor"),
    "hole": (file_bytes(changed(data_offsets=[20, 26]), 26), "'b' leaves a hole"),
    "hole at the start": (file_bytes({"a": {**GOOD["a"], "data_offsets": [8, 24]}}, 24), "'a' leaves a hole"),
    "metadata of numbers": (file_bytes({"__metadata__": {"a": 1}, **GOOD}), "metadata"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files_are_named_in_one_sentence(case, tmp_path):
    content, message = DAMAGED[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    text = str(caught.value)
    assert message in text
    assert text.startswith(str(path))
    assert len(text) < 400
    assert "\n" not in text


def test_the_file_that_the_table_damages_is_good(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(file_bytes(GOOD))
    assert torch.equal(open_checkpoint(path)["a"], torch.zeros(2, 2))
    path.write_bytes(file_bytes(b"{}  ", 0))  # padding by spaces is allowed, and so are no tensors
    assert dict(open_checkpoint(path)) == {}
    path.write_bytes(file_bytes({"e": {"dtype": "F32", "shape": [0, 5], "data_offsets": [0, 0]}}, 0))
    assert open_checkpoint(path)["e"].shape == (0, 5)


def test_a_header_of_512_bytes_is_not_taken_for_a_pickle(tmp_path):
    """Its length begins with the bytes 80 02, as a pickle does."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(file_bytes(json.dumps(GOOD).encode().ljust(0x280)))
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert set(open_checkpoint(path)) == {"a", "b"}


def test_missing_files_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere\.safetensors: there is no such file"):
        open_checkpoint(tmp_path / "nowhere.safetensors")
    with pytest.raises(CheckpointError, match=r"holds no \.safetensors file"):
        open_checkpoint(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "model-00001-of-00007.safetensors")
    save_file({"b": torch.zeros(1)}, tmp_path / "model-00003-of-00007.safetensors")
    with pytest.raises(CheckpointError, match=r"5 of 7 files are missing.*model-00002-of-00007\.safetensors"):
        open_checkpoint(tmp_path)
    write_index(tmp_path, {"a": "model-00001-of-00007.safetensors", "z": "model-00007-of-00007.safetensors"})
    with pytest.raises(CheckpointError, match=r"1 of 2 files are missing.*model-00007-of-00007\.safetensors"):
        open_checkpoint(tmp_path)


def test_folders_with_several_models_ask_which(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "540p_sr").mkdir()
    with pytest.raises(CheckpointError, match="holds several models: base, 540p_sr"):
        open_checkpoint(tmp_path)
    for name in ("one", "two"):
        save_file({"a": torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match=r"several weight files: one\.safetensors, two\.safetensors"):
        open_checkpoint(tmp_path)


OUTSIDE = ["../out.safetensors", "sub/../../out.safetensors", "/etc/passwd", "C:\\x.safetensors",
           "a\0b", "", ".", "..\\out.safetensors", "\\\\host\\x", "link.safetensors",
           "linked/out.safetensors"]  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_index_cannot_name_files_outside_its_folder(name, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a": torch.zeros(1)}, tmp_path / "out.safetensors")
    (folder / "link.safetensors").symlink_to(tmp_path / "out.safetensors")
    (folder / "linked").symlink_to(tmp_path)
    with pytest.raises(CheckpointError, match="outside its folder"):
        open_checkpoint(write_index(folder, {"a": name}))


def test_an_index_may_name_links_inside_its_folder(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "real.safetensors")
    (tmp_path / "link.safetensors").symlink_to("real.safetensors")
    assert open_checkpoint(write_index(tmp_path, {"a": "link.safetensors"}))["a"] == 1


BROKEN_INDEXES = [b"", b"[]", b"{}", b'{"weight_map": 3}', b'{"weight_map": {"a": 3}}',
                  b'{"weight_map": {}}', b"{", b"[" * 100_000, b"\xff", b"<html>"]  # fmt: skip


@pytest.mark.parametrize("content", BROKEN_INDEXES)
def test_a_broken_index_is_named(content, tmp_path):
    path = tmp_path / "model.safetensors.index.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"index\.json: "):
        open_checkpoint(tmp_path)


def test_shards_that_disagree_with_the_index_are_refused(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"names 1 tensors that no file holds.*'b'"):
        open_checkpoint(write_index(tmp_path, {"a": "x.safetensors", "b": "x.safetensors"}))
    save_file({"a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "y.safetensors")
    with pytest.raises(CheckpointError, match=r"'a' is in x\.safetensors and in y\.safetensors"):
        open_checkpoint(write_index(tmp_path, {"b": "y.safetensors", "": "x.safetensors"}))


class RunsCode:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old format"])
def test_a_pickle_with_code_runs_nothing(old, tmp_path):
    proof, path = tmp_path / "executed", tmp_path / "model.ckpt"
    torch.save({"ema_state_dict": RunsCode(proof)}, path, _use_new_zipfile_serialization=not old)
    for allowed in (False, True):
        with pytest.raises(CheckpointError, match=r"model\.ckpt: .*safetensors"):
            open_checkpoint(path, allow_pickle_checkpoint=allowed)
    assert not proof.exists()


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F8_E4M3FNUZ", "C64"])
def test_dtypes_of_the_format_that_are_not_read_are_not_called_damage(dtype, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(file_bytes(changed(dtype=dtype)))
    message = rf"stores 'b' as {dtype}, which is not read here\. Choose a file in bf16"
    with pytest.raises(CheckpointError, match=message) as e:
        open_checkpoint(tmp_path / "x.safetensors")
    assert "damaged" not in str(e.value)


def test_a_pickle_without_weights_is_refused(tmp_path):
    torch.save([torch.zeros(2)], tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="holds no table of weights"):
        open_checkpoint(tmp_path / "a.ckpt", allow_pickle_checkpoint=True)


READERS = {
    "open": open_checkpoint,
    "inspect": describe,
    "convert": lambda path: convert(path, Path(tempfile.gettempdir()) / "never.safetensors"),
    "a folder of models": find_models,
    "a part": lambda path: find_models("demo", {"distilled": path}),
    "tokenizer": load_tokenizer,
    "fingerprint": fingerprint,
}


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("name", ["a" * 300, "a\0b", "a/b" * 2000, "loop", "missing", "file/below"])
def test_names_that_lead_nowhere_are_named(name, read, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    with pytest.raises((CheckpointError, InputError), match=r"a|loop|missing|below"):
        READERS[read](tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="Windows has other rights")
@pytest.mark.parametrize("read", READERS)
def test_a_folder_that_may_not_be_looked_into_is_named(read, tmp_path):
    path = tmp_path / "locked/x.safetensors"
    path.parent.mkdir()
    save_file({"a": torch.zeros(1)}, path)
    me = os.geteuid()
    path.parent.chmod(0)
    if me == 0:  # whom no rights stop
        os.seteuid(65534)
    try:
        with pytest.raises((CheckpointError, InputError), match=r"x\.safetensors"):
            READERS[read](path)
    finally:
        os.seteuid(me)
        path.parent.chmod(0o700)


def test_a_name_as_long_as_a_system_takes_is_read(tmp_path):
    """What may lie beside it has a longer name, which cannot be."""
    path = tmp_path / ("b" * (255 - len(".safetensors")) + ".safetensors")
    save_file({"a": torch.zeros(1)}, path)
    assert set(open_checkpoint(path)) == {"a"}
    assert not find_models(tmp_path).problems
    assert fingerprint(path)


def test_training_checkpoints_whose_tensors_have_no_known_places_are_refused(tmp_path, monkeypatch):
    """Of the format before 2020 no torch tells where they lie; of the present one those before 2.7 do not."""
    for new in (True, False):
        torch.save({"ema_state_dict": {"a": torch.zeros(2)}}, tmp_path / f"{new}.ckpt",
                   _use_new_zipfile_serialization=new)
    with pytest.raises(CheckpointError, match="or one of an old format"):
        open_checkpoint(tmp_path / "False.ckpt", allow_pickle_checkpoint=True)
    assert set(open_checkpoint(tmp_path / "True.ckpt", allow_pickle_checkpoint=True)) == {"a"}
    monkeypatch.setattr(torch, "__version__", type(torch.__version__)("2.6.0+cu124"))
    with pytest.raises(CheckpointError, match=r"takes torch 2\.7 or newer, and this is 2\.6\.0\+cu124\."):
        open_checkpoint(tmp_path / "True.ckpt", allow_pickle_checkpoint=True)


@pytest.mark.parametrize("mapped", [False, True], ids=["copied", "mapped"])
def test_a_file_that_shrinks_while_it_is_read_is_noticed(mapped, tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"0.weight": torch.zeros(300, 300), "0.bias": torch.zeros(300)}, path)
    checkpoint = open_checkpoint(path, mapped=mapped)
    os.truncate(path, 1000)
    with pytest.raises(CheckpointError, match="became shorter"):
        assign_weights(torch.nn.Sequential(torch.nn.Linear(300, 300)), checkpoint)


def test_a_header_of_100000_names_is_quick(tmp_path):
    path = tmp_path / "many.safetensors"
    entry = {"dtype": "F32", "shape": [1]}
    names = {f"layer.{i}.weight": {**entry, "data_offsets": [4 * i, 4 * i + 4]} for i in range(100_000)}
    path.write_bytes(file_bytes(names, 400_000))
    start = time.process_time()
    assert len(open_checkpoint(path)) == 100_000
    assert time.process_time() - start < 10
