"""Dynamic loss scaling, with which float16 can train.

Owns: the factor on the loss and when it changes. Does not own: dividing the gradients by it
(optim/optimizer.py), or what a step that is not finite means (trainer.py).
"""

from typing import Any

import torch
from torch import Tensor

from nanochat.system.errors import CheckpointError

# float16 ends at 65,504, and numbers below 6e-8 are 0: most gradients of a loss that is a mean over
# a step's tokens are smaller. A factor lifts them into its range; it is a power of two, so that
# dividing by it afterwards is exact.
INITIAL = 2.0**16
LEAST, MOST = 1.0, 2.0**32
GROW_AFTER = 500  # updates without an overflow


class LossScale:
    """The factor on the loss: halved when gradients overflow, doubled after many good steps.

    Source: Mixed Precision Training, arXiv 1710.03740. It stays on the device, where a step decides
    whether it was finite: nothing waits for it.
    """

    def __init__(self, device: torch.device) -> None:
        self.value = torch.tensor(INITIAL, device=device)  # 0-d, float32
        self._good = torch.zeros((), dtype=torch.int32, device=device)  # since the last change

    @torch.no_grad()
    def update(self, finite: Tensor) -> None:
        """Adapt to the last step; finite: 0-d bool, whether its loss and gradients were."""
        self._good = torch.where(finite, self._good + 1, 0)
        grown = self._good >= GROW_AFTER
        self._good = torch.where(grown, 0, self._good)
        factor = torch.where(finite, torch.where(grown, 2.0, 1.0), 0.5)
        self.value = (self.value * factor).clamp(LEAST, MOST)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"value": float(self.value), "good": int(self._good)}

    def load_state(self, state: Any) -> None:
        """Continue from `state()`; None: the checkpoint is from a run in another dtype.

        Raises: CheckpointError if it is something else.
        """
        if state is None:
            return
        try:
            self.value.fill_(float(state["value"]))
            self._good.fill_(int(state["good"]))
        except (KeyError, TypeError, ValueError):
            raise CheckpointError(f"the checkpoint's loss scale is {state!r}") from None
