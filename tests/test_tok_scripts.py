"""tok_train and tok_eval as a user runs them."""

import json
import re
import threading

import pytest
import requests
import tiktoken

from nanochat import tokenizer
from nanochat.errors import ConfigError, DataError
from nanochat.tokenizer import BpeTokenizer, CharTokenizer
from scripts import tok_eval, tok_show, tok_train

TEXTS = [f"Mary has {n} lambs; their {n % 9} fleeces were white as snow.\n" * 3 for n in range(90)]


@pytest.fixture
def base(tmp_path, monkeypatch):
    """A base folder, and texts.jsonl beside it; no tokenizer is to be had from the network."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    rows = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    (tmp_path / "texts.jsonl").write_text(rows)

    def offline(name):
        raise requests.exceptions.ConnectionError("no network")

    monkeypatch.setattr(tiktoken, "get_encoding", offline)
    return tmp_path


def words(base, *more):
    return ["--run", "r", "--data", str(base / "texts.jsonl"), *more]


def result(base, stage):
    return json.loads((base / "base" / "runs" / "r" / stage / "result.json").read_text())


def figures(base, stage):
    return {(row["name"], row["unit"]): row["value"] for row in result(base, stage)["results"]}


def saved(base, name="r"):
    return tokenizer.load(base / "base" / "tokenizers" / name)


def test_a_bpe_tokenizer_is_trained_saved_and_recorded(base, capsys):
    tok_train.main(words(base, "--vocab-size", "300"))
    learnt = saved(base)
    assert isinstance(learnt, BpeTokenizer)
    assert learnt.vocab_size == 300
    assert result(base, "tok_train")["settings"]["tokenizer_sha256"] == learnt.sha256
    assert figures(base, "tok_train")["vocabulary", "tokens"] == 300
    config = json.loads((base / "base/runs/r/tok_train/config.json").read_text())
    assert config["options"]["vocab_size"] == 300
    assert config["data"]["shards"]
    assert "bpe tokenizer of 300 tokens" in capsys.readouterr().out


def test_training_twice_gives_the_same_tokenizer(base):
    tok_train.main(words(base, "--vocab-size", "300"))
    first = saved(base).sha256
    tok_train.main(words(base, "--vocab-size", "300", "--name", "other", "--threads", "1"))
    assert saved(base, "other").sha256 == first


def test_a_character_tokenizer_is_trained_on_request(base):
    tok_train.main(words(base, "--tokenizer", "char"))
    learnt = saved(base)
    assert isinstance(learnt, CharTokenizer)
    assert set(learnt.characters) <= set("".join(TEXTS)) | {"\ufffd"}


def test_too_little_text_for_the_vocabulary_is_noted(base, capsys):
    tok_train.main(words(base, "--vocab-size", "5000"))
    size = saved(base).vocab_size
    assert size < 5000
    assert f"the text had pairs for {size:,} tokens only, not 5,000" in capsys.readouterr().out


def test_limits_of_characters_are_kept(base):
    tok_train.main(words(base, "--max-characters", "700", "--max-document-characters", "40"))
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
def test_wrong_flags_are_refused_before_anything_is_written(base, flags, message):
    with pytest.raises(ConfigError, match=message):
        tok_train.main(words(base, *flags))
    assert not (base / "base").exists()


def test_tok_eval_needs_a_tokenizer(base):
    with pytest.raises(DataError, match="no such tokenizer; train one with `nanochat tok_train`"):
        tok_eval.main(words(base))


def test_tok_eval_records_bytes_per_token_and_what_is_missing(base, capsys):
    tok_train.main(words(base, "--vocab-size", "300"))
    tok_eval.main(words(base))
    found, learnt = figures(base, "tok_eval"), saved(base)
    code = found["Python code, ours", "bytes a token"]
    assert 1 < code < 4
    text = tok_eval.OTHER_TEXTS["German"]
    wanted = len(text.encode()) / len(learnt.encode(text))
    assert found["German, ours", "bytes a token"] == pytest.approx(wanted)
    characters = found["German, ours", "characters a token"]
    assert characters == pytest.approx(len(text) / len(learnt.encode(text)))
    assert 0 < found["vocabulary that occurs in the data", "of all tokens"] <= 1
    longest, *notes = result(base, "tok_eval")["notes"]
    assert longest.startswith("longest tokens: ' ")
    assert [note.split(" is left out: ConnectionError")[0] for note in notes] == ["gpt2", "cl100k"]
    assert "note: gpt2 is left out: ConnectionError" in capsys.readouterr().out


def test_tok_eval_compares_with_the_encodings_that_can_be_loaded(base, monkeypatch):
    def encoding(name):
        if name != "gpt2":
            raise OSError("no network")
        ranks = {bytes([byte]): byte for byte in range(256)}
        return tiktoken.Encoding(
            "bytes", pat_str=r"(?s).", mergeable_ranks=ranks, special_tokens={}
        )

    monkeypatch.setattr(tiktoken, "get_encoding", encoding)
    tok_train.main(words(base, "--vocab-size", "300"))
    tok_eval.main(words(base, "--eval-characters", "500"))
    found = figures(base, "tok_eval")
    assert found["Russian, gpt2", "bytes a token"] == 1
    assert not any("cl100k" in name for name, _ in found)


def test_tok_eval_does_not_wait_for_a_network_that_does_not_answer(base, monkeypatch):
    monkeypatch.setattr(tok_eval, "LOAD_LIMIT_S", 0.05)
    tok_train.main(words(base, "--vocab-size", "300"))
    never = threading.Event()

    def hang(name):
        never.wait(30)
        raise OSError("given up")

    monkeypatch.setattr(tiktoken, "get_encoding", hang)
    tok_eval.main(words(base))
    never.set()
    assert "gpt2 is left out: no answer from the network" in result(base, "tok_eval")["notes"][1]


def test_texts_a_character_tokenizer_cannot_spell_get_no_figure(base):
    tok_train.main(words(base, "--tokenizer", "char"))
    tok_eval.main(words(base))
    found = figures(base, "tok_eval")
    assert found["training text, ours", "bytes a token"] == 1
    assert ("Korean, ours", "bytes a token") not in found


def test_tokenize_shows_every_token_with_its_id(base, capsys):
    tok_train.main(words(base, "--vocab-size", "300"))
    learnt = saved(base)
    text = "the cat\tsat: 日本 naïve\n"
    capsys.readouterr()
    tok_show.main([text, "--tokenizer", "r"])
    *rows, summary = capsys.readouterr().out.splitlines()
    shown = "".join(cell.rstrip(" ") for row in rows[::2] for cell in row.split("|"))
    ids = [int(id_) for row in rows[1::2] for id_ in row.split()]
    assert ids == learnt.encode(text)
    assert shown.startswith("the")
    assert "\\t" in shown
    assert "\\n" in shown
    assert f"{len(ids)} tokens for {len(text.encode())} bytes" in summary
    tok_show.main(["hi", "--chat", "--tokenizer", "r"])
    assert "|<|bos|> |<|user_start|> |h" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="there is no text"):
        tok_show.main(["", "--tokenizer", "r"])


def test_rows_of_tokens_are_no_wider_than_the_terminal():
    tokens = [
        tok_show.Token(i, data, special=False) for i, data in enumerate([b"abc", b"\xe6"] * 40)
    ]
    tokens.append(tok_show.Token(7, "日本".encode(), special=True))
    for coloured in (False, True):
        found = tok_show.lines(tokens, 40, coloured=coloured)
        plain = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in found]
        assert all(tok_show.columns_of(line) <= 41 for line in plain)
        assert [int(word) for line in plain[1::2] for word in line.split()] == [*range(80), 7]
        assert "".join(plain[::2]).count("E6") == 40
