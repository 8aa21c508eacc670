"""One reading of messages: the same in files, the server, evaluation and prompts."""

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat import tokenizer
from nanochat.data.tasks.chat_formats import conversation_of
from nanochat.server.protocol import ChatRequest
from nanochat.system.errors import DataError
from nanochat.tokenizer.conversation import Rendered, render, render_prompt, validate
from nanochat.tokenizer.messages import MessageError, read_messages


@functools.cache
def char():
    return tokenizer.train_char(["".join(map(chr, range(32, 127))), "\n日本😀é"])


def user(content, **more):
    return {"role": "user", "content": content, **more}


def says(content, **more):
    return {"role": "assistant", "content": content, **more}


def system(content, role="system"):
    return {"role": role, "content": content}


def shown(messages):
    """The conversation as text, and the text that is learned."""
    rendered = render({"messages": messages}, char())
    learned = [token for token, keep in zip(rendered.tokens, rendered.mask, strict=True) if keep]
    return short(rendered.tokens), short(learned)


def short(tokens):
    names = {"bos": "", "user_start": "U:", "user_end": "|", "assistant_start": "A:"}
    text = char().decode(tokens)
    for name, mark in {**names, "assistant_end": "."}.items():
        text = text.replace(f"<|{name}|>", mark)
    return text


@pytest.mark.parametrize(
    ("messages", "text", "learned"),
    [
        ([system("S", "developer"), user("q"), says("a")], "U:S\n\nq|A:a.", "a."),
        ([system(""), user("q"), says("a")], "U:q|A:a.", "a."),
        ([system(None), user("q"), says("a")], "U:q|A:a.", "a."),
        (
            [system("S"), user("q"), system("T"), says("a"), system("", "developer")],
            "U:S\n\nT\n\nq|A:a.",
            "a.",
        ),
        ([user("q"), user(""), user("r"), says("a")], "U:q\n\nr|A:a.", "a."),
        ([user("q"), says("a"), system("S"), says("b")], "U:S\n\nq|A:a\n\nb.", "a\n\nb."),
        ([user("q"), says("a", weight=0), says("b")], "U:q|A:a\n\nb.", "\n\nb."),
        ([user("q"), says("a"), says("b", weight=0)], "U:q|A:a\n\nb.", "a"),
        ([user("q"), says("a"), says("", weight=0)], "U:q|A:a.", "a."),
        ([says("hi"), user("q"), says("a")], "U:|A:hi.U:q|A:a.", "a."),
        ([says("hi"), system("S"), user("q"), says("a")], "U:S|A:hi.U:q|A:a.", "a."),
        ([says(""), user("q"), says("a")], "U:q|A:a.", "a."),
        ([user("q"), says(""), user("r"), says("a")], "U:q|A:.U:r|A:a.", "a."),
        ([user("q"), says(None, tool_calls=[]), user("r"), says("a")], "U:q|A:.U:r|A:a.", "a."),
        ([user("q"), says("a"), user("r")], "U:q|A:a.U:r|", "a."),
        ([user("q"), says("a", weight=0), user("r"), says("b")], "U:q|A:a.U:r|A:b.", "b."),
        (
            [user("q"), says("a", weight=1.0), user("r"), says("b", weight=None)],
            "U:q|A:a.U:r|A:b.",
            "a.b.",
        ),
        (
            [
                user([{"type": "input_text", "text": "q"}, {"type": "text", "text": "r"}]),
                says([{"type": "output_text", "text": "a"}, {"type": "refusal", "refusal": "no"}]),
            ],
            "U:qr|A:ano.",
            "ano.",
        ),
        ([user("q"), says(None, refusal="I can't.")], "U:q|A:I can't..", "I can't.."),
        ([user("q", weight=0), says("a")], "U:q|A:a.", "a."),
    ],
)
def test_messages_are_read_by_their_meaning(messages, text, learned):
    assert shown(messages) == (text, learned)


