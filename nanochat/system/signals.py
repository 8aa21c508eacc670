"""Asking a run to end: SIGTERM or SIGINT becomes a flag that the training loop reads.

Owns the two signals' handlers while training lasts. A second Ctrl-C does what it always did; a
second SIGTERM does nothing more: a scheduler and torchrun may both send one.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def asked_to_stop(*, announce: bool) -> Iterator[Callable[[], bool]]:
    """Yield what tells whether a signal has come since.

    announce: say on stderr that it has, as the step may take a while.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set  # only the main thread may set handlers
        return

    def restore(*numbers: signal.Signals) -> None:
        for number in numbers:
            signal.signal(number, before[number])

    def note(number: int, frame: FrameType | None) -> None:
        asked.set()
        if number == signal.SIGINT:
            restore(signal.SIGINT)
        if announce:
            name = signal.Signals(number).name
            # print may not be called while it is at work below
            os.write(sys.stderr.fileno(), f"{name}: saving after this step\n".encode())

    # A program started in the background has its SIGINT ignored, and means it.
    before = {n: signal.getsignal(n) for n in SIGNALS if signal.getsignal(n) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, note)
    try:
        yield asked.is_set
    finally:
        restore(*before)
