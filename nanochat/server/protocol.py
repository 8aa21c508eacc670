"""The JSON of requests: the fields that act, and what they are to the engine.

Owns: the names, types and bounds of fields. Does not own: harmless fields (fields), responses or
HTTP. Source: OpenAI API reference, "Create chat completion" and "Create completion"; top_k, min_p,
tool_activity and truncate are extensions.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from nanochat.engine import SamplingParams
from nanochat.engine.sampling import SamplingOptions
from nanochat.server import schemas
from nanochat.server.errors import FieldError
from nanochat.server.fields import IGNORED, RequestModel
from nanochat.server.tools import (
    Function,
    ResponseFormat,
    SchemaFormat,
    TextFormat,
    Tool,
    ToolChoice,
)
from nanochat.tokenizer.messages import shortened

MAX_CHOICES = 8
MAX_STOPS = 4
MAX_LOGPROBS = 20  # alternatives per token
MAX_TEXT_LOGPROBS = 5  # the same for text completions


def _whole(number: Any) -> Any:
    """24.0 and 1e3 are whole numbers, as JSON has only one kind; true is not one."""
    whole = isinstance(number, float) and number.is_integer()
    return int(number) if whole else number


def _stops(stop: Any) -> Any:
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or len(stops) > MAX_STOPS:
        return stops
    return [text for text in stops if text != ""]


def _limit(number: Any) -> Any:
    number = _whole(number)
    return None if number == -1 else number


Whole = Annotated[int, BeforeValidator(_whole)]
# Clients write "no limit" as -1 too.
Limit = Annotated[int | None, Field(ge=1), BeforeValidator(_limit), WithJsonSchema(schemas.LIMIT)]
TopK = Annotated[
    int,
    Field(ge=0),
    BeforeValidator(lambda k: 0 if (k := _whole(k)) == -1 else k),
    WithJsonSchema({"type": "integer", "minimum": -1}),
]
Bias = Annotated[float, Field(ge=-100, le=100)]
TokenKey = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,8})$")]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Messages = Annotated[list[Any], WithJsonSchema(schemas.MESSAGES), Field(min_length=1)]
ModelId = Annotated[str | None, Field(description="an id of /v1/models; none: the first")]


class StreamOptions(RequestModel):
    """Options of a streamed response."""

    include_usage: Annotated[bool, Field(description="end with a chunk of token counts")] = False
    include_obfuscation: Annotated[bool, Field(description="no effect: no padding")] = False


class GenerationRequest(RequestModel):
    """What chat and text completions have in common."""

    ignored = IGNORED
    model: ModelId = None
    temperature: float | None = Field(None, ge=0, le=2, description="default: see /v1/models")
    top_k: TopK | None = Field(None, description="0 or -1 keeps every token")
    top_p: float | None = Field(None, ge=0, le=1, description="0: always the likeliest token")
    min_p: float | None = Field(
        None, ge=0, le=1, description="drops tokens less likely than this share of the likeliest"
    )
    presence_penalty: Penalty = Field(0, description="against tokens that the answer has already")
    frequency_penalty: Penalty = Field(0, description="the same, for each time it has them")
    logit_bias: dict[TokenKey, Bias] = Field({}, description="added to the logits, by token id")
    seed: Whole | None = Field(None, description="the same seed gives the same answer")
    stop: Annotated[
        list[str],
        Field(max_length=MAX_STOPS),
        BeforeValidator(
            _stops, json_schema_input_type=str | Annotated[list[str], Field(max_length=MAX_STOPS)]
        ),
    ] = Field([], description="texts that end the answer")
    n: Whole = Field(1, ge=1, le=MAX_CHOICES, description="number of answers")
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()

    def params(self, defaults: SamplingOptions, *, choice: int, **settings: Any) -> SamplingParams:
        """Sampling settings of one choice; each choice gets its own seed."""
        given = self.model_dump(include={"temperature", "top_k", "top_p", "min_p"})
        return SamplingParams(
            **{
                **asdict(defaults),
                **{name: value for name, value in given.items() if value is not None},
            },
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias={int(token): bias for token, bias in self.logit_bias.items()} or None,
            seed=None if self.seed is None else self.seed + choice,
            stop=tuple(self.stop),
            **settings,
        )


class ChatRequest(GenerationRequest):
    """A request for a chat completion.

    The tokenizer judges the messages (tokenizer/messages.py), here as in training: fields of a
    message that would change its meaning are refused, and others, such as name, have no effect.
    """

    model_config = ConfigDict(json_schema_extra=schemas.TOP_LOGPROBS_NEED_LOGPROBS)

    messages: Messages
    max_completion_tokens: Limit = Field(None, description="-1: no limit")
    max_tokens: Limit = Field(None, description="older name of max_completion_tokens")
    logprobs: bool = Field(
        False,
        description="return log-probabilities of the text's tokens; with tool_activity, also of "
        "special tokens and of those in calculations",
    )
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS), BeforeValidator(_whole)] | None = (
        Field(None, description="alternatives per token; needs logprobs")
    )
    tools: list[Tool] = Field(
        [],
        description="functions that the client runs; if none has to be called, they are left out "
        "where they do not fit, and usage.dropped_tools counts them",
    )
    tool_choice: ToolChoice = Field("auto", description="whether one of them is called")
    response_format: ResponseFormat | None = Field(None, description="what the answer must be")
    tool_activity: bool = Field(False, description="also return the calculator's input and output")
    truncate: Literal["error", "auto"] = Field(
        "error", description="a conversation that is too long: refuse it, or drop its oldest turns"
    )

    @model_validator(mode="after")
    def _alternatives_need_logprobs(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise FieldError("needs logprobs: true", "top_logprobs")
        return self

    @model_validator(mode="after")
    def _a_choice_needs_its_tools(self) -> ChatRequest:
        if self.tool_choice not in ("none", "auto") and not self.functions:
            raise FieldError("names no function of tools", "tool_choice")
        return self

    @property
    def functions(self) -> list[Function]:
        """The functions that the answer may call."""
        functions = [tool.function for tool in self.tools]
        if isinstance(self.tool_choice, str):
            return [] if self.tool_choice == "none" else functions
        return [f for f in functions if f.name == self.tool_choice.function.name]

    @property
    def must_call(self) -> bool:
        """Whether the answer has to be a call."""
        return self.tool_choice not in ("none", "auto")

    @property
    def schema_of_text(self) -> dict[str, Any] | None:
        """The JSON schema of the answer's text; None for any text."""
        if self.response_format is None or isinstance(self.response_format, TextFormat):
            return None
        if isinstance(self.response_format, SchemaFormat):
            return self.response_format.json_schema.schema_
        return {"type": "object"}

    @property
    def token_limit(self) -> int | None:
        """The client's limit on the answer's tokens, if it set one."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """Alternatives to report with each token; None: no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


