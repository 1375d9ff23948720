"""Where the weights of a streamed block lie: one after another in a buffer, on the device and in main memory."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from mmap import mmap

import torch
from torch import Tensor, nn

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.finite import check_finite
from ..weights.precision import keep_fp32

ALIGNMENT = 256  # bytes; what fast matrix products like their operands to begin at
PIECE = 8 << 20  # bytes read at a time: what is needed beside the buffers stays small
PORTABLE = 1  # cudaHostRegisterPortable: pinned for every CUDA device

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Where a weight goes: in the module and in a buffer."""

    key: str
    owner: nn.Module
    leaf: str
    shape: torch.Size
    dtype: torch.dtype
    begin: int  # byte in the buffer

    def view(self, buffer: Tensor) -> Tensor:
        """Its part of a flat buffer of bytes, in its own shape."""
        end = self.begin + self.shape.numel() * self.dtype.itemsize
        return buffer[self.begin : end].view(self.dtype).view(self.shape)


@dataclass(frozen=True)
class Plan:
    """A block's weights, one after another in a buffer."""

    index: int
    places: Sequence[Place]
    nbytes: int


def plan_block(prefix: str, index: int, block: nn.Module) -> Plan:
    """Lay the matrices of a block out in a buffer. prefix: of the blocks' names, such as "blocks."."""
    places, begin = [], 0
    for name, parameter in block.named_parameters():
        if keep_fp32(name):
            continue
        owner, _, leaf = name.rpartition(".")
        places.append(Place(f"{prefix}{index}.{name}", block.get_submodule(owner), leaf, parameter.shape,
                            parameter.dtype, begin))
        begin += -(-parameter.nbytes // ALIGNMENT) * ALIGNMENT
    return Plan(index, places, begin)


class PinnedMemory(mmap):
    """Main memory that stays in its place, so that a CUDA device copies out of it by itself.

    As large as asked for: what torch.empty(pin_memory=True) takes is rounded up to a power of two.
    """

    pinned: tuple[torch.device, int] | None = None

    def pin(self, device: torch.device, address: int) -> None:
        """Lock the pages. Where the system refuses, copies from here are right, too, but slower."""
        with torch.cuda.device(device):  # else the runtime begins to use, and takes memory of, the first card
            refused = int(torch.cuda.cudart().cudaHostRegister(address, len(self), PORTABLE))
        if not refused:
            self.pinned = device, address
            return
        log.debug("%d bytes could not be pinned.", len(self))
        discard_error(device)

    def __del__(self) -> None:
        if self.pinned is None:
            return
        with suppress(Exception):  # as Python ends, CUDA or torch itself may be gone already, and the lock with it
            device, address = self.pinned
            with torch.cuda.device(device):
                torch.cuda.synchronize()  # a copy may still be under way
                torch.cuda.cudart().cudaHostUnregister(address)


def discard_error(device: torch.device) -> None:
    """Take an error that is known already from the CUDA runtime, which gives it once more to whoever asks next."""
    with suppress(RuntimeError):
        torch.zeros(1, device=device).add_(1)
        torch.cuda.synchronize(device)


def host_memory(nbytes: int, device: torch.device) -> Tensor:
    """A flat buffer of bytes in main memory, from which a device can copy fast."""
    if device.type != "cuda":
        return torch.empty(nbytes, dtype=torch.uint8)
    memory = PinnedMemory(-1, nbytes)
    buffer = torch.frombuffer(memory, dtype=torch.uint8)  # holds the memory
    memory.pin(device, buffer.data_ptr())
    return buffer


class Slot:
    """A buffer on the compute device. staged: with one in main memory before it, into which files are read."""

    def __init__(self, nbytes: int, device: torch.device, staged: bool):
        self.buffer = torch.empty(nbytes, dtype=torch.uint8, device=device)
        self.host = host_memory(nbytes, device) if staged else self.buffer
        self.index: int | None = None  # the block it holds, or is being filled with
        self.filling: Future | None = None
        self.copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.copied = self.used = None  # events: the last copy is done; the last computation is done

    def begin_host(self) -> Tensor:
        """The buffer to read into, once the copy that was made from it is over."""
        if self.copied is not None:
            self.copied.synchronize()
        return self.host

    def send(self, source: Tensor, nbytes: int) -> None:
        """Bring the content of a buffer in main memory to the device, unless that is where it is."""
        if source is self.buffer:
            return
        if self.copies is None:
            self.buffer[:nbytes].copy_(source[:nbytes])
            return
        with torch.cuda.stream(self.copies):
            if self.used is not None:
                self.copies.wait_event(self.used)
            self.buffer[:nbytes].copy_(source[:nbytes], non_blocking=True)
            self.buffer.record_stream(self.copies)
            self.copied = self.copies.record_event()

    def begin_use(self) -> None:
        """Let what is computed from now on wait for the copy."""
        if self.copied is not None:
            torch.cuda.current_stream(self.buffer.device).wait_event(self.copied)

    def end_use(self) -> None:
        """Let the next copy wait for what has been computed until now."""
        if self.copies is not None:
            self.used = torch.cuda.current_stream(self.buffer.device).record_event()


class Reader:
    """Reads blocks out of a checkpoint, a few rows at a time; or has them in main memory."""

    def __init__(self, tensors: Checkpoint):
        self.tensors = tensors
        self.kept: dict[int, Tensor] = {}  # block -> a buffer in main memory with its weights
        self.checked: set[str] = set()  # known to be finite
        self.stop = threading.Event()

    def keep(self, plan: Plan, device: torch.device) -> None:
        """Read a block now, for good. Raises CheckpointError."""
        buffer = host_memory(plan.nbytes, device)
        self.read(plan, buffer)
        self.kept[plan.index] = buffer

    def fill(self, slot: Slot, plan: Plan) -> None:
        """Bring a block into a slot. Raises CheckpointError."""
        source = self.kept.get(plan.index)
        if source is None:
            source = slot.begin_host()
            self.read(plan, source)
        slot.send(source, plan.nbytes)

    def read(self, plan: Plan, buffer: Tensor) -> None:
        """Fill a buffer in main memory. Raises CheckpointError."""
        for place in plan.places:
            weight = place.view(buffer)
            entry = self.tensors.entries[place.key]
            rows = max(1, PIECE // max(1, weight[:1].nbytes))
            for top in range(0, weight.shape[0], rows):
                if self.stop.is_set():
                    return
                bottom = min(top + rows, weight.shape[0])
                weight[top:bottom] = entry.read(place.dtype, (top, bottom))
            if place.key not in self.checked:
                check_finite(weight, place.key, self.tensors.name)
                self.checked.add(place.key)


def fill(slot: Slot, plan: Plan, reader: Reader) -> None:
    """What the worker does. It knows nothing of the streamer, so that it does not keep it alive."""
    with torch.inference_mode():  # which each thread has for itself
        reader.fill(slot, plan)
