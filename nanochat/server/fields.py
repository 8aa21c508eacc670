"""Which fields a request may have: those that act, those that are harmless, and no others.

Owns: the short list of fields that are accepted without effect. Does not own: the fields that act
(protocol). A field that would change the answer and cannot be honored is refused by name, because
a client cannot notice that it was passed over.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from nanochat.server.errors import FieldError
from nanochat.server.schemas import NULL
from nanochat.tokenizer.messages import shortened


@dataclass(frozen=True)
class Ignored:
    """A field without effect. values: the accepted ones, which ask for nothing; None: any."""

    reason: str
    values: Sequence[Any] | None = None


# OpenAI's fields, then those that other servers know and clients send along.
IGNORED = {
    **dict.fromkeys(("user", "safety_identifier", "metadata"), Ignored("a note for the provider")),
    **dict.fromkeys(
        ("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "prediction"),
        Ignored("affects speed only"),
    ),
    "parallel_tool_calls": Ignored("an answer has at most one call", (True, False)),
    "store": Ignored("answers are not stored", (False,)),
    "service_tier": Ignored("there is one tier", ("auto", "default")),
    "modalities": Ignored("this model writes text only", (["text"],)),
    "audio": Ignored("this model writes text only", ()),
    "reasoning_effort": Ignored("this model does not reason apart from its answer", ("none",)),
    **dict.fromkeys(
        ("think", "enable_thinking"),
        Ignored("this model does not reason apart from its answer", (False,)),
    ),
    "verbosity": Ignored("say in a message how long the answer should be", ("medium",)),
    "web_search_options": Ignored("this server does not search the web", ()),
    "moderation": Ignored("this server does not moderate", ()),
    "functions": Ignored("send them as tools", ([],)),
    "function_call": Ignored("use tools and tool_choice", ("none", "auto")),
    "best_of": Ignored("use n", (1,)),
    "suffix": Ignored("the model continues text, it does not fill gaps", ("",)),
    **dict.fromkeys(
        ("repetition_penalty", "repeat_penalty"),
        Ignored("use presence_penalty or frequency_penalty", (1,)),
    ),
    **dict.fromkeys(("typical_p", "tfs_z"), Ignored("use top_p or min_p", (1,))),
    **dict.fromkeys(("mirostat", "min_tokens"), Ignored("it is not supported", (0,))),
    "ignore_eos": Ignored("an answer ends where the model ends it", (False,)),
    "skip_special_tokens": Ignored("special tokens are never part of the text", (True,)),
    "cache_prompt": Ignored("affects speed only"),
    "keep_alive": Ignored("the model stays loaded"),
}


class RequestModel(BaseModel):
    """Base of request models: no type conversion; null is the same as leaving a field out."""

    model_config = ConfigDict(strict=True, extra="forbid")
    ignored: ClassVar[Mapping[str, Ignored]] = {}  # fields without effect

    @model_validator(mode="before")
    @classmethod
    def _acting_fields(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        given = {name: value for name, value in data.items() if value is not None}
        known = [field.alias or name for name, field in cls.model_fields.items()]
        for name in given.keys() - set(known):
            _check_ignored(name, given.pop(name), cls.ignored, known)
        return given

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """The schema as the server reads it: what may be left out may be null, and is all named."""
        schema = handler.resolve_ref_schema(handler(core_schema))
        fields = {}
        for name, field in schema["properties"].items():
            if name in schema.get("required", ()):
                fields[name] = field
                continue
            about = {k: v for k, v in field.items() if k in ("title", "description", "default")}
            kind = {k: v for k, v in field.items() if k not in about}
            kinds = kind.get("anyOf", [kind])
            fields[name] = {"anyOf": [*(kind for kind in kinds if kind != NULL), NULL], **about}
        for name, ignored in cls.ignored.items():
            values = {} if ignored.values is None else {"enum": [*ignored.values, None]}
            fields[name] = {"description": f"no effect: {ignored.reason}", **values}
        schema |= {"properties": fields, "additionalProperties": NULL}
        return schema


def _check_ignored(
    name: str, value: Any, harmless: Mapping[str, Ignored], known: Sequence[str]
) -> None:
    """Raise FieldError for a field that is unknown or asks for something impossible."""
    ignored = harmless.get(name)
    if ignored is None:
        near = difflib.get_close_matches(name, known, n=1)
        remedy = f"; did you mean {near[0]}?" if near else ""
        raise FieldError(f"there is no such field{remedy}", name)
    if ignored.values is None or any(_same(value, accepted) for accepted in ignored.values):
        return
    accepted = " or ".join(map(repr, ignored.values)) or "nothing"
    raise FieldError(f"{ignored.reason}; only {accepted} is accepted, got {shortened(value)}", name)


def _same(value: Any, other: Any) -> bool:
    """Equality of JSON values: 1 and 1.0 are the same, 1 and true are not."""
    return cast(bool, value == other) and isinstance(value, bool) == isinstance(other, bool)
