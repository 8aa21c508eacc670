"""torchrun, with an end that reads well: python -m nanochat.system.launcher TORCHRUN'S ARGUMENTS

Owns: what is said when a signal or a failing process ends the processes of a run. After a signal
torchrun itself ends with a traceback and status 1, although the stage has saved; after a failure
with a traceback and a table below the one line in which the stage has said why.
"""

import logging
import re
import signal
import sys

from nanochat.system import console


def main(argv: list[str] | None = None) -> int:
    """Launch processes and wait for them; the exit status.

    After a signal it is 0, as for a stage by itself, which saves and ends. Else it is that of the
    first process that failed, or 1 if a signal killed that one.
    """
    # Not every build of torch has them; on one process nobody needs them.
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    for name in ("agent.server.api", "multiprocessing.api"):
        logging.getLogger(f"torch.distributed.elastic.{name}").addFilter(_is_news)
    try:
        torchrun.run(torchrun.parse_args(argv))
    except SignalException as error:
        name = signal.Signals(error.sigval).name
        console.error_line(f"{name}: all processes have ended")
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:
            return failure.exitcode  # the process has said why
        name = signal.Signals(-failure.exitcode).name
        cause = "; the machine may be out of memory" if name == "SIGKILL" else ""
        console.error_line(f"error: the process of rank {rank} was killed by {name}{cause}")
        return 1
    return 0


def _is_news(record: logging.LogRecord) -> bool:
    """Whether torchrun logs what is not said otherwise, such as a process that does not end."""
    return re.search("closing signal|death signal|failed .exitcode", str(record.msg)) is None


if __name__ == "__main__":
    sys.exit(main())
