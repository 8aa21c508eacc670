"""Training against PyPI's rustbpe and a naive reference, encoding against tiktoken, files."""

import contextlib
import functools
import itertools
import json
import os
import pickle
import signal
import sys
import threading
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import tiktoken
import tiktoken_ext.openai_public
from hypothesis import given, settings
from hypothesis import strategies as st

import rustbpe
from nanochat import tokenizer
from nanochat.system.errors import ConfigError, DataError
from nanochat.tokenizer import SPECIAL_TOKENS, BpeTokenizer, CharTokenizer, _rustbpe, bpe
from nanochat.tokenizer.bpe import SPLIT_PATTERN

CORPORA = Path(__file__).parent.parent.parent / "shared" / "data" / "corpora"
CACHE = CORPORA.parent / "tiktoken_cache"
TEXT = (
    "The quick brown fox didn't jump over the lazy dogs; they'd SEEN it, and WE'LL see 12345 "
    "more.\n\n  Ünïcödé naïve café — 日本語 テスト, ١٢٣, 😀😀!\r\n\tdef f(x):\n\t\treturn x**2  \n"
) * 3
# What the split pattern treats in ways of its own, and what looks as if it did.
ALPHABET = [
    *" \t\r\n\v\f\x85\xa0\u2028\u3000'’\u017f",
    *"sStTdDmMlLvVeErR", "'s", "'LL", "'Ve", "'re", "aé", "e\u0301", "日本", "ß", "İ",
    *"1239٣½Ⅷ", ".", "!?", "_", "<|bos|>", "<|", "😀", "👩\u200d🚀", "\x00", "\U0010ffff",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(ALPHABET) | st.characters(exclude_categories=["Cs"]), max_size=40)
# Bounded by tiktoken's limit on long texts; beyond it the Rust encoder is used.
LONG = bpe.LONG_TEXT_CHARACTERS


def prose(shards: int) -> list[str]:
    if not CORPORA.exists():
        pytest.skip(f"{CORPORA} is not there")
    paths = [CORPORA / f"prose_{shard:05}.parquet" for shard in (2, 1, 0)[:shards]]
    return [text for path in paths for text in pyarrow.parquet.read_table(path)["text"].to_pylist()]


@functools.cache
def trained() -> BpeTokenizer:
    return tokenizer.train_bpe([TEXT], 700)


@functools.cache
def characters() -> CharTokenizer:
    return tokenizer.train_char([TEXT])


@pytest.fixture(params=[trained, characters], ids=["bpe", "char"])
def any_tokenizer(request):
    return request.param()


def pypi_tokens(texts, vocab_size):
    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(iter(texts), vocab_size, pattern=SPLIT_PATTERN)
    return [bytes(token) for token, _ in trainer.get_mergeable_ranks()]


def naive_tokens(texts, vocab_size):
    """Count all pairs afresh for each merge; ties go to the smaller pair of ids."""
    pieces = Counter(piece for text in texts for piece in _rustbpe.split(text, SPLIT_PATTERN))
    words = [(list(piece.encode()), count) for piece, count in pieces.items()]
    tokens = [bytes([byte]) for byte in range(256)]
    while len(tokens) < vocab_size:
        counts = Counter()
        for word, count in words:
            for pair in pairwise(word):
                counts[pair] += count
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        for word, _ in words:
            at = 0
            while at < len(word) - 1:
                if (word[at], word[at + 1]) == best:
                    word[at : at + 2] = [len(tokens)]
                at += 1
        tokens.append(tokens[best[0]] + tokens[best[1]])
    return tokens


def test_the_rust_scanner_was_written_for_the_pattern_in_use():
    assert _rustbpe.PATTERN == SPLIT_PATTERN


def test_merges_equal_those_of_pypi_rustbpe_on_prose():
    texts = prose(1)
    assert _rustbpe.train(texts, 8192, SPLIT_PATTERN) == pypi_tokens(texts, 8192)


