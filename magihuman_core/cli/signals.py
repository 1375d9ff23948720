"""Signals that end a command: they unwind it, so that it cleans up as after any error."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

ENDING = ("SIGTERM", "SIGHUP", "SIGBREAK")  # a closed terminal sends the second, a closed window of Windows the third
STOPPED = 128 + signal.SIGTERM
SOON = 0.05  # seconds


@contextmanager
def unwinding() -> Iterator[None]:
    """Raise SystemExit (128 and the number) where a termination signal strikes, as Ctrl-C raises KeyboardInterrupt.

    Neither gets through where Python drops whatever is raised, as in a destructor or the callback of a weak reference,
    so a signal that struck there is given again.
    """
    def stop(number: int, frame) -> None:
        raise SystemExit(128 + number)

    def dropped(what: "sys.UnraisableHookArgs") -> None:
        error = what.exc_value
        if isinstance(error, KeyboardInterrupt):
            number: int = signal.SIGINT
        elif isinstance(error, SystemExit) and error.code in codes:
            number = codes[error.code]
        else:
            report(what)
            return
        # From another thread, since this one is still where it was struck.
        again = threading.Timer(SOON, signal.raise_signal, (number,))
        again.start()
        waiting.append(again)

    before = {}
    with suppress(ValueError):  # not the main thread: its owner takes care of signals
        for name in ENDING:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets it
                before[number] = signal.signal(number, stop)
    codes: dict[object, int] = {128 + number: number for number in before}
    waiting: list[threading.Timer] = []
    report, sys.unraisablehook = sys.unraisablehook, dropped
    try:
        yield
    finally:
        sys.unraisablehook = report
        for again in waiting:
            again.cancel()  # the command has ended
        for number, handler in before.items():
            signal.signal(number, handler)
