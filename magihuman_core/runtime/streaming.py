"""Running a network whose blocks do not all fit into memory: weights come in while they are needed.

Some blocks are resident. The others share two buffers on the compute device: while one block computes from one buffer,
a worker thread fills the other with the block that comes next. It reads from the file, and casts, decodes or rounds on
the way; or copies from main memory, where the blocks were read once.

    file -> [pinned memory, unless the device is the CPU] -> buffer -> the block's parameters
    main memory, pinned where the device is CUDA          -> buffer -> the block's parameters

Only the matrices of the blocks are streamed; norms, embedders and heads are small and always resident. The layers of
the text encoder are streamed in the same way. The models know nothing of it: a hook of each streamed block fetches its
weights before it runs, and the numbers are the same as when it is resident, bit for bit. Conditional and unconditional
pass share each fetch, since MagiHumanDiT.forward_many goes through the blocks once for both.

The path for CUDA (a stream of its own for copies) follows PyTorch's documentation but its speed has not been measured.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..checkpoint.checkpoint import Checkpoint
from ..errors import InputError, shown
from ..sizes import byte_size
from ..weights.precision import keep_fp32
from .buffers import Plan, Reader, Slot, fill, plan_block
from .devices import free_memory

BLOCKS = "blocks."  # how the names of the network's blocks begin
LAYERS = "encoder.layers."  # and of the text encoder's layers
WHENCE = {None: "the file", "file": "the file", "memory": "main memory"}
SPARE = 4 << 30  # bytes of main memory left to others where blocks are kept in it

log = logging.getLogger(__name__)


def is_streamed(key: str, blocks: Iterable[int], prefix: str = BLOCKS) -> bool:
    """Whether one of our keys is a matrix of one of these blocks, whose names begin with prefix."""
    index, _, name = key.removeprefix(prefix).partition(".")
    return key.startswith(prefix) and not keep_fp32(name) and int(index) in blocks


def choose_streamed(blocks: nn.ModuleList, resident: int | None) -> tuple[int, ...]:
    """Which of a network's blocks to stream when `resident` may stay; None: all stay.

    A block's weights cost the same to bring in whether they are many or few per token, but the large
    ones, with an expert for each modality, take three times as long while they compute no longer. So
    these stay first, which also makes the buffers small. Among equals the ones that stay are spread, so
    that there is time between any two fetches. Raises InputError.
    """
    check_resident_blocks(resident)
    if resident is None:
        return ()
    groups: dict[int, list[int]] = {}
    for index, block in enumerate(blocks):
        groups.setdefault(sum(p.numel() for p in block.parameters()), []).append(index)
    stay: set[int] = set()
    for _, group in sorted(groups.items(), reverse=True):
        count = min(len(group), resident - len(stay))
        stay.update(group[i * len(group) // count] for i in range(count))
    return tuple(index for index in range(len(blocks)) if index not in stay)


def check_resident_blocks(resident: int | None, name: str = "resident_blocks") -> None:
    """Raise InputError, with the argument's name, unless so many blocks can stay."""
    if resident is not None and (isinstance(resident, bool) or not isinstance(resident, int) or resident < 0):
        raise InputError(f"{name} is {shown(resident)}, expected a whole number, 0 or more.")


def streamed_sizes(blocks: nn.ModuleList, streamed: Sequence[int]) -> tuple[int, int]:
    """Bytes that come in at each pass, and bytes of the buffers."""
    sizes = [plan_block("", index, blocks[index]).nbytes for index in streamed]
    return sum(sizes), min(2, len(sizes)) * max(sizes, default=0)


def stream_blocks(blocks: nn.ModuleList, tensors: Checkpoint, streamed: Sequence[int],
                  device: torch.device | str, stream_from: str | None = None, prefix: str = BLOCKS) -> BlockStreamer:
    """Let these blocks fetch their weights before they run; see BlockStreamer and load_dit. Raises InputError."""
    check_stream_from(stream_from)
    if stream_from is None and torch.device(device).type != "cpu":
        needed = streamed_sizes(blocks, streamed)[0] + SPARE
        stream_from = "memory" if needed < (free_memory("cpu") or 0) else "file"
    streamer = BlockStreamer(blocks, tensors, streamed, device=device, in_memory=stream_from == "memory", prefix=prefix)
    for index in streamed:
        blocks[index].register_forward_pre_hook(Fetch(streamer, index))
    log.info("%d of %d blocks are resident; %s of the others come in from %s at each pass.",
             len(blocks) - len(streamed), len(blocks), byte_size(streamer.nbytes), WHENCE[stream_from])
    return streamer


