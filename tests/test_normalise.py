from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.documents import Text
from operators.normalise import normalise

WORDS = st.sampled_from(
    [
        "word",
        "exam-",
        "ple",
        "US-",
        "ASCII",
        "well-",
        "known",
        "well-known",
        "Chapter 3",
        "Page",
        "iv",
        "é",
        "e\u0301",
        "\u0301",
        "a  ",
    ]
)
NOISE = st.sampled_from(
    [
        "\n",
        "\n\n\n",
        "\r\n",
        "\r",
        "\x0c",
        "\t",
        " ",
        "\u00a0",
        "\ufeff",
        "\u00ad",
        "\x00",
        "\ud83d",
        "\ude00",
        "\u1fef",
    ]
)
MARKDOWN = st.sampled_from(
    ["```", "~~~", "````py", "    code  ", "\tcode", "- ```", "> ```", "# head", "   ", "x  ", "", "\u1fef\u1fef\u1fef"]
)


@st.composite
def pages(draw: st.DrawFn) -> Text:
    """A PDF of few different lines, so that they repeat, with page numbers here and there."""
    out = []
    for number in range(draw(st.integers(1, 9))):
        line = st.one_of(
            WORDS, st.just(f"Title {number + 3}"), st.just(f"{number} of 9"), st.sampled_from(["Head", "Foot", "", " "])
        )
        out.append("\n".join(draw(st.lists(line, max_size=7))))
    starts = [sum(len(page) + 1 for page in out[:i]) for i in range(len(out))]
    return Text("\n".join(out), "application/pdf", tuple(starts))


@st.composite
def wild_texts(draw: st.DrawFn) -> Text:
    """Any characters, of any kind of document, pages beginning anywhere."""
    body = draw(st.one_of(st.text(max_size=60), st.lists(st.one_of(WORDS, NOISE, MARKDOWN), max_size=20).map("".join)))
    kind = draw(st.sampled_from(["text/plain", "text/markdown", "application/pdf"]))
    starts = draw(st.lists(st.integers(0, len(body)), max_size=4)) if kind == "application/pdf" else []
    return Text(body, kind, (0, *sorted(starts)) if starts else ())


markdown = st.lists(st.one_of(MARKDOWN, WORDS), max_size=14).map(lambda lines: Text("\n".join(lines), "text/markdown"))


@given(st.one_of(pages(), wild_texts(), markdown))
def test_idempotent_and_clean(text: Text) -> None:
    """A normal text is left as it is; it is NFC, without control characters, blank edges or lone surrogates."""
    normal = normalise(text)
    assert normalise(normal) == normal
    assert unicodedata.is_normalized("NFC", normal.text)
    assert not {char for char in normal.text if unicodedata.category(char) in {"Cc", "Cs"}} - {"\n", "\t"}
    assert normal.text == normal.text.strip("\n")
    assert len(normal.page_starts) == len(text.page_starts)
    assert list(normal.page_starts) == sorted(normal.page_starts)
    assert all(start in {0, len(normal.text)} or normal.text[start - 1] == "\n" for start in normal.page_starts)


@given(st.lists(st.text(alphabet="abcdefg", min_size=3, max_size=9), min_size=1, max_size=9, unique=True))
def test_page_starts_move_along(words: list[str]) -> None:
    """Every word stays on its page, whatever is taken away before it."""
    source = [f"Running head\n\n\n{word}  \n{word} ends\n{number + 1}" for number, word in enumerate(words)]
    starts = [sum(len(page) + 1 for page in source[:i]) for i in range(len(source))]
    normal = normalise(Text("\n".join(source), "application/pdf", tuple(starts)))
    bounds = [*normal.page_starts, len(normal.text) + 1]
    for number, word in enumerate(words):
        page = normal.text[bounds[number] : bounds[number + 1]].rstrip("\n")
        assert page.endswith(f"{word}\n{word} ends" if len(words) >= 3 else f"{word}\n{word} ends\n{number + 1}")


