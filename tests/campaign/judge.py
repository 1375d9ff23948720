"""Run one case in a process of its own, and say what became of it.

A case must end in success or in one clear sentence, within bounds of time and memory, with no input changed and nothing
under an output's name but whole files. Processes are forked from one that has imported everything, so that a case
costs as much as its own work; so the campaign needs Linux or macOS.
"""

import contextlib
import os
import re
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

SHARED = ("models", "media")  # folders beside those of the cases, which many read
SECONDS = 2.0  # of the processor, until something is refused
MEMORY = 500 * 2**20  # bytes over what the process had when the case began
HANGS = 60.0  # seconds of the clock
REFUSED = {2, 3, 4}  # exit codes: the input, the weights, the machine
STOPPED = {128 + number for number in (1, 2, 15)}
SENTENCE = re.compile(r"magihuman[\w ]*: .{16,1500}", re.DOTALL)
OURS = re.compile(r"Traceback \(most recent|internal error|Segmentation|Aborted", re.IGNORECASE)


@dataclass
class Case:
    """What is done, and what may come of it.

    run: in the new process; gives an exit code. folder: all files of the case; what is in it must stay as it is, but
    for `outputs`, files that may appear, and `changed`, files that the case itself changes. disturb: what is done to
    the process from outside, by its number. killed: signals that it may die of.
    """

    run: Callable[[], int]
    folder: Path
    words: str
    outputs: Sequence[Path] = ()
    changed: Sequence[Path] = ()
    disturb: Callable[[int], None] | None = None
    killed: Sequence[int] = ()
    stops: bool = False
    problems: bool = False  # exit code 1 is an answer, as of `inspect`
    writes: bool = True  # where it says that it is done, an output is there
    late: bool = False  # what goes wrong does so after work, which the bound of time does not count
    quiet: bool = False  # the last sentence may not fit
    after: Callable[[], str] | None = None  # a last look, which gives what is wrong
    clean: Callable[[], object] | None = None  # what is to be undone at the end
    also: Sequence[Callable[[], int]] = field(default=())  # runs at the same time
    struck: Path | None = None  # a file that stands for: the accident has happened while it worked

    def judged(self) -> "Verdict":
        """Run it and look at what it left."""
        return judge(self)


@dataclass
class Verdict:
    """How a case ended, and what it took.

    kind: done | refused | stopped | core (an error of ComfyUI's own) | fault; said: what the user read; seconds of the
    processor; memory: bytes over what the process had when the case began; struck: whether the accident happened.
    """

    kind: str
    said: str
    seconds: float
    memory: int
    why: str = ""
    struck: bool = False


def judge(case: Case) -> Verdict:
    """Run a case and look at what it left."""
    before = _state(case)
    logs = [case.folder.parent / f"{case.folder.name}.{number}.txt" for number in range(1 + len(case.also))]
    processes = [_start(run, log) for run, log in zip([case.run, *case.also], logs, strict=True)]
    if case.disturb is not None:
        case.disturb(processes[0])
    verdicts = [_ended(case, process, log) for process, log in zip(processes, logs, strict=True)]
    verdict = next((found for found in verdicts if found.kind == "fault"), verdicts[0])
    if case.struck is not None:
        verdict.struck = case.struck.exists()
        case.struck.unlink(missing_ok=True)
    if verdict.kind != "fault":
        verdict.why = _left(case, before, done=any(found.kind == "done" for found in verdicts),
                            killed=verdict.said == "killed")
        if not verdict.why and case.after is not None:
            verdict.why = case.after()
        verdict.kind = "fault" if verdict.why else verdict.kind
    for log in logs:
        log.unlink(missing_ok=True)  # a last look may have taken it
    return verdict


def _start(run: Callable[[], int], log: Path) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    log.touch()  # whatever becomes of the process
    process = os.fork()
    if process:
        return process
    code = 99
    try:
        with log.open("w", encoding="utf-8", errors="backslashreplace") as file:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            sys.stdout = sys.stderr = file
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                number = getattr(signal, name)
                signal.signal(number, signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL)
            # tqdm's own lock is shared with all that were forked: one that is killed with it in hand stops all others.
            tqdm.set_lock(threading.RLock())
            try:
                code = run()
            except SystemExit as error:
                code = error.code if isinstance(error.code, int) else 1
            except KeyboardInterrupt:  # before the command had begun
                code = 130
            except BaseException:
                traceback.print_exc()
    finally:
        os._exit(code)