@pytest.mark.slow
def test_merges_equal_those_of_pypi_rustbpe_on_all_corpora():
    texts = [*prose(3), (CORPORA / "tinyshakespeare.txt").read_text()]
    assert _rustbpe.train(texts, 32768, SPLIT_PATTERN) == pypi_tokens(texts, 32768)


def test_merges_equal_those_of_pypi_rustbpe_on_source_code():
    texts = [path.read_text("utf-8") for path in sorted(Path(os.__file__).parent.glob("*.py"))]
    assert sum(map(len, texts)) > 2_000_000
    assert _rustbpe.train(texts, 4096, SPLIT_PATTERN) == pypi_tokens(texts, 4096)


def test_merges_equal_those_of_pypi_rustbpe_on_many_scripts():
    texts = many_scripts(400_000)
    assert _rustbpe.train(texts, 8192, SPLIT_PATTERN) == pypi_tokens(texts, 8192)
    learned = tokenizer.train_bpe(texts, 8192)
    ids, offsets = learned.encode_batch(texts, bos=False)
    for text, (begin, end) in zip(texts, pairwise(offsets), strict=True):
        assert ids[begin:end].tolist() == learned._tiktoken.encode_ordinary(text)


def many_scripts(words: int) -> list[str]:
    """Made-up text of frequent and rare words in scripts of one to four bytes a character."""
    random = np.random.default_rng(5)
    ranges = [(97, 123), (0xE0, 0xFF), (0x3B1, 0x3C9), (0x430, 0x450), (0x5D0, 0x5EA)]
    ranges += [(0x621, 0x64A), (0x905, 0x94D), (0xE01, 0xE2E), (0x3041, 0x3096), (0x4E00, 0x5000)]
    ranges += [(0xAC00, 0xAE00), (0x10330, 0x1034A), (0x1F600, 0x1F640), (0x300, 0x310), (48, 58)]
    lexicon = [
        "".join(map(chr, random.integers(*ranges[number % len(ranges)], random.integers(1, 9))))
        for number in range(6000)
    ]
    drawn = np.minimum(random.zipf(1.2, words), len(lexicon)) - 1
    between = random.choice([" ", " ", " ", "", ", ", "'s ", "\n", "。"], words)
    parts = [lexicon[word] + after for word, after in zip(drawn, between, strict=True)]
    return ["".join(parts[start : start + 500]) for start in range(0, words, 500)]


@pytest.mark.parametrize("unit", ["a", "ab", "aab", "abcab", "aabb", "日a"])
def test_merges_of_runs_equal_those_of_a_naive_trainer(unit):
    texts = [" ".join(unit * count for count in range(1, 20))]
    assert _rustbpe.train(texts, 600, SPLIT_PATTERN) == naive_tokens(texts, 600)


@settings(max_examples=40, deadline=None)
@given(st.lists(TEXTS.map("".join), max_size=5))
def test_merges_equal_those_of_a_naive_trainer(texts):
    assert _rustbpe.train(texts, 300, SPLIT_PATTERN) == naive_tokens(texts, 300)


def test_threads_order_and_kind_of_input_change_nothing():
    texts = [f"{TEXT} {n} {n * n}" for n in range(60)]
    wanted = _rustbpe.train(texts, 600, SPLIT_PATTERN, threads=1)
    for threads in (2, 5):
        assert _rustbpe.train(texts[::-1], 600, SPLIT_PATTERN, threads=threads) == wanted
    encoded = (text.encode() for text in texts)
    assert _rustbpe.train(encoded, 600, SPLIT_PATTERN) == wanted


def test_little_text_gives_a_smaller_vocabulary():
    learned = tokenizer.train_bpe(["ab ab"], 1000)
    assert learned.tokens[256:] == [b"ab", b" ab"]
    assert learned.vocab_size == 256 + 2 + len(SPECIAL_TOKENS)


def test_every_token_encodes_to_itself_and_none_is_there_twice():
    learned = trained()
    assert len(set(learned.tokens)) == len(learned.tokens)
    for rank, token in enumerate(learned.tokens):
        text = token.decode("utf-8", "replace")
        if "\ufffd" not in text:
            assert learned.encode(text) == [rank]


