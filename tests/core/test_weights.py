"""Opening checkpoints from every kind of source, and filling modules with them."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from magihuman_core.checkpoint.assign import assign_weights
from magihuman_core.checkpoint.checkpoint import as_checkpoint
from magihuman_core.errors import CheckpointError
from magihuman_core.weights.open import open_checkpoint

from .golden import write_index


def network() -> nn.Sequential:
    """Parameters, buffers and one buffer outside the state dict."""
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 5000))
    net.register_buffer("scratch", torch.zeros(2), persistent=False)
    return net


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        key: torch.randn(value.shape, generator=generator) if value.is_floating_point() else value + 7
        for key, value in network().state_dict().items()
    }


def shards(weights: dict, folder: Path, prefix: str = "model") -> dict[str, str]:
    """Write two shards; return the index's weight map."""
    names = [f"{prefix}-{i}-of-00002.safetensors" for i in ("00001", "00002")]
    folder.mkdir(parents=True, exist_ok=True)
    where = {key: names[i % 2] for i, key in enumerate(weights)}
    for name in names:
        save_file({key: weights[key] for key in weights if where[key] == name}, folder / name)
    return where


def one_file(weights, tmp_path):
    save_file(weights, tmp_path / "net.safetensors", metadata={"role": "distilled"})
    return tmp_path / "net.safetensors"


def folder_with_index(weights, tmp_path):
    write_index(tmp_path / "base", shards(weights, tmp_path / "base"))
    return tmp_path / "base"


def diffusers_folder(weights, tmp_path):
    name = "diffusion_pytorch_model"
    write_index(tmp_path / "transformer", shards(weights, tmp_path / "transformer", name), name)
    return tmp_path


def hub_cache(weights, tmp_path):
    """Hugging Face's cache: the files of a snapshot are links to blobs beside it."""
    real, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    where = shards(weights, real)
    snapshot.mkdir(parents=True)
    for name in set(where.values()):
        blob = "f00" + name[6:11]
        (real / name).rename(real / blob)
        (snapshot / name).symlink_to(Path("../../blobs") / blob)
    write_index(snapshot, where)
    return snapshot


SOURCES = {
    "one file": one_file,
    "folder with one file": lambda weights, folder: one_file(weights, folder).parent,
    "folder with index": folder_with_index,
    "index file": lambda weights, folder: write_index(folder, shards(weights, folder)),
    "folder without index": lambda weights, folder: shards(weights, folder) and str(folder),
    "diffusers' folder": diffusers_folder,
    "Hugging Face's cache": hub_cache,
}


@pytest.mark.parametrize("mapped", [False, True], ids=["copied", "mapped"])
@pytest.mark.parametrize("source", SOURCES)
def test_every_source_gives_the_same_tensors(source, mapped, weights, tmp_path):
    checkpoint = open_checkpoint(SOURCES[source](weights, tmp_path), mapped=mapped)
    assert set(checkpoint) == set(weights)
    for key, value in weights.items():
        assert checkpoint.shape(key) == tuple(value.shape)
        assert checkpoint.dtype(key) == value.dtype
        assert torch.equal(checkpoint[key], value)
        half = checkpoint.read(key, torch.float16)
        assert half.dtype == torch.float16
        assert torch.equal(half, value.half())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_mapped_tensor_is_a_view_that_cannot_change_the_file_or_claim_memory(weights, tmp_path):
    """Of what may be written to, a system would have to promise as much memory as the file is large."""
    path = one_file(weights, tmp_path)
    checkpoint = open_checkpoint(path, mapped=True)
    first, again = checkpoint["2.weight"], checkpoint["2.weight"]
    assert first.data_ptr() == again.data_ptr()
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]
    (begin, end), rights = (int(number, 16) for number in maps[0][0].split("-")), maps[0][1]
    assert len(maps) == 1 and begin <= first.data_ptr() < end and rights == "r--s"


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16, torch.float16])
def test_a_module_on_the_meta_device_is_filled(dtype, weights, tmp_path):
    with torch.device("meta"):
        net = network()
    checkpoint = open_checkpoint(one_file(weights, tmp_path))
    assign_weights(net, checkpoint, dtype=dtype, keep_fp32=lambda key: key.endswith("bias"))
    state = net.state_dict()
    assert set(state) == set(weights)
    for key, value in weights.items():
        wanted = value
        if value.is_floating_point():
            wanted = value.to(torch.float32 if key.endswith("bias") else dtype)
        assert state[key].dtype == wanted.dtype
        assert torch.equal(state[key], wanted)
    assert not any(parameter.requires_grad for parameter in net.parameters())
    assert isinstance(net[0].weight, nn.Parameter)


