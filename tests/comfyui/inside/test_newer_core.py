"""What newer cores have and this one has not: stand-ins with their names and arguments, as of ComfyUI 0.38."""

from contextlib import contextmanager

import comfy.model_prefetch
import pytest
import torch
from comfy.ldm.modules import attention as core_attention
from magihuman_pack.nodes.adapter import network
from magihuman_pack.nodes.adapter.load_model import load_model
from small_clip import max_error, sample
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def memory(*of):
    """Where the tensors in something lie, and their storages."""
    storages = [tensor.untyped_storage() for tensor in tree_leaves(of) if torch.is_tensor(tensor)]
    return {storage.data_ptr(): storage for storage in storages}


class Allocations(TorchDispatchMode):
    """The memory that is allocated while this is on, and how much of it is still in use."""

    def __init__(self):
        super().__init__()
        self.found = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = memory(args, kwargs)
        for place, storage in memory(result).items():
            if place not in given:
                self.found[place] = StorageWeakRef(storage)
        return result

    def left(self):
        return sum(not storage.expired() for storage in self.found.values())


@pytest.fixture
def events(monkeypatch):
    """What is asked of the recorder of allocations: "begin", a block or None, "end" or "abort"."""
    found, pop = [], comfy.model_prefetch.prefetch_queue_pop

    @contextmanager
    def malloc_graph_scope(device):
        found.append("begin")
        try:
            with Allocations() as allocations:
                yield
        except BaseException:
            found.append("abort")
            raise
        assert len(allocations.found) > 10
        found.append(f"end, {allocations.left()} left")

    def prefetch_queue_pop(queue, device, module, dtype=None, core=None, enable_graph=False, generator=None,
                           malloc_scope=None):
        found.append((module, malloc_scope))
        pop(queue, device, module, dtype, core, enable_graph, generator)

    monkeypatch.setattr(comfy.model_prefetch, "malloc_graph_scope", malloc_graph_scope, raising=False)
    monkeypatch.setattr(comfy.model_prefetch, "prefetch_queue_pop", prefetch_queue_pop)
    return found


@pytest.mark.parametrize(("folder", "role"), [("distill", "distilled"), ("base", "base"), ("540p_sr", "sr_540p")])
def test_what_blocks_allocate_is_recorded_and_freed_within_the_pass(models, events, folder, role):
    model = load_model(models / "diffusion_models/magihuman" / folder, role, torch.float32)
    sample(model)
    blocks = [(block, "block") for block in model.model.diffusion_model.blocks]
    assert events == ["begin", *blocks, (None, "block"), "end, 0 left"] * 2  # two steps


def test_an_error_ends_the_recording(model, events, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(network, "optimized_attention", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        sample(model)
    assert events[0] == "begin" and events[-1] == "abort" and events.count("abort") == 1


def test_what_others_patch_in_is_not_recorded(model, events):
    kept, patched = [], model.clone()

    def block(args, extra):
        out = extra["original_block"](args)
        kept.append(out["img"])  # as caches of blocks do
        return out

    patched.set_model_patch_replace(block, "dit", "double_block", 2)
    sample(patched)
    assert len(kept) == 2 and "begin" not in events and {scope for _, scope in events} == {None}


def test_attention_gets_its_tensors_in_containers(model, plain, monkeypatch):
    class Container:
        def __init__(self, tensor):
            self.tensor = tensor

        def take(self):
            tensor, self.tensor = self.tensor, None
            return tensor

    taken, kernel = [], network.optimized_attention

    def container_function(q, k, v, heads, **kwargs):
        taken.append(heads)
        return kernel(q.take(), k.take(), v.take(), heads, **kwargs)

    monkeypatch.setattr(core_attention, "AttentionTensorContainer", Container, raising=False)
    monkeypatch.setattr(network, "optimized_attention", container_function)
    assert max_error(sample(model), plain) == 0
    assert len(taken) == 2 * len(model.model.diffusion_model.blocks)
