"""A conversation with an engine: what was said, the settings, the next answer. Part of chat_cli.

Owns: which messages the model reads, undoing, and files of conversations. Prints nothing.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nanochat.engine import Completion, Engine, Event, Request, SamplingParams
from nanochat.engine.sampling import SamplingOptions
from nanochat.system import config, storage
from nanochat.system.config import option
from nanochat.system.errors import ConfigError, DataError
from nanochat.tokenizer.conversation import Message, Part, render_prompt
from nanochat.tokenizer.messages import read_messages, shortened

ALTERNATIVES = 4  # likeliest tokens reported with each token of an answer


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """How answers are made."""

    system: str | None = option(None, "system prompt; none: no system prompt")
    max_new_tokens: int = option(512, "limit of tokens per answer", least=1)
    stats: bool = option(False, "show speed and number of tokens (of -p: on stderr)")
    logprobs: bool = option(
        False, "color tokens by the model's surprise; without colors, list their probabilities"
    )


@dataclass(frozen=True)
class Answer:
    """How an answer came about.

    first_s: from the request to its first token. rest_s: from there to its end. left_out: the
    conversation was longer than the model's context, so that its beginning was not read.
    """

    completion: Completion
    prompt_tokens: int
    first_s: float
    rest_s: float
    left_out: bool


# what can be set during a chat
SETTINGS = {
    **config.flat_fields(SamplingOptions),
    "max_new_tokens": config.flat_fields(AnswerOptions)["max_new_tokens"],
}


class Chat:
    """A conversation with an engine.

    model: its name, for files. show: called with each event of an answer as it arrives. stopped:
    checked between events; True ends the answer.
    """

    def __init__(
        self,
        engine: Engine,
        sampling: SamplingOptions,
        options: AnswerOptions,
        *,
        seed: int = 0,
        model: str = "",
    ) -> None:
        self.engine = engine
        self.model = model
        self.settings = {**asdict(sampling), "max_new_tokens": options.max_new_tokens}
        self.logprobs = options.logprobs
        self.system = options.system
        self.messages: list[Message] = []
        self.tokens: list[int] = []  # all that the model read and wrote for the last answer
        self._past: list[tuple[str, str | None, list[Message]]] = []
        self._seed = seed

    def ask(self, text: str, show: Callable[[Event], None], stopped: Callable[[], bool]) -> Answer:
        """Add a message and its answer to the conversation."""
        return self._advance("the answer", [*self.messages, _user(text)], show, stopped)

    def retry(self, show: Callable[[Event], None], stopped: Callable[[], bool]) -> Answer:
        """Answer the last message again; the new answer takes the place of the old one.

        Raises: ConfigError if there is no message.
        """
        last = self._question(None)
        return self._advance("/retry", self.messages[: last + 1], show, stopped)

    def edit(
        self,
        number: int | None,
        text: str,
        show: Callable[[Event], None],
        stopped: Callable[[], bool],
    ) -> Answer:
        """Replace the user's message of a number (see `question`) and all after it; answer it."""
        kept = self.messages[: self._question(number)]
        return self._advance("/edit", [*kept, _user(text)], show, stopped)

    def go_on(self, show: Callable[[Event], None], stopped: Callable[[], bool]) -> Answer:
        """Go on with the last answer where it ended.

        Raises: ConfigError if there is no answer.
        """
        if not self.messages or self.messages[-1]["role"] != "assistant":
            raise ConfigError("there is no answer to go on with")
        parts = list(_parts(self.messages[-1]))
        if parts[-1]["type"] == "python":  # cut off inside a call: the call is made again
            parts.pop()
        answer: Message = {"role": "assistant", "content": parts}
        messages = [*self.messages[:-1], *([answer] if parts else [])]
        return self._advance("/continue", messages, show, stopped)

    def question(self, number: int | None) -> str:
        """The user's message of a number, counted from 1; None: the last one.

        Raises: ConfigError if there is no such message.
        """
        return _text(self.messages[self._question(number)])

    def change(self, what: str, messages: list[Message], system: str | None) -> None:
        """Make this the conversation; what: a name of the change, for `undo`."""
        self._past.append((what, self.system, self.messages))
        self.system, self.messages, self.tokens = system, messages, []

    def undo(self) -> str:
        """Take back the last change; returns its name.

        Raises: ConfigError if there was none.
        """
        if not self._past:
            raise ConfigError("there is nothing to undo")
        what, self.system, self.messages = self._past.pop()
        self.tokens = []
        return what

    def set(self, name: str, value: Any) -> None:
        """Change a setting; value: as text or JSON.

        Raises: ConfigError for an unknown name or an invalid value.
        """
        name = name.replace("-", "_")
        if name not in SETTINGS:
            raise ConfigError(f"unknown setting {name!r}; choose from {', '.join(SETTINGS)}")
        self.settings[name] = config.convert(SETTINGS[name], value, name=name)

    def save(self, path: Path) -> None:
        """Write the conversation and its settings as JSON; `load` and chat_sft read it."""
        found = {"messages": self._with_system(self.messages), "settings": self.settings}
        storage.write_json(path, found | {"model": self.model})

    def load(self, path: Path) -> None:
        """Make the conversation in a file this one; its settings are taken over, if it has any.

        Raises: DataError for a file that is not a conversation.
        """
        if path.exists() and not path.is_file():
            raise DataError(f"{path} is not a file; name one that /save wrote")
        found = storage.read_json(path, "conversation")
        before = dict(self.settings)
        try:
            dialogue = read_messages(found.get("messages"))
            settings = found.get("settings", {})
            if not isinstance(settings, Mapping):
                raise DataError(f'"settings" must be an object, got {shortened(settings)}')
            for name, value in settings.items():
                self.set(name, value)
        except (ConfigError, DataError) as error:
            self.settings = before
            raise DataError(f"{path}: {error}") from None
        messages: list[Message] = []
        for turn in dialogue.turns:
            messages += [_user(turn.user)] if turn.user else []
            parts: list[Part] = [{"type": p.kind, "text": p.text} for p in turn.answer or ()]
            messages += [{"role": "assistant", "content": parts}] if parts else []
        self.change("/load", messages, dialogue.system or None)

    def _question(self, number: int | None) -> int:
        """The index in `messages` of the user's message of a number; None: of the last one."""
        places = [i for i, message in enumerate(self.messages) if message["role"] == "user"]
        if not places:
            raise ConfigError("there is no message yet")
        if number is not None and not 1 <= number <= len(places):
            raise ConfigError(f"there is no message {number}; there are 1 to {len(places)}")
        return places[-1 if number is None else number - 1]

    def _with_system(self, messages: list[Message]) -> list[Message]:
        return [Message(role="system", content=self.system), *messages] if self.system else messages

    def _advance(
        self,
        what: str,
        messages: list[Message],
        show: Callable[[Event], None],
        stopped: Callable[[], bool],
    ) -> Answer:
        """Let the model add to messages. The conversation becomes these, unless it adds nothing.

        what: the name of this change, for `undo`.
        """
        # A model has no memory: every turn renders the full conversation again as one prompt, which
        # drops the oldest turns when it would leave no room for the answer.
        reserved = min(self.settings["max_new_tokens"], self.engine.max_len // 4)
        room = self.engine.max_len - reserved
        said = self._with_system(messages)
        prompt = render_prompt(said, self.engine.tokenizer, room)
        left_out = len(render_prompt(said, self.engine.tokenizer)) > room
        answer = self._generate(prompt, show, stopped, left_out=left_out)
        # The answer joins the conversation with its tool calls, as in training: without them the
        # model would see results appear from nowhere. A stopped answer is kept unless it is empty.
        parts = answer.completion.parts
        if any(part["text"] for part in parts):
            if messages[-1]["role"] == "assistant":
                parts = _joined([*_parts(messages[-1]), *parts])
                messages = messages[:-1]
            answered: Message = {"role": "assistant", "content": parts}
            self.change(what, [*messages, answered], self.system)
        self.tokens = [*prompt, *answer.completion.tokens]
        return answer

    def _generate(
        self,
        prompt: list[int],
        show: Callable[[Event], None],
        stopped: Callable[[], bool],
        *,
        left_out: bool,
    ) -> Answer:
        self._seed += 1  # /retry gives a new answer, and a session is reproducible
        params = SamplingParams(
            **self.settings, seed=self._seed, logprobs=ALTERNATIVES if self.logprobs else None
        )
        request_id = self.engine.submit(Request(prompt=prompt, params=params))
        completion = None
        start_s = time.perf_counter()
        first_s = None
        try:
            while completion is None and not stopped():
                for event in self.engine.step():
                    first_s = first_s or time.perf_counter() - start_s
                    completion = event.completion or completion
                    show(event)
        finally:
            aborted = self.engine.abort(request_id)  # frees the slot however the loop ended
        completion = completion or aborted
        assert completion is not None, "a request has a completion when it ends or is aborted"
        end_s = time.perf_counter() - start_s
        first_s = end_s if first_s is None else first_s
        return Answer(completion, len(prompt), first_s, end_s - first_s, left_out)


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _parts(message: Message) -> Sequence[Part]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _text(message: Message) -> str:
    return "".join(part["text"] for part in _parts(message))


def _joined(parts: Sequence[Part]) -> list[Part]:
    """The same parts, those of a kind that follow one another as one."""
    joined: list[Part] = []
    for part in parts:
        if joined and joined[-1]["type"] == part["type"]:
            joined[-1] = {"type": part["type"], "text": joined[-1]["text"] + part["text"]}
        else:
            joined.append(part)
    return joined
