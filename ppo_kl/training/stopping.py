"""SIGINT, SIGTERM and SIGHUP end a run early and lose nothing of it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """A signal came while something ran that may be left half-way; no `Exception`, for nobody shall answer it."""


class StopRequest:
    """The first signal asks to stop, the second ends the process at once, with 128 + its number."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._interrupts = False

    @contextmanager
    def interrupts(self) -> Iterator[None]:
        """A signal need not wait for the end of what is done here: `Stopped` is raised in the middle of it.

        It comes wherever Python is, as Ctrl-C does, so that a long rollout, update or evaluation ends at once, and so
        does an environment that waits for something.
        """
        try:
            self._interrupts = True
            if self.signal is not None:
                raise Stopped
            yield
        finally:
            self._interrupts = False

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        """The handler."""
        if self.signal is not None:
            raise SystemExit(128 + number)
        self.signal = signal.Signals(number)
        if self._interrupts:
            raise Stopped


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Signals ask to stop; afterwards they do what they did before. Only a process's main thread can be asked.

    A hang-up that is ignored, as under nohup, stays ignored.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    ignored = before[signal.SIGHUP] is signal.SIG_IGN
    try:
        for number in SIGNALS[:-1] if ignored else SIGNALS:
            signal.signal(number, stop.on_signal)
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