def _ended(case: Case, process: int, log: Path) -> Verdict:
    end, started, most = time.monotonic() + HANGS, anonymous_memory(process), 0
    while True:
        most = max(most, anonymous_memory(process))
        found, status, usage = os.wait4(process, os.WNOHANG)
        if found:
            break
        if time.monotonic() > end:
            os.kill(process, signal.SIGKILL)
            os.wait4(process, 0)
            return Verdict("fault", _last(log), HANGS, 0, f"did not end within {HANGS:g} s")
        time.sleep(0.005)
    if not most:  # macOS: the peak with all libraries, in bytes, over what this process has had
        most, started = usage.ru_maxrss, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    verdict = Verdict("done", _last(log), usage.ru_utime + usage.ru_stime, max(0, most - started))
    code = os.waitstatus_to_exitcode(status)
    text = log.read_text(encoding="utf-8", errors="replace")
    if code < 0 and -code in case.killed:
        verdict.kind, verdict.said = "stopped", "killed"
    elif code in STOPPED and case.stops:
        verdict.kind = "stopped"
    elif code in REFUSED or (code == 1 and case.problems):
        verdict.kind = "refused"
        if code != 1 and not case.quiet and not SENTENCE.fullmatch(verdict.said):
            verdict.why = "no clear sentence"
        elif verdict.seconds > SECONDS * (5 if code == 1 else 1) and not (case.stops or case.disturb or case.late):
            verdict.why = f"{verdict.seconds:.1f} s until it was refused"
        elif verdict.memory > MEMORY:
            verdict.why = f"{verdict.memory >> 20} MiB until it was refused"
    elif code != 0:
        verdict.why = f"exit code {code}"
    if OURS.search(text):
        verdict.why = f"a fault of the program's own, exit code {code}"
        verdict.said = text[-3000:]
    if verdict.why:
        verdict.kind = "fault"
    return verdict


def _last(log: Path) -> str:
    """The last message, without progress bars and the lines of the usage that stand before it."""
    text = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")
    place = max(text.rfind("\nmagihuman"), 0)
    return text[place:].strip()


def _state(case: Case) -> dict[Path, tuple]:
    """What tells each file that must stay as it is from any other, and from one that was written to."""
    free = {*case.outputs, *case.changed}
    folders = [case.folder, *(case.folder.parent / name for name in SHARED)]
    return {path: (status.st_ino, status.st_size, status.st_mtime_ns) for folder in folders
            for path in sorted(folder.rglob("*")) if path not in free and path.is_file() and (status := path.stat())}


def _left(case: Case, before: dict[Path, tuple], *, done: bool, killed: bool) -> str:
    """What is wrong with the files; empty if nothing is."""
    after = _state(case)
    parts = [path for path in after if path.name.endswith(".part")]
    if parts and not killed:
        return f"left behind: {parts[0].name}"
    for path in before:
        if path.suffix != ".part" and after.get(path) != before[path]:
            return f"changed: {path.name}"
    if extra := sorted(after.keys() - before.keys() - set(parts)):
        return f"written, and nobody asked for it: {extra[0].name}"
    there = [path for path in case.outputs if path.is_file()]
    if done and case.writes and not there:
        return "reported as done, and nothing was written"
    for path in there:
        try:
            check_whole(path)
        except Exception as error:
            return f"{path.name} is not whole: {error}"
    return ""


def check_whole(path: Path) -> None:
    """Raise where a file of ours cannot be read to its end."""
    found = read_whole(path)
    wanted = {".wav": {"AudioFrame"}, ".mp4": {"AudioFrame", "VideoFrame"}}.get(path.suffix, found)
    if found != wanted:
        raise ValueError(f"it holds {sorted(found)}")


def read_whole(path: Path) -> set[str]:
    """Read a file to its end; the kinds of frames of a recording. Raises where that cannot be done."""
    import av
    from PIL import Image
    from safetensors.torch import load_file

    if path.suffix in (".safetensors", ".latent"):
        load_file(path)
    elif path.suffix == ".png":
        with Image.open(path) as image:
            image.load()
    else:
        with av.open(str(path)) as container:
            return {frame.__class__.__name__ for stream in container.streams for frame in _frames(path, stream.index)}
    return set()


def _frames(path: Path, index: int):
    import av

    with av.open(str(path)) as container:
        yield from container.decode(container.streams[index])


def anonymous_memory(process: int) -> int:
    """Bytes that a process holds now and that are no file's; 0 where the system does not tell.

    Libraries and weights are files, which a new process maps as it goes; a fork has all else from the beginning. Asked
    for every few milliseconds, it misses no more than was written between.
    """
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "RssShmem:")))
    return 0
