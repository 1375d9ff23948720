"""`magihuman live` of the demo through real pipes: work per second of speech, the wait for the first frame, memory.

usage: python -m benchmarks.live [--quick]

Twice: sound as fast as it is taken, which shows how much work a second of speech is; and as fast as people speak, which
shows how long after its window of sound the first frame comes.
"""

import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress

import av
import numpy as np

from magihuman_core.loading.folder import DEMO
from magihuman_core.recipes import DISTILLED
from magihuman_core.sizes import FPS
from magihuman_core.weights.open import open_checkpoint
from magihuman_core.weights.roles import window_seconds

from .measure import Row, command_line, main, resident

RATE = 16000
PROMPT = 'A happy woman with black hair and a blue shirt. As she says: "ma so mi"'
PIECE = 0.1  # seconds that are sent at once


def speech(seconds: float) -> np.ndarray:
    """PCM of syllables: a voice's hum that swells four times a second."""
    t = np.arange(round(seconds * RATE)) / RATE
    hum = sum(np.sin(2 * np.pi * 140 * n * t) / n for n in range(1, 12))
    return (6000 * hum * np.sin(4 * np.pi * t) ** 2).astype("<i2")


class Stream:
    """The command with a sender at its one pipe; frames come out of the other. Ends with the block it is used in."""

    def __init__(self, seconds: float, as_spoken: bool) -> None:
        command = [sys.executable, "-m", "magihuman_core", "live", "--models", DEMO, "--prompt", PROMPT, "-v"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,  # noqa: S603
                                        stderr=subprocess.PIPE, bufsize=0)  # read what is there, not as much as asked
        self.said: deque[bytes] = deque(maxlen=3)  # the last lines of its log
        self.sent: list[float] = []  # when each piece had gone
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            if b"The models are loaded" in line:
                break
        else:
            raise self._ended()
        threading.Thread(target=self.said.extend, args=(self.process.stderr,), daemon=True).start()  # it never waits
        threading.Thread(target=self._send, args=(speech(seconds), as_spoken), daemon=True).start()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()  # which does nothing where it has ended
        self.process.wait()

    def _ended(self) -> RuntimeError:
        code = self.process.wait()
        return RuntimeError(f"magihuman live ended with {code}: {b''.join(self.said).decode(errors='replace').strip()}")

    def _send(self, samples: np.ndarray, as_spoken: bool) -> None:
        stdin = self.process.stdin
        assert stdin is not None
        began = time.perf_counter()
        with suppress(OSError), stdin:  # where the command has ended, its code says so
            for number, piece in enumerate(np.array_split(samples, round(len(samples) / RATE / PIECE))):
                if as_spoken:
                    time.sleep(max(0.0, began + (number + 1) * PIECE - time.perf_counter()))
                stdin.write(piece.tobytes())
                self.sent.append(time.perf_counter())

    def frames(self) -> Iterator[float]:
        """When each frame came. Raises RuntimeError where the command failed."""
        assert self.process.stdout is not None
        # Without looking seconds ahead for what the header says already, as players of live streams are told to.
        with av.open(self.process.stdout, "r", options={"probesize": "5000", "analyzeduration": "1"}) as container:
            for _ in container.decode(video=0):
                yield time.perf_counter()
        if self.process.wait():
            raise self._ended()


def rows(quick: bool = False) -> Iterator[Row]:
    came: list[float] = []
    early, late = None, None
    with Stream(12.0 if quick else 60.0, as_spoken=False) as stream:
        for moment in stream.frames():
            came.append(moment)
            if len(came) % FPS == 0:
                late = resident("VmRSS", stream.process.pid) or late  # which has none once it has ended
                early = late if len(came) == 5 * FPS else early
    # The first window's frames come together; from there on each second of speech takes its time.
    window = window_seconds(DISTILLED, open_checkpoint(DEMO / "distill", "network").metadata)
    begun = round(window * FPS)
    work = (came[-1] - came[begun - 1]) / (len(came) - begun) * FPS
    yield Row(f"seconds of work for a second of speech, over {len(came) / FPS:.0f} s in windows of {window:g} s", work,
              "s")
    for name, memory in (("after 5 s", early), ("at the end", late)):
        yield Row(f"memory {name}", None if memory is None else memory / 2**20, "MiB")
    with Stream(6.0, as_spoken=True) as stream:
        came = list(stream.frames())
    heard = stream.sent[round(window / PIECE) - 1]
    yield Row("from the last sound of the first window to its first frame", came[0] - heard, "s")


if __name__ == "__main__":
    raise SystemExit(main(rows, command_line(__doc__)))
