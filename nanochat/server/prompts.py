"""From a request's JSON to what the engine is asked.

Owns: prompts, limits, and what does not fit the model. Does not own: fields (protocol) or HTTP.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nanochat.engine import Engine, Request
from nanochat.engine.sampling import Grammar, SamplingOptions
from nanochat.server.errors import ApiError
from nanochat.server.grammar import constraint
from nanochat.server.protocol import ChatRequest, TextRequest, TokenizeRequest
from nanochat.server.tools import Function, introduction, with_results
from nanochat.system.errors import ConfigError, UserError
from nanochat.tokenizer import Tokenizer
from nanochat.tokenizer.conversation import fit_prompt, render_prompt
from nanochat.tokenizer.messages import MessageError

RESERVED_TOKENS = 512  # room for the answer when turns are dropped to make some


@dataclass(frozen=True)
class ChatPrompt:
    """A prompt, the functions it tells of, and what was left out of it.

    dropped: messages; None if that was not allowed. dropped_tools: definitions of tools.
    """

    tokens: list[int]
    functions: Sequence[Function]
    dropped: int | None
    dropped_tools: int = 0


def chat_prompt(body: ChatRequest, engine: Engine) -> ChatPrompt:
    """The conversation as a prompt that leaves room for an answer.

    Functions that need not be called are left out, all of them, if their definitions would take
    more than half of what the messages leave of the context (or could leave, with truncate "auto"):
    applications send dozens with each message, more than a small model's context holds.
    Raises: ApiError 400 if the messages form no conversation or are too long.
    """
    functions = body.functions
    if not functions or body.must_call:
        return _chat_prompt(body, engine, functions)
    plain = _chat_prompt(body, engine, ())
    taken = 0 if body.truncate == "auto" else len(plain.tokens)
    told = len(engine.tokenizer.encode(introduction(functions)))
    if told <= (engine.max_len - taken) // 2:
        with contextlib.suppress(ApiError):  # too long with them
            return _chat_prompt(body, engine, functions)
    return replace(plain, dropped_tools=len(functions))


def _chat_prompt(body: ChatRequest, engine: Engine, functions: Sequence[Function]) -> ChatPrompt:
    limit = body.token_limit
    reserved = min(limit or RESERVED_TOKENS, engine.max_len // (4 if limit is None else 2))
    with messages_checked():
        messages = with_results(body.messages)
        if functions:
            messages.append({"role": "system", "content": introduction(functions)})
        if body.truncate == "auto":
            try:
                prompt, dropped = fit_prompt(messages, engine.tokenizer, engine.max_len - reserved)
            except ConfigError as error:
                raise too_long(str(error), engine, "messages") from None
            return ChatPrompt(prompt, functions, dropped)
        prompt = render_prompt(messages, engine.tokenizer)
    if len(prompt) > engine.max_len:
        said = f"the messages take {len(prompt)} tokens"
        raise too_long(f'{said}; send fewer, or truncate: "auto"', engine, "messages")
    return ChatPrompt(prompt, functions, None)


def chat_requests(
    body: ChatRequest, prompt: ChatPrompt, engine: Engine, defaults: SamplingOptions, client: str
) -> list[Request]:
    """One engine request per choice.

    If the last message is the assistant's, the answer goes on with it and does not repeat it.
    """
    check_biases(body.logit_bias, engine)
    room = engine.max_len - len(prompt.tokens) + 1
    count = min(body.token_limit or room, room)
    grammar = _grammar(body, prompt.functions, engine, room=count)
    return [
        Request(
            prompt=prompt.tokens,
            params=body.params(
                defaults,
                choice=choice,
                max_new_tokens=count,
                logprobs=body.alternatives,
                grammar=grammar(),
            ),
            client=client,
        )
        for choice in range(body.n)
    ]


def _grammar(
    body: ChatRequest, functions: Sequence[Function], engine: Engine, *, room: int
) -> Callable[[], Grammar | None]:
    """A maker of what each answer must be; it makes None if an answer may be anything.

    room: the most tokens of an answer.
    """
    if body.schema_of_text is None and not functions:
        return lambda: None
    return constraint(
        engine.tokenizer,
        schema=None if body.must_call else body.schema_of_text,
        functions=functions,
        must_call=body.must_call,
        room=room,
        param="tools" if functions else "response_format",
    )


def text_requests(
    body: TextRequest, engine: Engine, defaults: SamplingOptions, client: str
) -> list[Request]:
    """One engine request per prompt and choice; <|bos|> goes in front of texts, not of tokens.

    Raises: ApiError 400 for a prompt that is too long or has a token outside the vocabulary.
    """
    check_biases(body.logit_bias, engine)
    requests = []
    for place, given in enumerate(body.prompt):
        where = f"prompt[{place}]" if len(body.prompt) > 1 else "prompt"
        if isinstance(given, str):
            prompt = [engine.tokenizer.bos_id, *engine.tokenizer.encode(given)]
        else:
            check_tokens(given, engine.tokenizer, where)
            prompt = given
        if len(prompt) > engine.max_len:
            raise too_long(f"{where} takes {len(prompt)} tokens", engine, where)
        room = engine.max_len - len(prompt) + 1
        count = room if body.max_tokens is None else min(body.max_tokens, room)
        requests += [
            Request(
                prompt=prompt,
                params=body.params(
                    defaults, choice=choice, max_new_tokens=count, logprobs=body.logprobs
                ),
                tools=False,
                chat=False,
                # the engine only reads a prompt if its log-probabilities are of interest
                prompt_logprobs=count == 0 or (body.echo and body.logprobs is not None),
                client=client,
            )
            for choice in range(body.n)
        ]
    return requests


def too_long(what: str, engine: Engine, param: str) -> ApiError:
    """The error for a prompt that leaves no room for an answer."""
    message = f"{what}; the context holds {engine.max_len}, prompt and answer together"
    return ApiError(400, message, param=param, code="context_length_exceeded")


def check_biases(biases: dict[str, float], engine: Engine) -> None:
    """Raise ApiError 400 for a bias on a token that the vocabulary does not have."""
    size = engine.tokenizer.vocab_size
    for token in biases:
        if int(token) >= size:
            raise ApiError(
                400,
                f"logit_bias: there is no token {token}; the vocabulary has {size}",
                param="logit_bias",
            )


def tokenized(body: TokenizeRequest, tokenizer: Tokenizer) -> list[int]:
    """The tokens of a text, or of the prompt that messages make.

    Raises: ApiError 400 if the messages form no conversation.
    """
    if body.messages is None:
        return tokenizer.encode(body.text or "")
    prefilled: list[Any] = [{"role": "assistant", "content": body.prefill}] if body.prefill else []
    with messages_checked():
        return render_prompt([*with_results(body.messages), *prefilled], tokenizer)


def detokenized(tokens: Sequence[int], tokenizer: Tokenizer) -> str:
    """The text of tokens, special tokens by name.

    Raises: ApiError 400 for a token that is not in the vocabulary.
    """
    check_tokens(tokens, tokenizer, "tokens")
    return tokenizer.decode(tokens)


def check_tokens(tokens: Sequence[int], tokenizer: Tokenizer, param: str) -> None:
    """Raise ApiError 400 for a token that is not in the vocabulary."""
    size = tokenizer.vocab_size
    for place, token in enumerate(tokens):
        if token >= size:
            where = f"{param}[{place}]"
            message = f"{where}: there is no token {token}; the vocabulary has {size}"
            raise ApiError(400, message, param=where)


@contextlib.contextmanager
def messages_checked() -> Iterator[None]:
    """Report messages that form no conversation to the client."""
    try:
        yield
    except UserError as error:
        param = error.path if isinstance(error, MessageError) else "messages"
        raise ApiError(400, str(error), param=param) from None