def test_training_on_nothing_or_to_an_impossible_size_is_refused():
    with pytest.raises(DataError, match="text to learn a vocabulary from is empty; give --data"):
        tokenizer.train_bpe([], 300)
    with pytest.raises(ConfigError, match="vocab_size must be at least 265, got 264"):
        tokenizer.train_bpe([TEXT], 264)
    with pytest.raises(DataError, match="text to learn characters from is empty"):
        tokenizer.train_char(["", ""])
    with pytest.raises(ConfigError, match="vocab_size must be at least 11, got 10"):
        tokenizer.train_char(["ab"], 10)


def columns(texts, kind=None):
    """Texts as Arrow columns, cut out of a longer one so that they do not begin at its start."""
    whole = pa.array(["before", None, *texts, "after"], kind or pa.string())
    return [
        whole.slice(1, 1 + len(texts) // 2),
        whole.slice(2 + len(texts) // 2, -(-len(texts) // 2)),
    ]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary()])
def test_arrow_columns_are_read_like_strings(kind):
    texts = [f"{TEXT} {n} {n * n}" for n in range(61)]
    assert _rustbpe.train(columns(texts, kind), 600, SPLIT_PATTERN) == _rustbpe.train(
        texts, 600, SPLIT_PATTERN
    )
    first, second = columns(texts, kind)
    for bos in (True, False):
        with pytest.raises(DataError, match="a column contains nulls"):
            trained().encode_batch(first, bos=bos)
        parts = [trained().encode_batch(c.drop_null(), bos=bos) for c in (first, second)]
        wanted, offsets = trained().encode_batch(texts, bos=bos)
        assert np.array_equal(np.concatenate([tokens for tokens, _ in parts]), wanted)
        ends = [parts[0][1], parts[1][1][1:] + parts[0][1][-1]]
        assert np.array_equal(np.concatenate(ends), offsets)


def test_large_columns_are_counted_in_runs_of_rows():
    texts = [f"{TEXT} {n} {n * n}" for n in range(9000)]
    assert sum(map(len, texts)) > 4_000_000
    chunked = pa.chunked_array([pa.array([*texts, None]), pa.array(texts)])
    found = [_rustbpe.train([chunked], 600, SPLIT_PATTERN, threads=n) for n in (1, 3)]
    assert found == [_rustbpe.train(texts * 2, 600, SPLIT_PATTERN)] * 2


def test_arrow_columns_without_text_give_nothing():
    empty = pa.array([], pa.string())
    for column in (empty, pa.array([None], pa.string())):
        assert len(_rustbpe.train([column], 300, SPLIT_PATTERN)) == 256
    assert trained().encode_batch(empty, bos=True)[1].tolist() == [0]
    assert trained().encode_batch(pa.array([""]), bos=False)[1].tolist() == [0, 0]


def test_arrow_columns_that_hold_no_text_are_refused():
    with pytest.raises(TypeError, match='must hold strings, got format "l"'):
        _rustbpe.train([pa.array([1, 2])], 300, SPLIT_PATTERN)
    torn = pa.array([b"fine", b"\xff"], pa.binary())
    with pytest.raises(DataError, match="not UTF-8: row 1 of a column"):
        trained().encode_batch(torn, bos=False)
    with pytest.raises(ValueError, match="not UTF-8: row 1 of a column"):
        _rustbpe.train([torn], 300, SPLIT_PATTERN)


def long_text() -> str:
    lines = [f"{TEXT} number {n * 7919 % 100_003}" for n in range(60_000)]
    return "\n".join(lines)


@pytest.mark.slow
def test_long_documents_and_files_are_cut_without_a_trace(tmp_path):
    text = long_text()
    assert len(text) > 5_000_000
    wanted = pypi_tokens([text], 1000)
    path = tmp_path / "long.txt"
    path.write_text(text, encoding="utf-8")
    for threads in (1, 3):
        assert _rustbpe.train([text], 1000, SPLIT_PATTERN, threads=threads) == wanted
        assert _rustbpe.train([path], 1000, SPLIT_PATTERN, threads=threads) == wanted


