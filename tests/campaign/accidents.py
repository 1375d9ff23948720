"""What happens while a clip is made: cancels, signals, full disks, no memory, other writers, files that change."""

import io
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from .judge import Case, judge
from .workshop import Workshop, command, replace

SIGNALS = {"INT": signal.SIGINT, "TERM": signal.SIGTERM, "HUP": signal.SIGHUP, "QUIT": signal.SIGQUIT,
           "KILL": signal.SIGKILL, "USR1": signal.SIGUSR1}


def raising(run: Callable[[], int], error: type[BaseException], calls: int, struck: Path) -> Callable[[], int]:
    """The same, but that the call of this number of a function of the core, in whatever stage, raises an error.

    struck: a file that is written when it does.
    """
    def changed() -> int:
        left, begun = calls, False

        def count(frame, event: str, argument: object) -> None:
            nonlocal left, begun
            if event != "call" or "magihuman_core" not in frame.f_code.co_filename:
                return
            begun = begun or frame.f_code.co_name == "_run"  # the options are read
            if begun and _interrupts(frame):
                left -= 1
                if left == 0:
                    sys.setprofile(None)
                    struck.touch()
                    raise error

        sys.setprofile(count)
        try:
            return run()
        finally:
            sys.setprofile(None)

    return changed


def _interrupts(frame) -> bool:
    """Not in the words for an error, after the command itself; nor where Python drops what is raised (a weak reference
    that ends): a signal there is lost in any program."""
    return not frame.f_code.co_filename.endswith(("cli/program.py", "cli/console.py", "errors.py", "dry_run.py"))


def _work(workshop: Workshop, chance: random.Random, folder: Path) -> tuple[Callable[[], int], list[Path], str]:
    """A command that writes, all stages among them."""
    out = folder / "out.mp4"
    name = chance.choice(["generate", "upscale", "latents", "voice", "extend", "dub", "convert", "decode"])
    models = ["--models", workshop.models, "--device", "cpu", "--out", out]
    small = ["--width", "64", "--height", "32", "--steps", "1", "--prompt", "hello"]
    media = workshop.media
    if name == "convert":
        out = folder / "out.safetensors"
        return command("convert", workshop.models / "distill", out, "--dtype", "int8"), [out], name
    if name == "latents":
        latents = folder / "latents.safetensors"
        return workshop.generate(out, "--save-latents", latents), [out, latents], name
    if name == "voice":
        out = folder / "out.wav"
        return workshop.generate(out, "--audio-only"), [out], name
    commands = {
        "generate": workshop.generate(out), "upscale": workshop.generate(out, "--upscale", "64x64"),
        "extend": command("extend", media / "a.mp4", "--seconds", "0.2", *models, *small),
        "dub": command("dub", media / "a.mp4", "--audio", media / "a.wav", "--mouth", ".5,.5,.4,.4", *models, *small),
        "decode": command("decode", media / "latents.safetensors", *models),
    }
    return commands[name], [out], name


def _some_calls(chance: random.Random) -> int:
    """Of the 14,000 (convert) to 98,000 (extend) of a command; the few of reading files as often as the rest."""
    return chance.randrange(1, 80000) if chance.random() < 0.7 else int(10 ** chance.uniform(0, 4))


def cancels(workshop: Workshop, chance: random.Random) -> Case:
    """Ctrl-C at any call of a function of the core, once the options are read; of some numbers it comes too late."""
    folder = workshop.case_folder()
    run, outs, name = _work(workshop, chance, folder)
    calls = _some_calls(chance)
    struck = folder.with_suffix(".struck")
    return Case(raising(run, KeyboardInterrupt, calls, struck), folder, f"{name}, Ctrl-C at call {calls}", outs,
                stops=True, struck=struck)


def memory(workshop: Workshop, chance: random.Random) -> Case:
    """An allocation that fails at any call."""
    folder = workshop.case_folder()
    run, outs, name = _work(workshop, chance, folder)
    calls, error = _some_calls(chance), chance.choice([MemoryError, torch.OutOfMemoryError])
    struck = folder.with_suffix(".struck")
    return Case(raising(run, error, calls, struck), folder, f"{name}, {error.__name__} at call {calls}", outs,
                late=True, struck=struck)