@pytest.mark.parametrize(
    ("raw", "normal"),
    [
        ("a\r\nb\rc\u2028d\x0ce", "a\nb\nc\nd\ne"),
        ("e\u0301 \u212b", "é Å"),
        ("bell\x07 and \x1b[31mred\x1b[0m", "bell and [31mred[0m"),
        ("soft\u00adhyphen \ufeffmark", "softhyphen mark"),
        ("trailing \t\u00a0\nblanks", "trailing\nblanks"),
        ("\n\n a\n\n\n\n\nb\n \n", " a\n\nb"),
        ("\ud83d\ude00 and \ud83d", "😀 and \ufffd"),
        ("family 👨\u200d👩\u200d👧 stays", "family 👨\u200d👩\u200d👧 stays"),
    ],
)
def test_characters_and_lines(raw: str, normal: str) -> None:
    """One form for line ends, accents, blanks and blank lines; nothing unseen but joiners."""
    assert normalise(Text(raw, "text/plain")).text == normal


def test_code_keeps_its_content() -> None:
    """Blank lines and blanks at line ends stay in Markdown's code, fenced or indented, and go everywhere else."""
    code = "```py\nx = 1  \n\n\n\ny = 2\n```"
    indented = "    a  \n\n\n    b"
    raw = f"text  \n\n\n\n{code}\n\n\n\n{indented}\n\n\n\nend  \n\n"
    assert normalise(Text(raw, "text/markdown")).text == f"text\n\n{code}\n\n{indented}\n\nend"


def _pdf(*source: str) -> Text:
    starts = [sum(len(page) + 1 for page in source[:i]) for i in range(len(source))]
    return Text("\n".join(source), "application/pdf", tuple(starts))


def test_headers_and_footers_go() -> None:
    """Lines that repeat at the edges of nearby pages go: running heads, odd and even ones, numbers of either kind."""
    numbers = ["iv", "v", "vi", "vii", "viii", "ix", "x", "xi"]
    manual = [
        f"{'The Manual' if n % 2 else 'Release 4.6'}\nChapter {n // 4}\nBody {'abcdefgh'[n]}\n{number}"
        for n, number in enumerate(numbers)
    ]
    found = normalise(_pdf(*manual)).text
    assert "Manual" not in found
    assert "Release" not in found
    assert "viii" not in found
    assert found.startswith("Body a\nBody b\nBody c")


def test_content_that_repeats_stays() -> None:
    """Two pages prove nothing, numbers that do not count pages are content, and a form keeps its lines."""
    two = _pdf("Head\nalpha", "Head\nbeta")
    assert normalise(two).text == two.text
    table = _pdf(*(f"{7 * n * n} {1000 - n * n}\nrow of page {word}" for n, word in enumerate(["a", "b", "c", "d"])))
    assert normalise(table).text == table.text
    form = _pdf(*["Name:\nStreet:\nTown:\nCountry:\nDate:"] * 5)
    assert normalise(form).text == form.text


@pytest.mark.parametrize(
    ("raw", "normal"),
    [
        ("an exam-\nple of it", "an example\nof it"),
        ("an exam-\nple", "an example"),
        ("an exam-\nple, and", "an example,\nand"),
        ("a well-\nknown, a well-known", "a well-known,\na well-known"),
        ("the US-\nASCII set", "the US-ASCII\nset"),
        ("pages 10-\n20 of it", "pages 10-20\nof it"),
        ("state-of-the-\nart thing", "state-of-the-art\nthing"),
        ("a list -\nof things", "a list -\nof things"),
        ("over three hy-\nphen-\nated lines", "over three hyphenated\nlines"),
    ],
)
def test_hyphenated_words_are_whole_again(raw: str, normal: str) -> None:
    """A word that was broken is whole, a word that has a hyphen keeps it, and other documents are left alone."""
    assert normalise(_pdf(raw)).text == normal
    assert normalise(Text(raw, "text/plain")).text == raw


def test_a_word_across_pages() -> None:
    """The rest of a word comes back to the page where the word began."""
    normal = normalise(_pdf("an exam-", "ple of it"))
    assert (normal.text, normal.page_starts) == ("an example\nof it", (0, 11))


def test_metadata_is_cleaned() -> None:
    """Control characters leave the metadata, at any depth."""
    normal = normalise(
        Text("x", "text/plain", metadata={"title": "a\x1b[31m", "tags": ["e\u0301", 1], "more": {"k\0": "v\0"}})
    )
    assert normal.metadata == {"title": "a[31m", "tags": ["é", 1], "more": {"k": "v"}}