def test_a_file_without_a_place_to_cut_is_read_whole(tmp_path):
    text = "a bc 日" * 700_000
    path = tmp_path / "line.txt"
    path.write_text(text, encoding="utf-8")
    found = []
    wanted = _rustbpe.train([text], 270, SPLIT_PATTERN)
    assert _rustbpe.train([path], 270, SPLIT_PATTERN, counted=lambda *f: found.append(f)) == wanted
    assert found[0][:2] == (path.stat().st_size, 4)


def test_files_that_cannot_be_read_are_named(tmp_path):
    path = tmp_path / "torn.txt"
    path.write_bytes(b"fine\n" * 100 + b"\xff")
    with pytest.raises(ValueError, match=r"torn\.txt is not UTF-8"):
        _rustbpe.train([path], 300, SPLIT_PATTERN)
    with pytest.raises(FileNotFoundError, match=r"none\.txt"):
        _rustbpe.train([tmp_path / "none.txt"], 300, SPLIT_PATTERN)
    with pytest.raises(IsADirectoryError) as error:
        _rustbpe.train([tmp_path], 300, SPLIT_PATTERN)
    assert error.value.filename == str(tmp_path)


def test_a_memory_limit_drops_the_rarest_pieces_and_says_how_much():
    random = np.random.default_rng(0)
    rare = ["".join(map(chr, random.integers(97, 123, 9))) for _ in range(100_000)]
    texts = [f"the cat sat on the mat {word}" for word in rare]
    read = []
    exact = tokenizer.train_bpe(texts, 300, counted=read.append)
    roomy = tokenizer.train_bpe(texts, 300, memory=1 << 30, counted=read.append)
    small = tokenizer.train_bpe(texts, 300, memory=1 << 20, counted=read.append)
    assert roomy.sha256 == exact.sha256
    assert [text.lost_bytes for text in read[:2]] == [0, 0]
    assert read[2].bytes == read[0].bytes == sum(map(len, texts))
    assert read[2].pieces < 100_000 < read[0].pieces
    assert 0 < read[2].lost_bytes <= 10 * 100_000
    assert 1 <= read[2].lost_count < 1000
    assert {b" the", b" cat", b" sat", b" on", b" mat"} <= set(small.tokens)


def test_sizes_at_the_limits_and_texts_without_pieces():
    assert tokenizer.train_bpe(["hello hello"], 265).tokens == [bytes([b]) for b in range(256)]
    assert tokenizer.train_bpe(["hello"], 300, pattern=r"\d+").vocab_size == 265
    with pytest.raises(DataError, match="vocab_size must be from 256 to 2097151, got 3000000"):
        tokenizer.train_bpe([TEXT], 3_000_009)
    for nothing in ([], [""], iter([])):
        with pytest.raises(DataError, match="is empty"):
            tokenizer.train_bpe(nothing, 300)
    for single in (TEXT, TEXT.encode()):
        with pytest.raises(TypeError, match="must be a list or iterator of texts"):
            tokenizer.train_bpe(single, 300)  # type: ignore[arg-type]


def test_a_pattern_that_tiktoken_gives_up_on_is_an_error_or_works():
    pattern = r"(a|a)*+(?<=b)|(?:a|a|(?=a)a)*(?=c)|\w+|\W+"
    learned = tokenizer.train_bpe(["x y"], 300, pattern=pattern)
    with pytest.raises(DataError, match="the split pattern failed"):
        learned.encode("a" * 40 + "!")


