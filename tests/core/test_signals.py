"""Signals that strike where Python drops what is raised. A whole command is interrupted in test_cli."""

import signal
import sys
import threading
import time
import weakref

import pytest

from magihuman_core.cli.signals import SOON, unwinding

ENDS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: SystemExit, signal.SIGHUP: SystemExit}


class Struck:
    """Something whose destructor a signal strikes, a number of times over all."""

    left = 0

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        if Struck.left:
            Struck.left -= 1
            signal.raise_signal(self.number)


@pytest.fixture(autouse=True)
def heard(monkeypatch):
    """Handlers as a terminal's program has them, whatever started the tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def die_again_and_again(number: int) -> None:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        Struck(number)
        time.sleep(SOON / 5)


@pytest.mark.parametrize("number", ENDS)
@pytest.mark.parametrize("times", [1, 3])
def test_in_a_destructor(number, times):
    """Three times: it is given again until it strikes where it is heard."""
    Struck.left = times
    with pytest.raises(ENDS[number]) as end, unwinding():
        for _ in range(times):
            Struck(number)
        die_again_and_again(number)
    assert number == signal.SIGINT or end.value.code == 128 + number


@pytest.mark.parametrize("number", ENDS)
def test_in_the_callback_of_a_weak_reference(number):
    things = [Struck(number)]
    Struck.left = 0
    reference = weakref.ref(things[0], lambda _: signal.raise_signal(number))
    with pytest.raises(ENDS[number]), unwinding():
        things.clear()
        die_again_and_again(number)
    assert reference() is None


def test_the_end_of_a_command_is_the_end_of_its_signals():
    hook, Struck.left = sys.unraisablehook, 1
    with unwinding():
        Struck(signal.SIGTERM)
    assert sys.unraisablehook is hook
    time.sleep(2 * SOON)  # would end this process
    assert not any(isinstance(thread, threading.Timer) and thread.is_alive() for thread in threading.enumerate())


def test_what_else_is_dropped_is_told_as_ever(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: seen.append(what.exc_value))

    class Fails:
        def __del__(self) -> None:
            raise SystemExit(3)

    with unwinding():
        Fails()
    assert [error.code for error in seen] == [3]
