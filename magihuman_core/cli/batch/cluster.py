"""Jobs side by side: a Ray actor for each GPU, or for a share of the CPUs, that takes one job after another."""

import asyncio
import os
import platform
import signal
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...errors import InputError
from ..console import Exit
from ..version import version
from .here import ShowJob, too_long
from .jobs import Job
from .maker import Maker
from .records import Outcome

ANSWER = 5  # seconds in which an address must answer
CONNECT = 30  # seconds in which a cluster must take us in
CPUS = 4  # that a worker gets where there is no GPU
GONE = 60  # seconds without a machine after which none is expected to come back
LOOK = 5  # seconds between looks at which machines are up
PAUSE = 0.1  # seconds between looks for answers
POLL = 1.0  # seconds between questions to a worker, how far it is


def has_ray() -> bool:
    """Whether Ray is installed; it is not imported."""
    return find_spec("ray") is not None


class Worker:
    """What an actor runs. Two of its methods may run at once: the making of a clip, and questions about it."""

    def __init__(self) -> None:
        self.maker = Maker()
        self.seen = (0.0, "")

    def about(self) -> tuple[str, str]:
        """This machine, and the version here."""
        return platform.node(), version()

    def progress(self) -> tuple[float, str]:
        """The share of the present clip that is done, and what is done now."""
        return self.seen

    def make(self, job: Job) -> Outcome:
        self.seen = (0.0, "beginning")

        def show(share: float, text: str) -> None:
            self.seen = (share, text)

        return self.maker.make(job, show)


@dataclass
class Slot:
    """A worker, and what it was asked last."""

    actor: Any = None  # None: it is not started
    asked: Any = None  # what its answer will come as; None: it is idle
    job: Job | None = None  # None: it is asked about itself, or idle
    started: float = 0.0
    poll: Any = None  # what its answer will come as, how far it is
    polled: float = 0.0


def run_on_ray(jobs: Sequence[Job], *, address: str | None, workers: int | None, gpus: bool, timeout: float | None,
               retries: int, show: ShowJob) -> Iterator[tuple[Job, Outcome]]:
    """Each job with its outcome, as soon as it is known.

    address: of a cluster, None: this machine alone. workers: how many, None: one for each GPU, or
    without GPUs for every 4 CPUs. gpus: whether GPUs are to be used. timeout: seconds for a job, whose worker is ended
    then. retries: how often a job is begun anew whose worker died or had an internal error.
    Raises InputError where there is no cluster, or no worker can be started.
    """
    import ray

    owned = not ray.is_initialized()
    if owned:
        connect(address)
    pool = Pool(jobs, timeout, retries, show)
    try:
        yield from pool.run(*shares(ray.nodes(), workers, gpus))
    finally:
        pool.end()
        if owned:
            ray.shutdown()
        for job in pool.broken_off:
            job.clear_leftovers()