def test_what_goes_wrong_while_training_is_raised():
    def broken():
        yield TEXT
        raise DataError("torn file")

    with pytest.raises(DataError, match="torn file"):
        tokenizer.train_bpe(broken(), 300)
    with pytest.raises(DataError, match="not UTF-8"):
        tokenizer.train_bpe([b"\xff"], 300)  # type: ignore[list-item]
    with pytest.raises(
        TypeError, match="a text must be a str, bytes, a path or an Arrow array of strings, got int"
    ):
        tokenizer.train_bpe([3], 300)  # type: ignore[list-item]
    with pytest.raises(DataError, match="split pattern is not valid"):
        tokenizer.train_bpe([TEXT], 300, pattern="(")
    with pytest.raises(ZeroDivisionError):
        _rustbpe.train([long_word()], 2_000_000, SPLIT_PATTERN, progress=lambda done: 1 // 0)


def long_word() -> bytes:
    """One piece whose millions of merges take minutes."""
    return np.random.default_rng(0).integers(97, 123, 8_000_000, dtype=np.uint8).tobytes()


@contextlib.contextmanager
def ctrl_c():
    """Send this process SIGINT soon, which must end work that would take minutes or forever."""
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        timer.cancel()


@pytest.mark.skipif(sys.platform == "win32", reason="signals work differently there")
@pytest.mark.timeout(60)
def test_ctrl_c_ends_training():
    with ctrl_c():
        _rustbpe.train([long_word()], 2_000_000, SPLIT_PATTERN)


@pytest.mark.skipif(sys.platform == "win32", reason="signals work differently there")
@pytest.mark.timeout(60)
def test_ctrl_c_ends_counting_with_a_slow_pattern():
    with ctrl_c():
        _rustbpe.train(itertools.repeat(TEXT * 100), 300, r"\p{L}+|\s+|[^\p{L}\s]+")


@pytest.mark.skipif(sys.platform == "win32", reason="signals work differently there")
@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["document", "column", "empty"])
def test_ctrl_c_ends_counting_within_one_document(kind):
    text = TEXT * 10_000
    texts = {
        "document": [text],
        "column": [pa.array([text])],
        "empty": itertools.repeat(""),
    }[kind]
    with ctrl_c():  # each piece looks ahead to the end of the text: hours
        _rustbpe.train(texts, 300, r"\p{L}+(?=[^\x00]*)|\s+|[^\p{L}\s]+")


def test_another_pattern_goes_through_the_regex_engine():
    pattern = r"\p{L}+|\s+|[^\p{L}\s]+"
    assert _rustbpe.split("don't 123", pattern) == ["don", "'", "t", " ", "123"]
    learned = tokenizer.train_bpe([TEXT], 400, pattern=pattern)
    same = tokenizer.from_json(learned.to_json())
    assert same.encode_batch([TEXT], bos=False)[0].tolist() == learned.encode(TEXT)
    assert learned.decode(learned.encode(TEXT)) == TEXT


@settings(max_examples=300, deadline=None)
@given(TEXTS.map("".join))
def test_the_patterns_of_gpt2_and_gpt4_give_the_tokens_of_tiktoken(text):
    for encoder, reference in published_patterns():
        tokens, _ = encoder.encode_batch([text])
        assert np.frombuffer(tokens, np.uint32).tolist() == reference.encode_ordinary(text)


@functools.cache
def published_patterns():
    """Our tokens with each published pattern that is built in, and tiktoken's encoding of them."""
    ranks = {token: rank for rank, token in enumerate(trained().tokens)}
    assert len(_rustbpe.PATTERNS) == 3
    return [
        (
            _rustbpe.Encoder(trained().tokens, pattern),
            tiktoken.Encoding("it", pat_str=pattern, mergeable_ranks=ranks, special_tokens={}),
        )
        for pattern in _rustbpe.PATTERNS
    ]


def test_the_built_in_patterns_are_those_of_tiktoken():
    published = Path(tiktoken_ext.openai_public.__file__).read_text()
    for pattern in _rustbpe.PATTERNS[1:]:
        assert pattern in published


@settings(max_examples=400, deadline=None)
@given(TEXTS.map("".join))
def test_the_rust_encoder_equals_tiktoken(text):
    learned = trained()
    wanted = learned._tiktoken.encode_ordinary(text)
    assert learned.encode_batch([text], bos=False)[0].tolist() == wanted
    assert learned.encode(text) == wanted
    assert learned.decode(wanted) == text


