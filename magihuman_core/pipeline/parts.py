"""The models of a folder, and how they are loaded and run."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import nn

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.quantize import stored_dtype
from ..errors import InputError
from ..loading.folder import NETWORKS, ModelFolder
from ..runtime.devices import best_device, computes_bf16, held_dtype
from ..runtime.main_memory import main_memory
from ..weights.open import open_checkpoint
from .crew import Crew

LARGE = 1_000_000_000  # weights from which on fp32 on a CPU would rarely fit

Module = TypeVar("Module", bound=nn.Module)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """Where the parts of the model lie, and what their loaders are told; see MagiHumanPipeline.from_folder."""

    models: ModelFolder
    device: torch.device
    dtype: torch.dtype | None = None
    resident_blocks: int | None = None
    stream_from: str | None = None
    fuse: bool | None = None
    tile: int | None = None
    loras: Sequence[tuple[str | Path, float]] = ()
    keep: bool = False  # parts wait in main memory for the next clip, where there is room
    kept: dict[Any, tuple[Any, nn.Module]] = field(default_factory=dict, repr=False)
    crew: Crew | None = None  # the processes that make a clip together with this one
    notices: set[str] = field(default_factory=set)  # of checkpoints, which were logged already

    def open(self, part: str) -> Checkpoint:
        """A part's checkpoint, of which only the header is read. Raises CheckpointError and InputError."""
        checkpoint = open_checkpoint(self.models[part], "network" if part in NETWORKS else None)
        notice = checkpoint.metadata.get("notice")  # such as that the weights are random
        if notice and notice not in self.notices:
            self.notices.add(notice)
            log.warning("%s", "".join(filter(str.isprintable, notice))[:500])  # a text out of a file
        return checkpoint

    def load(self, loader: Callable[..., Module], source: Any, *arguments: Any, device: torch.device | None = None,
             **options: Any) -> Module:
        """A module from one of the loaders, on a device, by default the one to compute on; or the one that was kept.

        source: a file, or a checkpoint of one.
        """
        started, device = time.perf_counter(), device or self.device
        key, wanted = (loader, getattr(source, "name", source)), (arguments, options)
        before, module = self.kept.pop(key, (None, None))
        if module is not None and before == wanted:
            module = module.to(device)
        else:
            module = None  # what it was is gone before another is read
            module = loader(source, *arguments, device=device, **options)
        log.info("loaded in %.1f s", time.perf_counter() - started)
        if self.keep and self._may_stay(module, options):
            self.kept[key] = wanted, module
        return cast(Module, module)

    def put_aside(self) -> None:
        """After a stage: bring what is kept to main memory, so that the device has room for the next part."""
        for _, module in self.kept.values():
            module.to("cpu")

    def _may_stay(self, module: nn.Module, options: Mapping[str, Any]) -> bool:
        """Whether a part can be kept: one that is whole, where half of main memory stays free nevertheless."""
        if options.get("resident_blocks") is not None or options.get("resident_layers") is not None:
            return False
        memory = main_memory()
        size = 0 if self.device.type == "cpu" else sum(
            tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
        return memory.available - size >= memory.total / 2

    def weights_dtype(self, tensors: Checkpoint, may_quantize: Callable[[str], bool]) -> torch.dtype:
        """What a part's weights are kept in. may_quantize: which of its keys may be in 8 bits."""
        if self.dtype is not None:
            return self.dtype
        if self.device.type == "cpu" and sum(entry.numel for entry in tensors.entries.values()) < LARGE:
            return torch.float32
        return held_dtype(stored_dtype(tensors, may_quantize), self.device) or torch.bfloat16

    def compute_dtype(self, dtype: torch.dtype) -> torch.dtype | None:
        """What weights kept in dtype compute in, where it is not the usual: fp32 on a device without bf16."""
        return None if dtype == torch.float32 or computes_bf16(self.device) else torch.float32

    def vae_dtype(self) -> torch.dtype:
        """What a video VAE decodes in."""
        return torch.bfloat16 if self.device.type != "cpu" and computes_bf16(self.device) else torch.float32


def choose_device(device: str | torch.device, crew: Crew | None = None) -> torch.device:
    """ "auto": see best_device. Each process of a crew has its own GPU.

    Raises InputError for a device that is not there.
    """
    if crew is not None:
        return crew.device(best_device() if device == "auto" else device)
    if device == "auto":
        return best_device()
    try:
        chosen = torch.device(device)
        float(torch.ones(1, device=chosen) + 1)  # which "meta" cannot do
    except (RuntimeError, AssertionError, TypeError) as error:  # torch built without CUDA asserts
        reason = str(error).splitlines()[0]
        raise InputError(f"device {device} cannot be used here ({reason}). Use cpu, or auto.") from None
    return chosen