class Pool:
    """Workers that take jobs from one queue."""

    def __init__(self, jobs: Sequence[Job], timeout: float | None, retries: int, show: ShowJob) -> None:
        self.waiting = deque(jobs)
        self.timeout, self.retries, self.show = timeout, retries, show
        self.slots: list[Slot] = []
        self.attempts: dict[str, int] = {}  # by the name of a clip
        self.broken_off: list[Job] = []  # that may have left something
        self.lost_starts = 0  # workers that died before they could say anything, one after another
        self.looked = self.up = time.monotonic()  # when machines were looked for, and found
        self.start: Callable[[], Any]

    def run(self, count: int, options: dict[str, Any]) -> Iterator[tuple[Job, Outcome]]:
        """count: workers; options: of an actor."""
        import ray

        self.start = ray.remote(Worker).options(max_concurrency=2, max_restarts=0, **options).remote
        self.slots = [Slot() for _ in range(min(count, len(self.waiting)))]
        while self.waiting or any(slot.job for slot in self.slots):
            for slot in self.slots:
                if slot.actor is None and self.waiting:
                    slot.actor = self.start()
                    slot.asked = slot.actor.about.remote()
                elif slot.asked is None and self.waiting:
                    self._begin(slot, self.waiting.popleft())
            asked = {slot.asked: slot for slot in self.slots if slot.asked is not None}
            answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=0)
            if not answered:
                time.sleep(PAUSE)  # rather than within Ray, which changes the exit code of a signal that comes then
            for ref in answered:
                yield from self._answer(asked[ref])
            for slot in self.slots:
                yield from self._watch(slot)
            self._check_machines()

    def end(self) -> None:
        """End all workers."""
        for slot in self.slots:
            self._drop(slot)

    def _begin(self, slot: Slot, job: Job) -> None:
        self.attempts[job.name] = self.attempts.get(job.name, 0) + 1
        slot.job, slot.started, slot.poll = job, time.monotonic(), None
        slot.asked = slot.actor.make.remote(job)

    def _drop(self, slot: Slot) -> None:
        """Make room for another worker, where one died or cannot be relied on."""
        if slot.actor is not None:
            _kill(slot.actor)
        if slot.job is not None:
            self.broken_off.append(slot.job)
        slot.actor = slot.asked = slot.job = slot.poll = None

    def _answer(self, slot: Slot) -> Iterator[tuple[Job, Outcome]]:
        import ray

        job = slot.job
        try:
            answer = ray.get(slot.asked)
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[0][:200]
            self._drop(slot)
            if job is None:
                self._check_start(reason)
                return
            answer = Outcome(error=f"the worker that made it died ({reason}). Main memory may have run out: use fewer "
                             "workers (--workers).", code=Exit.INTERNAL)
        else:
            self.lost_starts = 0
            slot.asked = slot.job = slot.poll = None
            if job is None:
                self._check_version(answer)
                return
            if answer.code == Exit.INTERNAL:  # such as a card that takes no more work
                self._drop(slot)
        if answer.code == Exit.INTERNAL and self.attempts[job.name] <= self.retries:
            self.waiting.appendleft(job)
        else:
            yield self._done(job, answer)

    def _watch(self, slot: Slot) -> Iterator[tuple[Job, Outcome]]:
        """How far a worker is, and whether it takes too long."""
        import ray

        job = slot.job
        if job is None:
            return
        if self.timeout is not None and time.monotonic() - slot.started > self.timeout:
            self._drop(slot)
            yield self._done(job, Outcome(error=too_long(self.timeout), code=Exit.INPUT, seconds=self.timeout))
        elif slot.poll is None:
            if time.monotonic() - slot.polled > POLL:
                slot.poll, slot.polled = slot.actor.progress.remote(), time.monotonic()
        elif ray.wait([slot.poll], timeout=0)[0]:
            with suppress(ray.exceptions.RayError):  # the answer to the job itself will say it
                self.show(job, *ray.get(slot.poll))
            slot.poll = None

    def _done(self, job: Job, outcome: Outcome) -> tuple[Job, Outcome]:
        return job, replace(outcome, attempts=self.attempts[job.name])

    def _check_start(self, reason: str) -> None:
        self.lost_starts += 1
        if self.lost_starts > self.retries + len(self.slots):
            raise InputError(f"No worker can be started ({reason}). Install the same magihuman[batch] on every machine "
                             "of the cluster.")

    def _check_version(self, about: tuple[str, str]) -> None:
        host, found = about
        if found != version():
            raise InputError(f"{host}: has magihuman {found}, this machine {version()}. Install the same on every "
                             "machine of the cluster.")

    def _check_machines(self) -> None:
        """Raise InputError where no machine has been up for a while: a worker would be waited for without end."""
        import ray

        now = time.monotonic()
        if now - self.looked < LOOK:
            return
        self.looked = now
        if any(node["Alive"] for node in ray.nodes()):
            self.up = now
        elif now - self.up > GONE:
            raise InputError("No machine of the Ray cluster is up any more. What was made stays: run the same command "
                             "again to go on.")


def _kill(actor: Any) -> None:
    import ray

    with suppress(Exception):  # it is gone already, or the cluster is
        ray.kill(actor)