def test_tensors_to_keep_in_fp32_are_widened_again(weights, tmp_path):
    with torch.device("meta"):
        net = network()
    path = one_file({k: v.bfloat16() if v.is_floating_point() else v for k, v in weights.items()}, tmp_path)
    assign_weights(net, open_checkpoint(path), dtype=None, keep_fp32=lambda key: key.startswith("1."))
    assert net[0].weight.dtype == torch.bfloat16
    assert net[1].weight.dtype == net[1].running_mean.dtype == torch.float32
    assert net[1].num_batches_tracked.dtype == torch.int64


def test_a_mapping_is_taken_over_without_copies(weights):
    net = network()
    assign_weights(net, weights)
    assert net[2].weight.data_ptr() == weights["2.weight"].data_ptr()
    assert torch.equal(net.scratch, torch.zeros(2))


def test_missing_left_over_and_misshapen_tensors_are_named(weights):
    wrong = {("0.bios" if key == "0.bias" else key): value for key, value in weights.items()}
    with pytest.raises(CheckpointError, match=r"some\.file: .* 1 missing \('0\.bias'\) and 1 .*'0\.bios'"):
        assign_weights(network(), as_checkpoint(wrong, "some.file"))
    with pytest.raises(CheckpointError, match=r"6 missing \('0\.weight', '0\.bias', '1\.weight', \.\.\.\)"):
        assign_weights(network(), {k: v for k, v in weights.items() if k.startswith(("2", "1.n"))})
    with pytest.raises(CheckpointError, match=r"'2\.bias' has shape \[4999\], expected \[5000\]"):
        assign_weights(network(), {**weights, "2.bias": torch.zeros(4999)})


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_numbers_of_another_sort_are_refused(dtype, weights):
    with pytest.raises(CheckpointError, match=rf"'0\.weight' is stored as {str(dtype)[6:]}"):
        assign_weights(network(), {**weights, "0.weight": weights["0.weight"].to(dtype)})


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_values_that_are_not_finite_are_found(bad, dtype, weights):
    poisoned = {**weights, "2.weight": weights["2.weight"].to(dtype)}
    poisoned["2.weight"][1234, 2] = bad
    with pytest.raises(CheckpointError, match=r"'2\.weight' holds values that are not numbers"):
        assign_weights(network(), poisoned)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_not_a_number_is_found_in_fp8(dtype, weights):
    fine = weights["2.weight"].to(dtype)
    assign_weights(network(), {**weights, "2.weight": fine})
    poisoned = fine.float()
    poisoned[7, 1] = float("nan")
    with pytest.raises(CheckpointError, match=r"2\.weight"):
        assign_weights(network(), {**weights, "2.weight": poisoned.to(dtype)})


def test_large_finite_values_pass_although_their_sum_overflows(weights):
    large = torch.full((5000, 4), 3e38)
    assign_weights(network(), {**weights, "2.weight": large})
    with pytest.raises(CheckpointError, match="infinite as float16"):
        assign_weights(network(), {**weights, "2.weight": large}, dtype=torch.float16)


def test_an_index_need_not_name_every_tensor(weights, tmp_path):
    """Some tools quantize shards and leave the index as it was: the added scales are in the files only."""
    where = shards(weights, tmp_path)
    unnamed = where.pop("2.weight")
    write_index(tmp_path, where)
    assert (tmp_path / unnamed).exists()
    assert torch.equal(open_checkpoint(tmp_path)["2.weight"], weights["2.weight"])


def test_the_training_checkpoint_is_read_only_where_allowed(weights, tmp_path):
    path = tmp_path / "checkpoint-340000.ckpt"
    averaged = {"module." + key: value for key, value in weights.items()}
    torch.save({"ema_state_dict": averaged, "step": 3}, path)
    checkpoint = open_checkpoint(path, allow_pickle_checkpoint=True)
    assert set(checkpoint) == set(weights)
    assert torch.equal(checkpoint["2.weight"], weights["2.weight"])
    assert set(open_checkpoint(tmp_path, allow_pickle_checkpoint=True)) == set(weights)
    with pytest.raises(CheckpointError, match="pickle"):
        open_checkpoint(path)
