"""Asking a run to end: the first SIGTERM or SIGINT becomes a flag that the training loop reads.

Owns the two signals' handlers while training lasts. A second signal does what it always did.
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

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        asked.set()
        restore()
        if announce:
            name = signal.Signals(number).name
            # print may not be called while it is at work below
            os.write(sys.stderr.fileno(), f"{name}: saving after this step\n".encode())

    # A program started in the background has its SIGINT ignored, and means it.
    heeded = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in heeded}
    try:
        yield asked.is_set
    finally:
        restore()