def shares(nodes: Sequence[dict[str, Any]], workers: int | None, gpus: bool) -> tuple[int, dict[str, Any]]:
    """How many workers there are, and which share of a machine each is given.

    nodes: as ray.nodes() tells them. Raises InputError where nobody can work.
    """
    machines = [node["Resources"] for node in nodes if node["Alive"]]
    cards = [machine for machine in machines if gpus and machine.get("GPU", 0) >= 1]
    if cards:
        amounts = [int(machine["GPU"]) for machine in cards]
        count = workers or sum(amounts)
        each = min(1, _share(amounts, count))
        cpus = min(int(machine.get("CPU", 0) / machine["GPU"]) for machine in cards)
        return count, {"num_gpus": each, "num_cpus": int(cpus * each)}
    cores = [int(machine["CPU"]) for machine in machines if machine.get("CPU", 0) >= 1]
    if not cores:
        raise InputError("The cluster has no machine that is up with a GPU or a CPU. See: ray status.")
    count = workers or sum(max(1, number // CPUS) for number in cores)
    return count, {"num_cpus": _share(cores, count)}


def _share(amounts: Sequence[int], count: int) -> float:
    """The largest equal share of which machines with these amounts have so many."""
    if count > (total := sum(amounts)):
        return 10_000 // -(-count // total) / 10_000  # Ray counts in ten-thousandths
    return next(share for share in range(max(amounts), 0, -1) if sum(amount // share for amount in amounts) >= count)


def connect(address: str | None) -> None:
    """Join the cluster of an address, or (None) make one of this machine. Raises InputError."""
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    wanted = address or "local"
    options: dict[str, Any] = {}
    if wanted == "local":
        options = {"include_dashboard": False, "object_store_memory": 100 << 20}  # only small things are passed
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=wanted, log_to_driver=False, configure_logging=False, **options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{wanted}: Ray cannot be started or joined ({reason}). Without it: --workers 0.") from None
    with suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, handler)  # Ray puts one of its own there, with another exit code


def check_answers(address: str) -> None:
    """Raise InputError unless a cluster answers that takes us in.

    In another process: Ray itself would wait for minutes, and then end this one.
    """
    if address == "local":
        return
    kind, _, place = address.rpartition("://")
    if kind in ("", "ray") and place != "auto":
        host, _, port = (place if ":" in place or not kind else f"{place}:10001").rpartition(":")
        if not host or not port.isdigit():
            raise InputError(f"The address is {address!r}, expected HOST:PORT, ray://HOST:PORT or auto.")
        try:
            asyncio.run(asyncio.wait_for(_reach(host.strip("[]"), int(port)), ANSWER))
        except (OSError, OverflowError, TimeoutError, asyncio.TimeoutError) as error:
            reason = str(error) or "no answer"
            raise InputError(f"{address}: nobody answers there ({reason}). Check the address, and that the cluster "
                             "runs (ray status).") from None
    from torch.multiprocessing import get_context

    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "said"
        tried = get_context("spawn").Process(target=_join, args=(address, str(report)), daemon=True)
        tried.start()
        tried.join(CONNECT)
        said = report.read_text(encoding="utf-8", errors="replace").strip() if report.exists() else ""
        reason = "" if tried.exitcode == 0 else (said.splitlines() or ["it refuses"])[-1]
        if tried.exitcode is None:
            tried.kill()
            tried.join()
            reason = f"not within {CONNECT} s"
        if "InvalidAuthToken" in said:
            reason = "it wants its token: set RAY_AUTH_MODE=token, as for every Ray program"
    if reason:
        raise InputError(f"{address}: no Ray cluster takes us in there ({reason}). Check the address, RAY_AUTH_MODE, "
                         "and that Python and Ray are of the same versions there.")


async def _reach(host: str, port: int) -> None:
    _, writer = await asyncio.open_connection(host, port)
    writer.close()


def _join(address: str, report: str) -> None:
    """In a process of its own: join a cluster; what is said on the way goes into a file."""
    with open(report, "wb") as file:  # noqa: PTH123  Ray's C++ writes to the descriptor
        os.dup2(file.fileno(), 2)
    import ray

    ray.init(address=address, log_to_driver=False, configure_logging=False)
