"""tok_train, tok_eval and tok_show as a user runs them."""

import json
import logging
import re
import threading
from pathlib import Path

import pytest
import requests
import tiktoken

from nanochat import tokenizer
from nanochat.stages import tok_eval, tok_show, tok_train
from nanochat.system.errors import ConfigError, DataError
from nanochat.tokenizer import BpeTokenizer, CharTokenizer, _rustbpe, published

CACHE = Path(__file__).parent.parent.parent / "shared" / "data" / "tiktoken_cache"
PUBLISHED_ENCODING = tiktoken.get_encoding  # the fixture below replaces it
UNAVAILABLE = (
    "the vocabulary of {} cannot be loaded (ConnectionError); connect to the network once, or "
    "set TIKTOKEN_CACHE_DIR to a folder that has it"
)
TEXTS = [f"Mary has {n} lambs; their {n % 9} fleeces were white as snow.\n" * 3 for n in range(90)]


@pytest.fixture
def base(tmp_path, monkeypatch):
    """A base folder with texts.jsonl beside it; no tokenizer can be downloaded."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    rows = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    (tmp_path / "texts.jsonl").write_text(rows)

    def offline(name):
        raise requests.exceptions.ConnectionError("no network")

    monkeypatch.setattr(tiktoken, "get_encoding", offline)
    return tmp_path


def args(base, *more):
    return ["--run", "r", "--data", str(base / "texts.jsonl"), *more]


def result(base, stage):
    return json.loads((base / "base" / "runs" / "r" / stage / "result.json").read_text())


def figures(base, stage):
    return {(row["name"], row["unit"]): row["value"] for row in result(base, stage)["results"]}


def saved(base, name="r"):
    return tokenizer.load(base / "base" / "tokenizers" / name)


def test_the_first_stage_tells_what_of_a_folder_is_left_out(base, monkeypatch, capsys):
    (base / "test.jsonl").write_text('{"text": "held out"}\n')
    level = logging.root.level
    monkeypatch.setattr(logging.root, "handlers", [])  # as outside pytest
    try:
        tok_train.main(["--run", "r", "--data", f"{base}/*.jsonl", "--tokenizer", "char"])
    finally:
        logging.root.setLevel(level)
    assert "left out: test.jsonl (test data)" in capsys.readouterr().err


def test_a_bpe_tokenizer_is_trained_saved_and_recorded(base, capsys):
    tok_train.main(args(base, "--vocab-size", "300"))
    trained = saved(base)
    assert isinstance(trained, BpeTokenizer)
    assert trained.vocab_size == 300
    assert result(base, "tok_train")["settings"]["tokenizer_sha256"] == trained.sha256
    assert figures(base, "tok_train")["vocabulary", "tokens"] == 300
    config = json.loads((base / "base/runs/r/tok_train/config.json").read_text())
    assert config["options"]["vocab_size"] == 300
    assert config["data"]["shards"]
    assert "bpe tokenizer with 300 tokens" in capsys.readouterr().out


def test_training_twice_gives_the_same_tokenizer(base):
    tok_train.main(args(base, "--vocab-size", "300"))
    first = saved(base).sha256
    tok_train.main(args(base, "--vocab-size", "300", "--name", "other", "--threads", "1"))
    assert saved(base, "other").sha256 == first


def test_a_character_tokenizer_is_trained_on_request(base):
    tok_train.main(args(base, "--tokenizer", "char"))
    trained = saved(base)
    assert isinstance(trained, CharTokenizer)
    assert set(trained.characters) <= set("".join(TEXTS)) | {"\ufffd"}


def test_too_little_text_for_the_vocabulary_is_noted(base, capsys):
    tok_train.main(args(base, "--vocab-size", "5000"))
    size = saved(base).vocab_size
    assert size < 5000
    assert (
        f"the text only had enough pairs for {size:,} tokens, not 5,000" in capsys.readouterr().out
    )


def test_character_limits_are_respected(base):
    tok_train.main(args(base, "--max-characters", "700", "--max-document-characters", "40"))
    found = figures(base, "tok_train")
    assert found["text read", "characters"] == 700
    assert found["documents read", "documents"] == 18  # 17 of 40 characters and one of 20


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--vocab-size", "264"], "--vocab-size must be at least 265 for bpe, got 264"),
        (["--vocab-size", "10", "--tokenizer", "char"], "at least 11 for char, got 10"),
        (["--tokenizer", "word"], "--tokenizer must be one of bpe, char, got 'word'"),
        (["--name", "../x"], "--name must be a plain name without '/', got '../x'"),
        (["--max-characters", "0"], "--max-characters must be at least 1 or none, got 0"),
    ],
)
def test_invalid_flags_are_rejected_before_anything_is_written(base, flags, message):
    with pytest.raises(ConfigError, match=message):
        tok_train.main(args(base, *flags))
    assert not (base / "base").exists()


def test_tok_eval_needs_a_tokenizer(base):
    with pytest.raises(DataError, match="no such tokenizer; train one with `nanochat tok_train`"):
        tok_eval.main(args(base))


def test_tok_eval_records_bytes_per_token_and_what_is_missing(base, capsys):
    tok_train.main(args(base, "--vocab-size", "300"))
    tok_eval.main(args(base))
    found, trained = figures(base, "tok_eval"), saved(base)
    code = found["Python code, ours", "bytes a token"]
    assert 1 < code < 4
    text = tok_eval.OTHER_TEXTS["German"]
    wanted = len(text.encode()) / len(trained.encode(text))
    assert found["German, ours", "bytes a token"] == pytest.approx(wanted)
    characters = found["German, ours", "characters a token"]
    assert characters == pytest.approx(len(text) / len(trained.encode(text)))
    assert 0 < found["vocabulary that occurs in the data", "of all tokens"] <= 1
    longest, *notes = result(base, "tok_eval")["notes"]
    assert longest.startswith("longest tokens: ' ")
    assert notes == [
        f"{short} is left out: {UNAVAILABLE.format(full)}"
        for short, full in tok_eval.REFERENCES.items()
    ]
    assert f"note: {notes[0]}" in capsys.readouterr().out


def test_tok_eval_compares_with_the_encodings_that_can_be_loaded(base, monkeypatch):
    def encoding(name):
        if name != "gpt2":
            raise OSError("no network")
        ranks = {bytes([byte]): byte for byte in range(256)}
        return tiktoken.Encoding(
            "bytes", pat_str=r"(?s).", mergeable_ranks=ranks, special_tokens={}
        )

    monkeypatch.setattr(tiktoken, "get_encoding", encoding)
    tok_train.main(args(base, "--vocab-size", "300"))
    tok_eval.main(args(base, "--eval-characters", "500"))
    found = figures(base, "tok_eval")
    assert found["Russian, gpt2", "bytes a token"] == 1
    assert not any("cl100k" in name for name, _ in found)


def test_tok_eval_does_not_wait_for_a_network_that_does_not_respond(base, monkeypatch):
    monkeypatch.setattr(published, "LOAD_LIMIT_S", 0.05)
    tok_train.main(args(base, "--vocab-size", "300"))
    never = threading.Event()

    def hang(name):
        never.wait(30)
        raise OSError("given up")

    monkeypatch.setattr(tiktoken, "get_encoding", hang)
    tok_eval.main(args(base))
    never.set()
    note = result(base, "tok_eval")["notes"][1]
    assert "the vocabulary of gpt2 cannot be loaded (no answer from the network in 0.05 s)" in note


def test_texts_a_character_tokenizer_cannot_represent_get_no_result(base):
    tok_train.main(args(base, "--tokenizer", "char"))
    tok_eval.main(args(base))
    found = figures(base, "tok_eval")
    assert found["training text, ours", "bytes a token"] == 1
    assert ("Korean, ours", "bytes a token") not in found


def test_tokenize_shows_every_token_with_its_id(base, capsys):
    tok_train.main(args(base, "--vocab-size", "300"))
    trained = saved(base)
    text = "the cat\tsat: 日本 naïve\n"
    capsys.readouterr()
    tok_show.main([text, "--tokenizer", "r"])
    *rows, summary = capsys.readouterr().out.splitlines()
    shown = "".join(cell.rstrip(" ") for row in rows[::2] for cell in row.split("|"))
    ids = [int(id_) for row in rows[1::2] for id_ in row.split()]
    assert ids == trained.encode(text)
    assert shown.startswith("the")
    assert "\\t" in shown
    assert "\\n" in shown
    assert f"{len(ids)} tokens for {len(text.encode())} bytes" in summary
    tok_show.main(["hi", "--chat", "--tokenizer", "r"])
    assert "|<|bos|> |<|user_start|> |h" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="the text is empty"):
        tok_show.main(["", "--tokenizer", "r"])


@pytest.mark.parametrize("error", [requests.exceptions.ConnectionError, OSError, ValueError])
def test_tokenize_reports_in_one_line_that_a_vocabulary_cannot_be_loaded(base, monkeypatch, error):
    def unavailable(name):
        raise error("no such host")

    monkeypatch.setattr(tiktoken, "get_encoding", unavailable)
    wanted = UNAVAILABLE.format("gpt2").replace("ConnectionError", error.__name__)
    with pytest.raises(ConfigError) as caught:
        tok_show.main(["hi", "--tokenizer", "gpt2"])
    assert str(caught.value) == wanted


def test_tokenize_does_not_wait_for_a_network_that_does_not_respond(base, monkeypatch):
    monkeypatch.setattr(published, "LOAD_LIMIT_S", 0.05)
    never = threading.Event()
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: never.wait(30))
    with pytest.raises(ConfigError, match=r"no answer from the network in 0\.05 s"):
        tok_show.main(["hi", "--tokenizer", "cl100k_base"])
    never.set()


@pytest.fixture
def gpt2(base, monkeypatch):
    if not CACHE.exists():
        pytest.skip(f"{CACHE} is not there")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(CACHE))
    monkeypatch.setattr(tiktoken, "get_encoding", PUBLISHED_ENCODING)
    return tiktoken.get_encoding("gpt2")


def test_tokenize_shows_the_tokens_of_gpt2(gpt2, capsys):
    text = "How many r are in strawberry? It's 3,  日本\n"
    tok_show.main([text, "--tokenizer", "gpt2"])
    *rows, summary = capsys.readouterr().out.splitlines()
    ids = [int(id_) for row in rows[1::2] for id_ in row.split()]
    assert ids == gpt2.encode_ordinary(text)
    assert rows[0].startswith("|How  | many | r  | are | in | strawberry |?  |")
    assert f"{len(ids)} tokens for {len(text.encode())} bytes" in summary
    with pytest.raises(ConfigError, match="gpt2 has no chat tokens"):
        tok_show.main([text, "--tokenizer", "gpt2", "--chat"])


@pytest.mark.slow
def test_a_million_spaces_before_a_text_do_not_break_gpt2(gpt2):
    # tiktoken itself panics here, raising something that is not an Exception.
    cfg = tok_show.TokenizeConfig(tokenizer="gpt2")
    tokens = tok_show.tokenize(" " * 1_200_000 + "text", cfg)
    assert len(tokens) == 1_200_000
    assert [token.bytes for token in tokens[-2:]] == [b" ", b" text"]


def encoding_of(pattern, ranks):
    return tiktoken.Encoding("it", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})


@pytest.mark.parametrize("pattern", _rustbpe.PATTERNS)
def test_published_vocabularies_give_the_same_tokens_as_tiktoken(pattern):
    trained = tokenizer.train_bpe(TEXTS, 400, pattern).tokens
    text = "Mary's 12345 lambs\n\n  were  snow-white \ud800; 日本 "
    gapless = encoding_of(pattern, {token: rank for rank, token in enumerate(trained)})
    gaps = encoding_of(pattern, {token: 2 * rank for rank, token in enumerate(trained)})
    for encoding, length in ((gapless, 200_000), (gaps, published.TIKTOKEN_CHARACTERS)):
        given = (text * 10_000)[:length]
        wanted = encoding.encode_ordinary(given)
        assert published.PublishedTokenizer(encoding).encode(given) == wanted


def test_a_text_too_long_for_a_vocabulary_only_tiktoken_encodes_is_rejected(base, monkeypatch):
    other = encoding_of(r"\s+(?!\S)|.", {bytes([byte]): byte for byte in range(256)})
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: other)
    cfg = tok_show.TokenizeConfig(tokenizer="o200k_base")
    assert len(tok_show.tokenize("a" * 50_000, cfg)) == 50_000
    with pytest.raises(ConfigError, match="50,001 characters is too long for it, which takes 50,0"):
        tok_show.main([" " * 50_000 + "a", "--tokenizer", "o200k_base"])


def test_rows_of_tokens_are_no_wider_than_the_terminal():
    tokens = [
        tok_show.Token(i, data, special=False) for i, data in enumerate([b"abc", b"\xe6"] * 40)
    ]
    tokens.append(tok_show.Token(7, "日本".encode(), special=True))
    for colored in (False, True):
        found = tok_show.lines(tokens, 40, colored=colored)
        plain = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in found]
        assert all(tok_show.columns_of(line) <= 41 for line in plain)
        assert [int(word) for line in plain[1::2] for word in line.split()] == [*range(80), 7]
        assert "".join(plain[::2]).count("E6") == 40