def check_stream_from(stream_from: str | None) -> None:
    """Raise InputError for a place that no weights come from."""
    if stream_from not in WHENCE:
        raise InputError(f"stream_from is {shown(stream_from)}, expected file or memory.")


def streamer_of(blocks: nn.ModuleList) -> BlockStreamer | None:
    """What brings in the weights of these blocks; None where all are resident."""
    hooks = (hook for block in blocks for hook in block._forward_pre_hooks.values())
    return next((hook.streamer for hook in hooks if isinstance(hook, Fetch)), None)


class BlockStreamer:
    """Holds the weights of streamed blocks; `fetch(index)` puts those of a block in place.

    blocks: the network's; tensors: its weights under our keys; streamed: indices of blocks, whose matrices
    are on the meta device, in the dtypes they will have. in_memory: read them all now and keep them in main memory.
    prefix: how the blocks' names in tensors begin.
    For inference only: a fetch overwrites what a backward pass would need. One forward pass at a time.
    Raises CheckpointError, also while fetching, when a weight cannot be read or is not finite.
    """

    def __init__(self, blocks: nn.ModuleList, tensors: Checkpoint, streamed: Sequence[int], *,
                 device: torch.device | str = "cpu", in_memory: bool = False, prefix: str = BLOCKS):
        self.device, self.in_memory = torch.device(device), in_memory
        self.plans = {index: plan_block(prefix, index, blocks[index]) for index in streamed}
        self.following = dict(zip(streamed, (*streamed[1:], *streamed[:1]), strict=True))
        self.reader = Reader(tensors)
        if in_memory:
            for plan in self.plans.values():
                self.reader.keep(plan, self.device)
        largest = max(plan.nbytes for plan in self.plans.values())
        staged = self.device.type != "cpu" and not in_memory
        self.slots = [Slot(largest, self.device, staged) for _ in range(min(2, len(self.plans)))]
        self.current: Slot | None = None
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="weights")
        # A read that nobody waits for any more ends with its piece, not with its block.
        self.end = weakref.finalize(self, self.reader.stop.set)

    @property
    def nbytes(self) -> int:
        """What one pass through the network brings in."""
        return sum(plan.nbytes for plan in self.plans.values())

    @property
    def buffer_bytes(self) -> int:
        """What the buffers take on the compute device."""
        return sum(slot.buffer.numel() for slot in self.slots)

    def fetch(self, index: int) -> None:
        """Put the weights of a block in place, and begin to bring in those of the next streamed one."""
        if not self.slots:
            raise InputError("The streaming of weights was closed. Load the network again.")
        slot = next((s for s in self.slots if s.index == index), None) or self._begin(index)
        self._wait(slot)
        if slot is not self.current:
            slot.begin_use()
            self._bind(self.plans[index], slot.buffer)
            self.current = slot
        following = self.following[index]
        if all(s.index != following for s in self.slots):
            self._begin(following)

    def close(self) -> None:
        """Stop reading, and give the buffers back. The network cannot be run any more."""
        self.end()
        self.worker.shutdown(wait=True, cancel_futures=True)
        for slot in self.slots:
            if slot.index is not None:
                self._bind(self.plans[slot.index], None)
        self.slots, self.current = [], None

    def _begin(self, index: int) -> Slot:
        """Start filling the slot that is not computed from."""
        slot = next((s for s in self.slots if s is not self.current), self.slots[0])
        if slot.filling is not None:  # left behind by a pass that was broken off
            slot.filling.exception()
        if slot.index is not None:
            self._bind(self.plans[slot.index], None)
        slot.end_use()
        slot.index = None
        slot.filling = self.worker.submit(fill, slot, self.plans[index], self.reader)
        slot.index = index  # last, so that an interrupt between leaves no slot that seems to be full
        return slot

    def _wait(self, slot: Slot) -> None:
        if slot.filling is None:
            return
        try:
            slot.filling.result()
        except BaseException:
            if slot.filling.done():
                slot.index = None
            raise
        slot.filling = None

    def _bind(self, plan: Plan, buffer: Tensor | None) -> None:
        """Make parameters of the parts of a buffer; without one, of the meta device."""
        for place in plan.places:
            weight = (torch.empty(place.shape, dtype=place.dtype, device="meta") if buffer is None
                      else place.view(buffer))
            place.owner._parameters[place.leaf] = nn.Parameter(weight, requires_grad=False)


@dataclass(frozen=True)
class Fetch:
    """The hook of a streamed block."""

    streamer: BlockStreamer
    index: int

    def __call__(self, block: nn.Module, inputs: tuple) -> None:
        self.streamer.fetch(self.index)