Prompt = str | list[int]


def _prompts(value: Any) -> list[Prompt]:
    """A text, the ids of its tokens, or a list of either, as a list."""
    if isinstance(value, str):
        return [value]
    given = value if isinstance(value, list) else []
    items = [given] if given and not isinstance(given[0], str | list) else given
    if not 1 <= len(items) <= schemas.MAX_PROMPTS:
        raise FieldError(
            "must be a text, a list of token ids, or a list of at most "
            f"{schemas.MAX_PROMPTS} of either, got {shortened(value)}"
        )
    for place, item in enumerate(items):
        path = (place,) if items is given else ()
        if type(item) is not type(items[0]):
            raise FieldError(f"must be like the first, got {shortened(item)}", *path)
        if isinstance(item, list):
            items[place] = _token_ids(item, *path)
    return items


def _token_ids(value: list[Any], *path: int) -> list[int]:
    ids = [_whole(token) for token in value]
    for place, token in enumerate(ids):
        if not isinstance(token, int) or isinstance(token, bool) or token < 0:
            raise FieldError(f"must be a token's id, got {shortened(token)}", *path, place)
    if not ids:
        raise FieldError("has no tokens; start it with <|bos|>", *path)
    return ids


class TextRequest(GenerationRequest):
    """A request to continue text, which goes to the model as it is, without roles."""

    model_config = ConfigDict(json_schema_extra=schemas.NO_STREAM_OF_PROMPT_LOGPROBS)

    prompt: Annotated[list[Prompt], BeforeValidator(_prompts), WithJsonSchema(schemas.PROMPT)] = (
        Field(description="a text, the ids of its tokens, or a list of either")
    )
    max_tokens: Annotated[
        int | None, Field(ge=0), BeforeValidator(_limit), WithJsonSchema(schemas.LIMIT_OR_0)
    ] = Field(16, description="-1: no limit; 0 only reads the prompt")
    echo: bool = Field(False, description="return the prompt in front of the answer")
    logprobs: Annotated[int, Field(ge=0, le=MAX_TEXT_LOGPROBS), BeforeValidator(_whole)] | None = (
        Field(None, description="report log-probabilities, with this many alternatives per token")
    )

    @model_validator(mode="after")
    def _prompts_are_not_scored_in_streams(self) -> TextRequest:
        if self.stream and self.echo and self.logprobs is not None:
            raise FieldError("a prompt's log-probabilities are not streamed", "stream")
        return self


class TokenizeRequest(RequestModel):
    """A text, or messages as the exact prompt that would be sent, as tokens."""

    model_config = ConfigDict(json_schema_extra=schemas.EITHER_TEXT_OR_MESSAGES)

    model: ModelId = None
    text: str | None = None
    messages: Messages | None = None
    prefill: str = Field("", description="beginning of the answer to the messages")

    @model_validator(mode="after")
    def _one_of_two(self) -> TokenizeRequest:
        if (self.text is None) == (self.messages is None):
            raise FieldError("give either text or messages", "text")
        return self


class DetokenizeRequest(RequestModel):
    """Tokens whose text is wanted."""

    model: ModelId = None
    tokens: list[Annotated[int, Field(ge=0), BeforeValidator(_whole)]]
