"""`magihuman live` of the demo through real pipes: work per second of speech, the wait for the first frame, memory.

usage: python -m benchmarks.live [--quick]

Twice: sound as fast as it is taken, which shows how much work a second of speech is; and as fast as people speak, which
shows how long after its window of sound the first frame comes.
"""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import av
import numpy as np

from magihuman_core.errors import InputError
from magihuman_core.loading.folder import DEMO
from magihuman_core.recipes import DISTILLED
from magihuman_core.sizes import FPS
from magihuman_core.weights.open import open_checkpoint
from magihuman_core.weights.roles import window_seconds

from .measure import Row, main, resident

RATE = 16000
PROMPT = 'A happy woman with black hair and a blue shirt. As she says: "ma so mi"'
PIECE = 0.1  # seconds that are sent at once


def speech(seconds: float) -> np.ndarray:
    """PCM of syllables: a voice's hum that swells four times a second."""
    t = np.arange(round(seconds * RATE)) / RATE
    hum = sum(np.sin(2 * np.pi * 140 * n * t) / n for n in range(1, 12))
    return (6000 * hum * np.sin(4 * np.pi * t) ** 2).astype("<i2")


class Stream:
    """The command with a sender at its one pipe; frames come out of the other."""

    def __init__(self, seconds: float, as_spoken: bool) -> None:
        command = [sys.executable, "-m", "magihuman_core", "live", "--models", DEMO, "--prompt", PROMPT, "-v"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,  # noqa: S603
                                        stderr=subprocess.PIPE, bufsize=0)  # read what is there, not as much as asked
        assert self.process.stderr is not None
        log = iter(self.process.stderr.readline, b"")
        if not any(b"The models are loaded" in line for line in log):
            raise InputError("magihuman live ended before it was ready.")
        threading.Thread(target=list, args=(log,), daemon=True).start()  # so that it never waits for us
        self.sent: list[float] = []  # when each piece had gone
        threading.Thread(target=self._send, args=(speech(seconds), as_spoken), daemon=True).start()

    def _send(self, samples: np.ndarray, as_spoken: bool) -> None:
        stdin = self.process.stdin
        assert stdin is not None
        began = time.perf_counter()
        for number, piece in enumerate(np.array_split(samples, round(len(samples) / RATE / PIECE))):
            if as_spoken:
                time.sleep(max(0.0, began + (number + 1) * PIECE - time.perf_counter()))
            stdin.write(piece.tobytes())
            stdin.flush()
            self.sent.append(time.perf_counter())
        stdin.close()

    def frames(self) -> Iterator[float]:
        """When each frame came."""
        assert self.process.stdout is not None
        # Without looking seconds ahead for what the header says already, as players of live streams are told to.
        with av.open(self.process.stdout, "r", options={"probesize": "5000", "analyzeduration": "1"}) as container:
            for _ in container.decode(video=0):
                yield time.perf_counter()
        self.process.wait()


def rows(quick: bool = False) -> list[Row]:
    seconds = 12.0 if quick else 60.0
    stream, came, early, late = Stream(seconds, as_spoken=False), [], 0.0, 0.0
    for moment in stream.frames():
        came.append(moment)
        if sys.platform == "linux" and len(came) % FPS == 0 and stream.process.poll() is None:
            late = resident("VmRSS", stream.process.pid) / 2**20
            early = early or late if len(came) >= 5 * FPS else 0.0
    # The first window's frames come together; from there on each second of speech takes its time.
    window = window_seconds(DISTILLED, open_checkpoint(DEMO / "distill", "network").metadata)
    begun = round(window * FPS)
    work = (came[-1] - came[begun - 1]) / (len(came) - begun) * FPS
    over = f"over {len(came) / FPS:.0f} s in windows of {window:g} s"
    found = [Row(f"seconds of work for a second of speech, {over}", work, "s"),
             Row("memory after 5 s", early or None, "MB"), Row("memory at the end", late or None, "MB")]
    stream = Stream(6.0, as_spoken=True)
    came = list(stream.frames())
    heard = stream.sent[round(window / PIECE) - 1]
    found.append(Row("from the last sound of the first window to its first frame", came[0] - heard, "s"))
    return found


if __name__ == "__main__":
    main(rows, __doc__)
