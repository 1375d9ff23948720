"""What newer cores have: stand-ins with their names and arguments where this one has it not."""

from contextlib import contextmanager
from dataclasses import replace

import comfy.model_prefetch
import pytest
import torch
from comfy_api.latest import InputImpl, Types
from magihuman_pack.nodes.adapter import network
from magihuman_pack.nodes.adapter.load_model import load_model
from magihuman_pack.nodes.adapter.streams import nested
from magihuman_pack.nodes.clips import MagiHumanFitClip
from magihuman_pack.nodes.sampling import MagiHumanSampler
from small_clip import AUDIO, OTHER, TEXT, VIDEO, max_error, sample
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

EMPTY = {"samples": nested(torch.zeros_like(VIDEO), torch.zeros_like(AUDIO))}


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
    blocks = [*model.model.diffusion_model.blocks, None]
    assert events == [(block, None) for block in blocks] + recorded(blocks)  # two steps, the first not recorded


def test_attention_of_another_kind_is_recorded_with_guidance(models, events):
    """As core's node that chooses a kernel: prompt and negative prompt then run one after the other."""
    model = load_model(models / "diffusion_models/magihuman/base", "base", torch.float32)
    options = {"positive": [[TEXT, {}]], "negative": [[OTHER, {}]], "latent_image": EMPTY, "seed": 7, "mode": "auto",
               "steps": 2, "sr_noise_level": 220}
    plain = MagiHumanSampler.execute(model, **options)[0]["samples"].unbind()
    events.clear()
    other = model.clone()
    other.model_options["transformer_options"]["optimized_attention_override"] = (
        lambda kernel, *args, **kwargs: kernel(*args, **kwargs))
    assert max_error(MagiHumanSampler.execute(other, **options)[0]["samples"].unbind(), plain) < 1e-5
    assert events == recorded([*model.model.diffusion_model.blocks, None]) * 2


def recorded(blocks):
    return ["begin", *((block, "block") for block in blocks), "end, 0 left"]


@pytest.mark.parametrize("scope", [lambda self, device: None, lambda: None], ids=["module first", "none"])
def test_recorders_with_other_arguments_are_left_alone(model, events, monkeypatch, scope):
    monkeypatch.setattr(comfy.model_prefetch, "malloc_graph_scope", scope)
    sample(model)
    assert {scope for _, scope in events} == {None}


def test_an_error_ends_the_recording(model, events, monkeypatch):
    sample(model)
    events.clear()
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
    """So that a kernel frees them once it has what it needs."""
    taken, kernel = [], network.optimized_attention

    def container_function(q, k, v, heads, **kwargs):
        taken.append(heads)
        return kernel(q.take(), k.take(), v.take(), heads, **kwargs)

    monkeypatch.setattr(kernel, "container_function", container_function)
    assert max_error(sample(model), plain) == 0
    assert len(taken) == 2 * len(model.model.diffusion_model.blocks)

    seen = []
    monkeypatch.setattr(network, "optimized_attention", lambda q, k, v, heads, **kwargs: seen.append(type(q)) or kernel(
        q, k, v, heads, **kwargs))  # as packs put theirs in the place of core's
    assert max_error(sample(model), plain) == 0
    assert set(seen) == {torch.Tensor}


@pytest.mark.parametrize("tells", [True, False])
def test_a_film_that_was_cropped_is_fitted_as_cropped(tmp_path, tells):
    """A VIDEO of newer cores may be a file with an edit. Here the left half of the file is black, the right white."""
    images = torch.zeros(10, 64, 128, 3)
    images[:, :, 64:] = 1
    path = str(tmp_path / "a.mp4")
    InputImpl.VideoFromComponents(Types.VideoComponents(images=images, audio=None, frame_rate=25)).save_to(path)

    class Cropped(InputImpl.VideoFromFile):
        def has_pending_frame_edits(self):
            return tells

        def get_dimensions(self):
            return (128, 64) if tells else (64, 64)

        def get_components(self):
            found = super().get_components()
            return replace(found, images=found.images[:, :, 64:])

    whole, _ = MagiHumanFitClip.execute(InputImpl.VideoFromFile(path), 0, 0).args
    cropped, _ = MagiHumanFitClip.execute(Cropped(path), 0, 0).args
    assert whole.shape[1:3] == (64, 128) and cropped.shape[1:3] == (64, 64)
    assert float(whole.mean()) < 0.6 and float(cropped.mean()) > 0.9
