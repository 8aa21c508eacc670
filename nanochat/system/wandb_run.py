"""A stage's run on Weights & Biases; whatever becomes of it, training goes on.

Owns: logging in, the run's id, and what is lost if the service fails. Does not own: what is logged.
"""

import logging
import secrets
from pathlib import Path
from typing import Any

from nanochat.system.errors import ConfigError

log = logging.getLogger(__name__)

FAILURES = (Exception, SystemExit)  # of a package that has called sys.exit

REMEDY = "log in with `wandb login`, or leave the flag out"


def log_in(project: str) -> None:
    """Make sure that the package is there and has a key, before any work is done.

    Raises: ConfigError if not.
    """
    wandb = _package()
    try:
        if wandb.setup().settings.mode == "online":
            wandb.login(verify=False)  # asks for the key if there is a terminal
    except FAILURES as error:
        raise ConfigError(f"--wandb {project}: {error}; {REMEDY}") from None


class WandbRun:
    """A run that was started or continued; its methods raise nothing and warn once.

    id: what the service knows the run by; given again, it continues the run.
    """

    def __init__(
        self, project: str, *, name: str, config: dict[str, Any], run_id: str | None = None
    ) -> None:
        """Start a run, or continue the one with this id; offline if the service does not answer.

        Raises: ConfigError for a wrong key or project.
        """
        self.id = run_id or secrets.token_hex(4)
        self._warned = False
        wandb = _package()
        settings = {"project": project, "name": name, "config": config, "id": self.id}
        try:
            self._run = wandb.init(**settings, resume="allow")
        except (wandb.errors.UsageError, wandb.errors.AuthenticationError) as error:
            raise ConfigError(f"--wandb {project}: {error}; {REMEDY}") from None
        except FAILURES as error:
            self._run = self._offline(error, settings)
        # wandb's own step counter cannot go back, as training does when it rewinds.
        self._call("define_metric", "*", step_metric="step")

    def log(self, row: dict[str, Any]) -> None:
        """Log a row, which has its "step"."""
        self._call("log", row)

    def finish(self, *, failed: bool) -> None:
        """End the run."""
        self._call("finish", exit_code=int(failed))

    def _offline(self, reason: BaseException, settings: dict[str, Any]) -> Any:
        """A run that is kept on this disk; None if that fails, too."""
        wandb = _package()
        try:
            wandb.teardown()  # frees the id, which the failed start still holds
            run = wandb.init(**settings, mode="offline")
            self._warn(reason, f"`wandb sync {Path(run.dir).parent}` uploads the run afterwards")
            return run
        except FAILURES:
            self._warn(reason)
            return None

    def _call(self, name: str, *args: Any, **more: Any) -> None:
        try:
            if self._run is not None:
                getattr(self._run, name)(*args, **more)
        except FAILURES as error:
            self._warn(error)

    def _warn(self, reason: BaseException, rest: str = "metrics.jsonl has the figures") -> None:
        if not self._warned:
            text = " ".join(f"{type(reason).__name__}: {reason}".split())
            log.warning("warning: Weights & Biases fails (%s); training continues; %s", text, rest)
        self._warned = True


def _package() -> Any:
    try:
        import wandb
    except ImportError as error:
        raise ConfigError(f"--wandb: {error}; pip install 'nanochat[wandb]'") from None
    return wandb
