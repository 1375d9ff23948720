"""Files that somebody cuts off, writes into or replaces while they are in use, or between two loadings."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from magihuman_core.checkpoint.fingerprint import fingerprint
from magihuman_core.errors import CheckpointError
from magihuman_core.weights.open import open_checkpoint

from .golden import ROOT, write_index

LARGE = 500_000  # elements: many pages of memory, which a map brings in one by one


def one_file(path, value=1.0):
    save_file({"a.weight": torch.full((LARGE,), value), "b.weight": torch.zeros(3)}, path)
    return path


def training_checkpoint(path, value=1.0):
    torch.save({"ema_state_dict": {"a.weight": torch.full((LARGE,), value)}}, path)
    return path


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def write_into(path):
    with path.open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(b"12345678")
    os.utime(path, ns=(1, 1))  # a clock may be too coarse to tell


def replace(path):
    other = path.with_name("new")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(1, 1))
    other.replace(path)


CHANGES = {"cut off": (truncate, "became shorter"), "written into": (write_into, "was changed or replaced"),
           "replaced": (replace, "was changed or replaced"),
           "emptied": (lambda path: os.truncate(path, 0), "became shorter")}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("make", [one_file, training_checkpoint])
def test_a_file_that_is_no_longer_the_one_that_was_opened_is_not_read(make, change, tmp_path):
    path = make(tmp_path / ("x.ckpt" if make is training_checkpoint else "x.safetensors"))
    checkpoint = open_checkpoint(path, allow_pickle_checkpoint=True)
    assert checkpoint["a.weight"].sum() == LARGE
    change, words = CHANGES[change]
    change(path)
    for dtype in (None, torch.bfloat16):
        with pytest.raises(CheckpointError, match=rf"x\.\w+: {words} after it was opened"):
            checkpoint.read("a.weight", dtype)


def test_a_file_cut_off_before_it_is_loaded_does_not_kill_the_process(tmp_path):
    """As reading through a map of the file would, by a signal, which no except clause sees."""
    files = [str(make(tmp_path / f"{mapped}.{suffix}")) for mapped in (False, True)
             for make, suffix in ((one_file, "safetensors"), (training_checkpoint, "ckpt"))]
    program = ("import os, sys; from pathlib import Path; from magihuman_core import CheckpointError\n"
               "from magihuman_core.weights.open import open_checkpoint\n"
               "for path in sys.argv[1:]:\n"
               "    mapped = Path(path).stem == 'True'\n"
               "    c = open_checkpoint(path, mapped=mapped, allow_pickle_checkpoint=True)\n"
               "    if mapped and path.endswith('safetensors'): c['b.weight']\n"  # there is a map already
               "    os.truncate(path, 5000)\n"
               "    print(path, flush=True)\n"
               "    try: c['a.weight'].sum()\n"
               "    except CheckpointError as error: print(error)\n")
    done = subprocess.run([sys.executable, "-c", program, *files], cwd=ROOT, capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    assert done.stdout.splitlines()[::2] == files and done.stdout.count("became shorter") == len(files)


def test_a_map_outlives_a_file_that_is_replaced(tmp_path):
    """By renaming, as downloads are: what is in use stays what it was, and the new file is found by opening it."""
    path = one_file(tmp_path / "x.safetensors")
    checkpoint = open_checkpoint(path, mapped=True)
    before = checkpoint["a.weight"]
    one_file(tmp_path / "new", 2.0).replace(path)
    assert before.sum() == LARGE and torch.equal(checkpoint["a.weight"], before)
    assert open_checkpoint(path, mapped=True)["a.weight"].sum() == 2 * LARGE


def test_a_transposed_tensor_in_a_training_checkpoint(tmp_path):
    matrix = torch.arange(12.0).view(3, 4)
    path = tmp_path / "x.ckpt"
    torch.save({"state_dict": {"t": matrix.t(), "row": matrix[1], "step": torch.tensor(3)}}, path)
    checkpoint = open_checkpoint(path, allow_pickle_checkpoint=True)
    assert torch.equal(checkpoint["t"], matrix.t()) and torch.equal(checkpoint["row"], matrix[1])
    assert torch.equal(checkpoint.read("t", torch.bfloat16, (1, 3)), matrix.t()[1:3].bfloat16())
    assert checkpoint["step"] == 3


def test_fingerprints_tell_files_apart(tmp_path):
    path = one_file(tmp_path / "x.safetensors")
    first = fingerprint(path)
    assert fingerprint(str(path)) == first and len(first) == 64
    found = {first}
    times = path.stat().st_mtime_ns
    for step, change in enumerate((write_into, truncate, lambda path: one_file(path, 2.0)), 1):
        change(path)
        os.utime(path, ns=(times + step, times + step))
        found.add(fingerprint(path))
    assert len(found) == 4
    # The header alone: same size, same time.
    save_file({"a.weight": torch.zeros(LARGE), "c.weight": torch.zeros(3)}, path)
    os.utime(path, ns=(times + 3, times + 3))
    assert fingerprint(path) not in found
    with pytest.raises(CheckpointError, match=r"none\.safetensors: cannot be read"):
        fingerprint(tmp_path / "none.safetensors")


def test_fingerprints_of_folders_and_indexes(tmp_path):
    folder = tmp_path / "model"
    (folder / "transformer").mkdir(parents=True)
    shard = one_file(folder / "model-00001-of-00001.safetensors")
    index = write_index(folder, {"a.weight": shard.name, "b.weight": shard.name})
    inner = one_file(folder / "transformer" / "x.safetensors")

    def both():
        return fingerprint(folder), fingerprint(index)

    whole, named = both()
    (folder / "readme.txt").write_text("of no weight")
    assert both() == (whole, named)
    os.utime(inner, ns=(1, 1))
    assert fingerprint(folder) != whole and fingerprint(index) == named
    whole = fingerprint(folder)
    os.utime(shard, ns=(1, 1))
    assert fingerprint(folder) != whole and fingerprint(index) != named
    whole = fingerprint(folder)
    (folder / "config.json").write_text("{}")
    assert fingerprint(folder) != whole
