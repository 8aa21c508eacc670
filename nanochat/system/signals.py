"""Stop requests: SIGTERM, SIGINT or SIGHUP sets a flag that the training loop reads.

Owns: the handlers of these signals during training. A second Ctrl-C has its usual effect; a second
SIGTERM has none, because a scheduler and torchrun may each send one. Owns too that torchrun's
processes end with it.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

# SIGHUP: the terminal was closed. Windows has none.
SIGNALS = (signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))

_PR_SET_PDEATHSIG = 1  # of Linux' prctl.h


def stop_with_launcher() -> None:
    """Ask for SIGTERM when torchrun dies. Does nothing under other launchers and systems.

    Killed itself, as by a lack of memory, it cannot end its processes: they would train on, keep
    the GPUs' memory, and let nobody resume the stage meanwhile.
    """
    if sys.platform == "linux" and "TORCHELASTIC_RUN_ID" in os.environ:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGTERM))


@contextlib.contextmanager
def asked_to_stop(*, announce: bool) -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether a signal has arrived.

    announce: report the signal on stderr at once, as the current step may take a while.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set  # only the main thread can set handlers
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
            # not print: the signal may have interrupted a print
            with contextlib.suppress(AttributeError, OSError):  # no stderr, or none to write to
                os.write(sys.stderr.fileno(), f"{name}: saving after this step\n".encode())

    # A shell starts background programs with SIGINT ignored, nohup with SIGHUP; keep it so.
    before = {n: signal.getsignal(n) for n in SIGNALS if signal.getsignal(n) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, note)
    try:
        yield asked.is_set
    finally:
        restore(*before)
