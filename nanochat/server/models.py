"""The served models: their ids, and what is said of each.

Owns: which model a request means, and its entries in /v1/models and /health. Does not own: loading
and generating (service).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict

from nanochat.engine.sampling import SamplingOptions
from nanochat.server.errors import ApiError, Json
from nanochat.server.service import EngineService


class Models:
    """Services by model id; the first is the default.

    defaults: sampling settings of requests that leave them out.
    """

    def __init__(
        self, services: Mapping[str, EngineService], defaults: SamplingOptions | None = None
    ) -> None:
        self.services = dict(services)
        self.defaults = defaults or SamplingOptions()
        self._created = int(time.time())

    def find(self, name: str | None) -> tuple[str, EngineService]:
        """The id and service that a request's `model` means.

        Raises: ApiError 404 if there is none.
        """
        if name is None:
            return next(iter(self.services.items()))
        if name not in self.services:
            known = ", ".join(self.services)
            raise ApiError(
                404,
                f"there is no model {name!r}; this server has {known}",
                param="model",
                code="model_not_found",
            )
        return name, self.services[name]

    def card(self, name: str) -> Json:
        """The model's entry in /v1/models."""
        name, service = self.find(name)
        engine = service.ready_engine()
        origin = asdict(service.origin) if service.origin else {}
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "nanochat",
            "max_model_len": engine.max_len,
            "defaults": asdict(self.defaults),
            "dtype": str(engine.dtype).removeprefix("torch."),
            **origin,
        }

    def health(self, name: str) -> Json:
        """The model's entry in /health."""
        engine, stats = self.services[name].ready_engine(), self.services[name].stats()
        return {
            "id": name,
            "dtype": str(engine.dtype).removeprefix("torch."),
            "device": str(engine.device),
            "slots": stats.slots,
            "slots_in_use": stats.slots_in_use,
            "waiting": stats.waiting,
            "max_model_len": engine.max_len,
            "deterministic": stats.deterministic,
        }