@pytest.mark.slow
def test_the_classes_of_all_code_points_are_those_of_tiktoken():
    points = [chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000]

    def pieces(text: str) -> int:
        return len(_rustbpe.split(text, SPLIT_PATTERN))

    letters = {point for point in points if pieces("a" + point) == 1}
    numbers = {point for point in points if pieces("1" + point) == 1}
    rest = [point for point in points if point not in letters and point not in numbers]
    spaces = {point for point in rest if pieces(f".{point}.") > 1}
    assert letters == matched_by_tiktoken(r"\p{L}", points)
    assert numbers == matched_by_tiktoken(r"\p{N}", points)
    assert spaces == matched_by_tiktoken(r"\s", points)


def matched_by_tiktoken(pattern: str, points: list[str]) -> set[str]:
    """The characters that a pattern matches: tokens are bytes, and what does not match is gone."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    encoding = tiktoken.Encoding("class", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    texts = ("".join(points[start : start + 4096]) for start in range(0, len(points), 4096))
    return {point for text in texts for point in bytes(encoding.encode_ordinary(text)).decode()}


@pytest.mark.slow
def test_the_rust_encoder_equals_tiktoken_on_every_code_point():
    learned = trained()
    points = [chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    texts = [
        "".join(f"'{c}a1{c}{c} {c}" for c in points[start : start + 4096])
        for start in range(0, len(points), 4096)
    ]
    ids, offsets = learned.encode_batch(texts, bos=False)
    for number, text in enumerate(texts):
        wanted = learned._tiktoken.encode_ordinary(text)
        assert ids[offsets[number] : offsets[number + 1]].tolist() == wanted, hex(number * 4096)


def test_the_rust_encoder_equals_tiktoken_on_prose_and_with_gpt2s_vocabulary(monkeypatch):
    texts = prose(1)
    learned = tokenizer.train_bpe(texts, 2048)
    ids, offsets = learned.encode_batch(texts, bos=True)
    wanted = [[learned.bos_id, *learned._tiktoken.encode_ordinary(text)] for text in texts]
    assert ids.tolist() == [token for tokens in wanted for token in tokens]
    assert np.diff(offsets).tolist() == [len(tokens) for tokens in wanted]
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(CACHE))
    gpt2 = tiktoken.get_encoding("gpt2")
    tokens = [gpt2.decode_single_token_bytes(rank) for rank in range(gpt2.n_vocab - 1)]
    encoder = _rustbpe.Encoder(tokens, gpt2._pat_str)
    found = np.frombuffer(encoder.encode_batch(texts[:20])[0], dtype=np.uint32)
    assert found.tolist() == [id_ for text in texts[:20] for id_ in gpt2.encode_ordinary(text)]


@pytest.mark.parametrize("unit", ["a", " ", "\n", ".", "1", "日", "ab", "\t ", " \n"])
def test_pieces_of_critical_lengths_equal_tiktoken(unit):
    learned = trained()
    for length in (14, 15, 16, 17, 63, 64, 65, 66, 255, 499, 500, 501, 3000):
        text = (unit * length)[:length]
        for whole in (text, text + "x", "x" + text):
            wanted = learned._tiktoken.encode_ordinary(whole)
            assert learned.encode_batch([whole], bos=False)[0].tolist() == wanted


@pytest.mark.parametrize("unit", [" ", "\n", "\t", "a", ".", "日", " \n"])
def test_a_million_equal_characters_neither_crash_nor_change(unit):
    text = unit * (1_000_000 // len(unit)) + "end"
    learned = trained()
    ids = learned.encode(text)
    assert learned.decode(ids) == text
    # tiktoken fails where it splits such a run, not where it merges the pieces.
    pieces = [piece.encode() for piece in _rustbpe.split(text, SPLIT_PATTERN)]
    one_piece = learned._tiktoken._encode_single_piece
    assert ids == [id_ for piece in pieces for id_ in one_piece(piece)]
    assert tokenizer.train_bpe([text], 280).vocab_size <= 280


def test_long_texts_are_encoded_like_short_ones():
    learned = trained()
    text = TEXT * (LONG // len(TEXT) + 1)
    assert len(text) >= LONG
    assert learned.encode(text) == learned._tiktoken.encode_ordinary(text)


@pytest.mark.parametrize(
    "text", ["a\ud800b", "\udc00", "\ud83d\ude00!", "\ud83d", "x\ude00\ud83dy"]
)
def test_surrogates_are_read_as_tiktoken_reads_them(text):
    for learned in (trained(), tokenizer.train_char([TEXT, "\ufffd", text])):
        repaired = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        assert learned.decode(learned.encode(text)) == repaired
        assert learned.encode_batch([text], bos=False)[0].tolist() == learned.encode(text)
    assert trained().encode(text) == trained()._tiktoken.encode_ordinary(text)
    tokenizer.train_bpe([text], 300)


def test_text_that_looks_like_a_special_token_stays_text(any_tokenizer):
    for name in SPECIAL_TOKENS:
        ids = any_tokenizer.encode(f"a {name} b")
        assert any_tokenizer.special_id(name) not in ids
        batch, _ = any_tokenizer.encode_batch([name], bos=False)
        assert max(batch) < any_tokenizer.bos_id
    assert max(any_tokenizer.encode("<|bos|>" * LONG)) < any_tokenizer.bos_id


def test_special_tokens_follow_the_vocabulary_in_order(any_tokenizer):
    ids = [any_tokenizer.special_id(name) for name in SPECIAL_TOKENS]
    size = any_tokenizer.vocab_size
    assert ids == list(range(size - len(SPECIAL_TOKENS), size))
    assert any_tokenizer.bos_id == ids[0]
    assert any_tokenizer.decode(ids) == "".join(SPECIAL_TOKENS)
    assert any_tokenizer.decode_bytes([ids[1]]) == b"<|user_start|>"


def test_token_bytes_are_raw_lengths_and_zero_for_specials(any_tokenizer):
    sizes = any_tokenizer.token_bytes
    assert sizes.dtype == np.int32
    assert sizes.shape == (any_tokenizer.vocab_size,)
    assert sizes[any_tokenizer.encode(TEXT)].sum() == len(TEXT.encode())
    ordinary = range(any_tokenizer.bos_id)
    assert sizes.tolist()[: any_tokenizer.bos_id] == [
        len(any_tokenizer.decode_bytes([id_])) for id_ in ordinary
    ]
    assert not sizes[any_tokenizer.bos_id :].any()


def test_batches_hold_each_text_with_bos_in_narrow_arrays(any_tokenizer):
    texts = ["The fox", "", TEXT, "jump"]
    for bos in (True, False):
        ids, offsets = any_tokenizer.encode_batch(texts, bos=bos)
        assert (ids.dtype, offsets.dtype) == (np.uint16, np.int64)
        assert ids.flags.writeable
        lead = [any_tokenizer.bos_id] if bos else []
        parts = [ids[i:j].tolist() for i, j in pairwise(offsets)]
        assert parts == [lead + any_tokenizer.encode(text) for text in texts]
    ids, offsets = any_tokenizer.encode_batch([], bos=True)
    assert (len(ids), offsets.tolist()) == (0, [0])


def test_vocabularies_beyond_16_bits_give_wide_arrays():
    extra = [b"%05d" % number for number in range(2**16 - 256 - len(SPECIAL_TOKENS) + 1)]
    tokens = [*(bytes([byte]) for byte in range(256)), *extra]
    wide, narrow = BpeTokenizer(tokens), BpeTokenizer(tokens[:-1])
    assert (wide.vocab_size, narrow.vocab_size) == (2**16 + 1, 2**16)
    assert wide.encode_batch(["a"], bos=True)[0].tolist() == [wide.bos_id, 97]
    assert wide.encode_batch(["a"], bos=True)[0].dtype == np.uint32
    assert narrow.encode_batch(["a"], bos=True)[0].dtype == np.uint16


def test_unknown_characters_become_the_replacement_character():
    learned = tokenizer.train_char(["abc"])
    assert learned.characters == "abc\ufffd"
    assert learned.decode(learned.encode("aé😀b")) == "a\ufffd\ufffdb"


def test_a_small_character_vocabulary_leaves_out_the_rarest():
    learned = tokenizer.train_char(["aaabbc", "ddddz"], 4 + len(SPECIAL_TOKENS))
    assert learned.characters == "abd\ufffd"
    assert learned.vocab_size == 4 + len(SPECIAL_TOKENS)


def test_a_saved_tokenizer_loads_as_the_same(any_tokenizer, tmp_path):
    path = tmp_path / "run" / "tokenizer.json"
    tokenizer.save(any_tokenizer, path)
    for place in (path, path.parent):
        loaded = tokenizer.load(place)
        assert type(loaded) is type(any_tokenizer)
        assert loaded.sha256 == any_tokenizer.sha256
        assert loaded.encode(TEXT) == any_tokenizer.encode(TEXT)
    assert [p.name for p in path.parent.iterdir()] == ["tokenizer.json"]
    assert pickle.loads(pickle.dumps(any_tokenizer)).encode(TEXT) == any_tokenizer.encode(TEXT)


def test_the_same_text_gives_the_same_sha256():
    assert tokenizer.train_bpe([TEXT], 700).sha256 == trained().sha256
    assert tokenizer.train_bpe([TEXT], 300).sha256 != trained().sha256


def test_a_missing_tokenizer_says_how_to_get_one(tmp_path):
    with pytest.raises(DataError, match="no such tokenizer; train one with `nanochat tok_train`"):
        tokenizer.load(tmp_path / "nothing.json")


RUBBISH = [b"", b"{", b"\xff\xfe", b"[]", b"3", b"null", b"{}", b'{"kind": "bpe"}']


@pytest.mark.parametrize("content", RUBBISH)
def test_rubbish_is_no_tokenizer(content, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match="train one with `nanochat tok_train`") as caught:
        tokenizer.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def changed(value, **fields):
    content = {**value.to_json(), **fields}
    del content["sha256"]
    return {**content, "sha256": bpe._digest(content)}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": 99}, "not a tokenizer: it has format 99, this program reads 1"),
        ({"kind": "word"}, "not a tokenizer: it is of kind 'word', expected bpe or char"),
        ({"ranks": ["AA=="] * 2}, "not a tokenizer: a token appears twice"),
        ({"ranks": ["no base64!"]}, "not a tokenizer"),
        ({"ranks": None}, "not a tokenizer"),
        ({"ranks": []}, "not a tokenizer: a token that every vocabulary needs is missing"),
        ({"pattern": "("}, "not a tokenizer"),
        ({"pattern": 3}, "not a tokenizer"),
        ({"specials": ["<|other|>"]}, "it has different special tokens"),
    ],
)
def test_a_damaged_vocabulary_is_refused(fields, message):
    with pytest.raises(DataError, match=message):
        tokenizer.from_json(changed(trained(), **fields))


@pytest.mark.parametrize("characters_", ["abc", "aa\ufffd", "", 3, None, "\ud800\ufffd"])
def test_damaged_characters_are_refused(characters_):
    with pytest.raises(DataError, match="not a tokenizer"):
        tokenizer.from_json(changed(characters(), characters=characters_))


def test_a_changed_file_does_not_match_its_sha256(any_tokenizer, tmp_path):
    value = any_tokenizer.to_json()
    value["specials"] = value["specials"][::-1]
    (tmp_path / "tokenizer.json").write_text(json.dumps(value))
    with pytest.raises(DataError, match="does not match its sha256"):
        tokenizer.load(tmp_path)


def test_a_tokenizer_is_found_by_name_or_path(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    named = tmp_path / "base" / "tokenizers" / "mine"
    assert tokenizer.locate("mine") == named
    assert tokenizer.locate(str(tmp_path)) == tmp_path
    tokenizer.save(trained(), named / tokenizer.FILE_NAME)
    assert tokenizer.load(tokenizer.locate("mine")).sha256 == trained().sha256