def signals(workshop: Workshop, chance: random.Random) -> Case:
    """A signal from outside at any time. What one that cannot be caught leaves, the next command removes."""
    folder = workshop.case_folder()
    run, outs, name = _work(workshop, chance, folder)
    which, delay = chance.choice(sorted(SIGNALS)), chance.uniform(0, 1.2)

    def disturb(process: int) -> None:
        time.sleep(delay)
        os.kill(process, SIGNALS[which])

    def uncored() -> int:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        return run()

    def again() -> str:
        verdict = judge(Case(run, folder, "the same again", outs))
        return verdict.why and f"after {which}: {verdict.why}"

    return Case(uncored, folder, f"{name}, {which} after {delay:.2f} s", outs, disturb=disturb, stops=True,
                killed=(SIGNALS[which],), after=again if which in ("KILL", "QUIT", "USR1") else None)


def disks(workshop: Workshop, chance: random.Random) -> Case:
    """A disk of few bytes, where the system lets us make one, or a limit on the size of files"""
    folder = workshop.case_folder()
    size = int(10 ** chance.uniform(0, 6.3))
    disk = folder / "disk"
    disk.mkdir()
    small = chance.random() < 0.6 and _mount("-t", "tmpfs", "-o", f"size={max(size, 4096)}", "none", str(disk))
    run, outs, name = _work(workshop, chance, disk)

    def limited() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        sys.stdout = sys.stderr = Capped(sys.stdout, size)  # the log is a file, too
        return run()

    return Case(run if small else limited, folder, f"{name}, {size} bytes {'of disk' if small else 'a file'}", outs,
                late=True, quiet=not small, clean=(lambda: _unmount(disk)) if small else None)


def _mount(*arguments: str) -> bool:
    """Whether a file system could be mounted: Linux, and as root."""
    mount = shutil.which("mount")
    return mount is not None and subprocess.run([mount, *arguments], capture_output=True, check=False).returncode == 0


def _unmount(disk: Path) -> None:
    subprocess.run([shutil.which("umount") or "umount", str(disk)], capture_output=True, check=False)


class Capped(io.TextIOBase):
    """The log while files are limited: it keeps what fits."""

    def __init__(self, file, size: int) -> None:
        self.file, self.left = file, size

    def write(self, text: str) -> int:
        piece = text.rsplit("\r", 1)[-1] if self.left < 4000 else text
        if len(piece) < self.left:
            self.left -= len(piece.encode(errors="replace"))
            self.file.write(piece)
            self.file.flush()
        return len(text)


def writers(workshop: Workshop, chance: random.Random) -> Case:
    """Two commands that write the same file."""
    folder = workshop.case_folder()
    out = folder / "out.mp4"
    first, second = (workshop.generate(out, "--seed", chance.randrange(99)) for _ in range(2))
    return Case(first, folder, "two writers", [out], also=[second])


def changing(workshop: Workshop, chance: random.Random) -> Case:
    """A file that is replaced, cut, emptied or removed while it is used."""
    folder = workshop.case_folder()
    models = workshop.copy_models(folder)
    path = chance.choice(sorted((models / chance.choice(["distill", "vae", "audio_vae", "text_encoder"])).iterdir()))
    way, delay = chance.choice(["replaced", "cut", "emptied", "removed", "written"]), chance.uniform(0, 0.8)
    content = path.read_bytes()
    replace(path, content)  # no link any more
    other, _ = damaged_in_place(content, chance)

    def disturb(process: int) -> None:
        time.sleep(delay)
        if way == "replaced":
            new = path.with_name("new")
            new.write_bytes(other)
            new.replace(path)
        elif way == "removed":
            path.unlink()
        elif way == "written":
            with path.open("r+b") as file:
                file.write(other)
        else:
            os.truncate(path, 0 if way == "emptied" else len(content) // 2)

    if "distill" in str(path) and chance.random() < 0.5:
        out = folder / "out.safetensors"
        run = command("convert", models / "distill", out)
    else:
        out = folder / "out.mp4"
        streamed = ["--stream-from", "file", "--resident-blocks", "1"] if chance.random() < 0.5 else []
        run = workshop.generate(out, *streamed, models=models)
    return Case(run, folder, f"{path.relative_to(models)} {way} after {delay:.2f} s", [out], changed=[path],
                disturb=disturb)


def damaged_in_place(content: bytes, chance: random.Random) -> tuple[bytes, int]:
    """As long as before, another model: the last quarter is zero."""
    place = len(content) * 3 // 4
    return content[:place] + bytes(len(content) - place), place


KINDS = {"cancels": cancels, "memory": memory, "signals": signals, "disks": disks, "writers": writers,
         "changing": changing}