@pytest.mark.parametrize(
    ("message", "path", "error"),
    [
        (says("a", weight=0.5), "weight", '(assistant) has "weight": 0.5; it must be 0 (not l'),
        (says("a", weight=True), "weight", '"weight": True'),
        (says("a", weight="0"), "weight", "\"weight\": '0'"),
        (says("a", weight=[0]), "weight", '"weight": [0]'),
        (
            says("a", tool_calls=[{"id": "c"}]),
            "tool_calls",
            "\"tool_calls\": [{'id': 'c'}]; the on",
        ),
        (says(None, function_call={"name": "f"}), "function_call", '"function_call": {'),
        (
            says("a", audio={"id": "x"}),
            "audio",
            "\"audio\": {'id': 'x'}; this model reads text only",
        ),
        (user("a", tool_call_id="c"), "tool_call_id", "\"tool_call_id\": 'c'"),
        (user("a", images=["i"]), "images", "\"images\": ['i']; this model reads text only"),
        (system("a") | {"tools": "[{}]"}, "tools", "(system) has \"tools\": '[{}]'; the only tool"),
        (says("a", train=False), "train", '"train": False; write "weight": 0 for an answer that'),
        (says("a", loss=0.0), "loss", '"loss": 0.0'),
        (says("a", masked=True), "masked", '"masked": True'),
        ({"role": "tool", "content": "1"}, "role", "has role 'tool', expected system, developer"),
        ({"role": "function", "name": "f", "content": "1"}, "role", "has role 'function'"),
        ({"role": None, "content": "1"}, "role", "has role None"),
        ({"content": "1"}, "role", "has role None"),
        (user([{"type": "image_url", "image_url": {}}]), "content[0].type", "type 'image_url'; kn"),
        (user([{"type": "text", "text": "a"}, {"type": "image"}]), "content[1].type", "'image'"),
        (user([{"type": "input_audio"}]), "content[0].type", "a part of type 'input_audio'"),
        (user([{"type": ["text"]}]), "content[0].type", "a part of type ['text']"),
        (user([{"text": "a"}]), "content[0].type", "a part of type None"),
        (user(["a"]), "content[0]", "content has 'a' for a part"),
        (user([{"type": "text", "text": None}]), "content[0].text", '"text" of a part must be te'),
        (user({"type": "text"}), "content", "content must be text or a list of parts, got {'type"),
        (says("a", refusal=3), "refusal", '"refusal" of a part must be text, got 3'),
    ],
)
def test_what_would_change_the_meaning_is_refused_by_name_in_files_and_by_the_server(
    message, path, error
):
    messages = [user("q"), says("a"), user("q"), message]
    for read in (
        read_messages,
        lambda said: render({"messages": said}, char()),
        lambda said: render_prompt(ChatRequest(messages=said).messages, char()),
    ):
        with pytest.raises(MessageError) as caught:
            read(messages)
        assert caught.value.path == f"messages[3].{path}"
        assert str(caught.value).startswith("message 4 ") and error in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"^message 4 "):
        conversation_of({"messages": messages})


def test_fields_without_effect_are_named_unless_they_are_empty():
    messages = [
        user([{"type": "text", "text": "q", "cache_control": {"type": "ephemeral"}}], name=""),
        says(
            "a",
            thinking="hm",
            tool_calls=[],
            function_call=None,
            audio=None,
            annotations=[],
            tools="[]",
        ),
    ]
    assert read_messages(messages).unused == {"cache_control", "thinking"}


def test_a_switch_for_the_loss_is_judged_where_it_matters_only():
    assert shown([user("q", train=False), says("a", train=True, masked=False)])[1] == "a."


def test_a_value_nested_too_deep_to_print_is_refused_in_one_line():
    value: list = []
    for _ in range(5000):
        value = [value]
    with pytest.raises(DataError, match="content has a deeply nested list for a part"):
        validate({"messages": [user(value)]})


# --- the same everywhere

