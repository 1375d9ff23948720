"""Several processes that make one clip: the first leads, and calls the others to sample and to decode with it.

torchrun starts them all with the same command. The leader reads the request, encodes, writes, and tells of progress;
what it calls the others to is a stage and its arguments, sent to all. So a helper needs nothing but the files of the
models, under the same paths. All talk by torch.distributed, between CPUs by gloo and between GPUs by nccl.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, is_dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import InputError, LostRankError, is_out_of_memory
from ..runtime.devices import release_memory
from ..runtime.parallel import talking

if TYPE_CHECKING:
    from .parts import Parts

Item = TypeVar("Item")
CPU = torch.device("cpu")
GRACE = 10.0  # seconds in which a process that was told to stop may do so by itself
PATIENCE = timedelta(days=7)  # helpers wait while the leader reads, encodes and writes


class Ended(Exception):  # noqa: N818 - no error
    """The leader wants no more of what is being computed."""


@dataclass
class Crew:
    """The processes that make a clip together. neighbours: how many of them this machine has."""

    rank: int
    count: int
    neighbours: int
    place: int  # of this process among its neighbours
    store: dist.Store = field(repr=False)
    busy: bool = False  # the helpers are at work, and do not wait for a call

    @classmethod
    def join(cls) -> Crew:
        """Wait for all processes that torchrun started."""
        store, rank, count = next(iter(dist.rendezvous("env://", timeout=PATIENCE)))
        gpus = torch.cuda.is_available() and dist.is_nccl_available()
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", store=dist.PrefixStore("group", store),
                                rank=rank, world_size=count, timeout=PATIENCE)
        neighbours, place = (int(os.environ.get(name, value)) for name, value in (("LOCAL_WORLD_SIZE", count),
                                                                                  ("LOCAL_RANK", rank)))
        return cls(rank, count, neighbours, place, dist.PrefixStore("crew", store))

    def device(self, device: str | torch.device) -> torch.device:
        """Where this process computes: "cuda", a GPU of its own, or "cpu". Raises InputError for what is not there."""
        if str(device) not in ("cuda", "cpu"):
            raise InputError(f"device {device}: with several processes each takes its own GPU. Say cuda, cpu or auto.")
        if str(device) == "cpu":
            return torch.device("cpu")
        found = torch.cuda.device_count()
        if self.neighbours > found:
            raise InputError(f"This machine has {found} GPUs that PyTorch can use, fewer than the {self.neighbours} "
                             f"processes that were started on it. Start torchrun with --nproc-per-node {max(found, 1)}"
                             f"{'' if found else ', or say --device cpu'}.")
        if not dist.is_nccl_available():
            raise InputError("This PyTorch has no NCCL, by which GPUs talk to each other. Start one process only.")
        torch.cuda.set_device(self.place)
        return torch.device("cuda", self.place)

    def first_to_speak(self) -> bool:
        """Whether no process of this run has said yet why it ended: one sentence is enough."""
        with suppress(RuntimeError):  # what all share may be gone, too
            return self.store.add("said", 1) == 1
        return True

    def watch(self, say: Callable[[Exception], int]) -> None:
        """End this process where it was told to stop and does not: a GPU that waits for a lost one lets nobody in.

        No file is open then: while one is written the processes talk by way of their CPUs.
        """
        if os.name != "posix":
            return
        told, tell = os.pipe()
        os.set_blocking(tell, False)
        signal.set_wakeup_fd(tell)  # Python writes there what signals come, whatever else it waits for

        def end_late() -> None:
            while os.read(told, 1) != bytes([signal.SIGTERM]):
                pass
            time.sleep(GRACE)
            os._exit(say(LostRankError()))

        threading.Thread(target=end_late, daemon=True).start()

    # What the leader does.

    @contextmanager
    def calling(self, stage: Callable[..., Any], parts: Parts, *arguments: Any) -> Iterator[None]:
        """Let all helpers run stage(parts, *arguments), while the leader does its own share in this block."""
        if self.busy:
            raise InputError("Two clips cannot be made at once by several processes: finish or close the first one.")
        self._send((stage, replace(parts, crew=None, keep=False, kept={}), in_main_memory(arguments)))
        self.busy = True
        yield
        self.busy = False

    def end(self) -> None:
        """Let the helpers go, where they wait for a call. Those that are at work see that the leader is gone."""
        self.first_to_speak()
        if not self.busy:
            with suppress(LostRankError):
                self._send(None)
                dist.destroy_process_group()

    # What a helper does.

    def serve(self, say: Callable[[Exception], int]) -> int:
        """Do what the leader calls for, until it is done; gives the exit code. say: tells of an error, and gives it."""
        while True:
            try:
                call = self._receive()
                if call is None:
                    dist.destroy_process_group()
                    return 0
                stage, parts, arguments = call
                with torch.inference_mode():
                    device = self.device(parts.device.type)
                    stage(replace(parts, device=device, crew=self), *arguments)
                release_memory(device)
            except Exception as error:
                return say(error)

    # What all do alike, each its share.

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Around calls of `each`, of which the leader may leave the rest undone."""
        if self.rank:
            with suppress(Ended):
                yield
                self._wanted()
            return
        try:
            yield
        finally:
            with suppress(LostRankError):
                for helper in range(1, self.count):
                    self._want(helper, False)
                self.busy = False

    def each(self, function: Callable[[Item], Iterable[Tensor]], items: Sequence[Item]) -> Iterator[Iterable[Tensor]]:
        """As map, shared by all: the leader has all results, in order, the others compute theirs and have none.

        A helper is one item ahead of the leader at most. Raises MemoryError where a helper has no memory left.
        """
        for number, item in enumerate(items):
            owner = number % self.count
            if self.rank == 0:
                yield function(item) if owner == 0 else self._take(owner)
            elif owner == self.rank:
                self._give(function, item)

    def _give(self, function: Callable[[Item], Iterable[Tensor]], item: Item) -> None:
        try:
            found: list[Tensor] | str = [tensor.cpu().contiguous() for tensor in function(item)]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            found = str(error)
        if not self._wanted():
            raise Ended
        with talking():
            if isinstance(found, str):
                dist.send_object_list([found], dst=0, device=CPU)
                return
            dist.send_object_list([[(tensor.shape, tensor.dtype) for tensor in found]], dst=0, device=CPU)
            for tensor in found:
                dist.send(tensor, dst=0)

    def _take(self, helper: int) -> list[Tensor]:
        self._want(helper, True)
        head: list[Any] = [None]
        with talking():
            dist.recv_object_list(head, src=helper, device=CPU)
            if isinstance(head[0], str):
                raise MemoryError(head[0])
            found = [torch.empty(shape, dtype=dtype) for shape, dtype in head[0]]
            for tensor in found:
                dist.recv(tensor, src=helper)
        return found

    def _want(self, helper: int, more: bool) -> None:
        with talking():
            dist.send(torch.tensor([more]), dst=helper)

    def _wanted(self) -> bool:
        answer = torch.zeros(1, dtype=torch.bool)
        with talking():
            dist.recv(answer, src=0)
        return bool(answer)

    def _send(self, call: Any) -> None:
        with talking():
            dist.broadcast_object_list([call], 0, device=CPU)

    def _receive(self) -> Any:
        call = [None]
        with talking():
            dist.broadcast_object_list(call, 0, device=CPU)
        return call[0]


def in_main_memory(value: Any) -> Any:
    """The same value, a dataclass or sequence perhaps, with all its tensors there: others have another device."""
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, (list, tuple)):
        return type(value)(map(in_main_memory, value))
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: in_main_memory(getattr(value, f.name)) for f in fields(value)})
    return value