TEXTS = st.text("ab <|>\n日", max_size=6)
KINDS = st.sampled_from(["text", "input_text", "output_text", "refusal"])


def part(kind, text):
    return {"type": kind, "refusal" if kind == "refusal" else "text": text}


CONTENTS = st.none() | TEXTS | st.lists(st.builds(part, KINDS, TEXTS), max_size=3)
WEIGHTS = st.sampled_from([{}, {"weight": 0}, {"weight": 1}, {"weight": None}, {"weight": 0.0}])
MESSAGES = st.builds(
    lambda role, content, weight, extra: {"role": role, "content": content, **weight, **extra},
    st.sampled_from(["system", "developer", "user", "user", "assistant", "assistant"]),
    CONTENTS,
    WEIGHTS,
    st.sampled_from([{}, {"name": "x"}, {"tool_calls": []}, {"refusal": None}]),
)


def text_of(content):
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.get("text", "") + part.get("refusal", "") for part in content)


def naive(messages):
    """Text and mask, character by character with one sign for each special token; None: invalid."""
    texts = [(m["role"], text_of(m["content"]), m.get("weight") != 0) for m in messages]
    front = "\n\n".join(t for role, t, _ in texts if role in ("system", "developer") and t)
    turns = []  # [user, [(text, learned)] or None, has the user spoken]
    for role, text, learned in texts:
        if role == "user":
            if not turns or turns[-1][1] is not None:
                turns.append(["", None, True])
            turns[-1][0] += ("\n\n" if text and turns[-1][0] else "") + text
        elif role == "assistant" and (turns or text):
            if not turns:
                turns.append(["", [], False])
            turns[-1][1] = turns[-1][1] or []
            if text:
                blank = "\n\n" if turns[-1][1] else ""
                turns[-1][1].append((blank + text, learned and turns[-1][2]))
    if not any(spoken for *_, spoken in turns) or any(s and not u for u, _, s in turns):
        return None
    signs = [("B", 0)]
    for number, (asked, answer, _) in enumerate(turns):
        lead = front if number == 0 else ""
        signs += [(c, 0) for c in f"[{lead}{chr(10) * 2 if lead and asked else ''}{asked}]"]
        if answer is not None:
            signs.append(("{", 0))
            signs += [(c, int(learned)) for text, learned in answer for c in text]
            signs.append(("}", int(bool(answer) and answer[-1][1])))
    return signs


def signs_of(rendered):
    specials = ("bos", "user_start", "user_end", "assistant_start", "assistant_end")
    marks = {char().special_id(f"<|{s}|>"): m for s, m in zip(specials, "B[]{}", strict=True)}
    texts = [marks.get(token) or char().decode([token]) for token in rendered.tokens]
    return list(zip(texts, rendered.mask, strict=True))


@settings(max_examples=150, deadline=None)
@given(st.lists(MESSAGES, min_size=1, max_size=7))
def test_files_prompts_and_the_server_read_the_same_as_a_naive_reference(messages):
    expected = naive(messages)
    sent = ChatRequest.model_validate({"messages": messages}).messages
    if expected is None:
        for refusing in (
            lambda: render_prompt(sent, char()),
            lambda: conversation_of({"messages": messages}),
            lambda: validate({"messages": messages}),
        ):
            with pytest.raises(DataError):
                refusing()
        return
    assert signs_of(render({"messages": messages}, char())) == expected
    prompt = render_prompt(messages, char())
    assert prompt == render_prompt(sent, char())
    so_far = expected[:-1] if expected[-1][0] == "}" else [*expected, ("{", 0)]
    assert signs_of(Rendered(prompt, [mask for _, mask in so_far])) == so_far
    if any(mask and sign != "}" for sign, mask in expected):
        _, row, unused = conversation_of({"messages": messages})
        assert signs_of(render(row, char())) == expected
        assert unused == ({"name"} if any("name" in m for m in messages) else set())
    else:
        with pytest.raises(DataError, match="no answer to learn from"):
            conversation_of({"messages": messages})
