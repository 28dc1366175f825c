"""Messages about documents: what is one, what is refused and why, and a text that is put together from its chunks."""

from __future__ import annotations

import base64
from contextlib import suppress

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.chunk import Chunker
from operators.document_events import DocumentEvent, parse_event
from operators.documents import Text, rebuilt_text
from operators.errors import SkippableError

EVENT_BYTES_MAX = 1 << 14


def event(kind: str, uri: str, content: object = None, **more: object) -> bytes:
    """A message, bare."""
    data = {"uri": uri, **({} if content is None else {"content": content}), **more}
    return orjson.dumps({"type": f"doc_{kind}", "data": data})


def parsed(message: bytes) -> DocumentEvent:
    """What the message says."""
    return parse_event(message, bytes_max=EVENT_BYTES_MAX)


def reason(message: bytes) -> str:
    """Why the message is refused."""
    with pytest.raises(SkippableError) as caught:
        parsed(message)
    assert "secret" not in str(caught.value)
    return caught.value.reason


def test_the_forms_of_a_message() -> None:
    """CloudEvents or bare, nested or flat, text or base64, typed or named: the same event."""
    expected = DocumentEvent("added", "https://wiki/1", b"text", "text/markdown")
    data = {"uri": "https://wiki/1", "content": "text", "suffix": ".MD", "source": "wiki", "event_time": 5}
    envelope = {"specversion": "1.0", "id": "7", "source": "/wiki", "type": "com.example.doc_added"}
    encoded = base64.b64encode(orjson.dumps(data)).decode()
    forms: list[dict[str, object]] = [
        {"type": "doc_added", "data": data},
        {"type": "doc_added", **data},
        {**envelope, "data": data},
        {**envelope, "data_base64": encoded},
        {
            "type": "doc_added",
            "uri": "https://wiki/1",
            "content_base64": "dGV4dA==",
            "media_type": "text/markdown; x=1",
        },
    ]
    assert [parsed(orjson.dumps(form)) for form in forms] == [expected] * len(forms)
    assert parsed(event("updated", "a:b")) == DocumentEvent("updated", "a:b")
    assert parsed(event("deleted", "a:b", "left out")) == DocumentEvent("deleted", "a:b")
    assert parsed(event("added", "a:b", "")) == DocumentEvent("added", "a:b", b"")
    assert parsed(event("added", "https://wiki/é", "ü")).content == "ü".encode()


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (b"x" * (EVENT_BYTES_MAX + 1), "too_large"),
        (b'"\xff"', "not_utf8"),
        (b'{"secret', "not_json"),
        (b'{"type": "doc_added", "data": {"uri": "a:b", "content": "\\ud800"}}', "not_json"),
        (b'["secret"]', "not_object"),
        (b'{"type": "doc_added", "data": "secret"}', "not_object"),
        (b'{"specversion": "0.3", "type": "doc_added", "data": {}}', "envelope"),
        (b'{"specversion": "1.0", "type": "doc_added"}', "envelope"),
        (b'{"specversion": "1.0", "type": "doc_added", "data_base64": "secret!"}', "envelope"),
        (b'{"uri": "a:b"}', "type"),
        (b'{"type": "doc_secret", "uri": "a:b"}', "type"),
        (b'{"type": ["doc_added"], "uri": "a:b"}', "type"),
        (event("added", "a:b", "x", content_base64="eA=="), "content"),
        (event("added", "a:b", content_base64="secret!"), "content"),
        (event("added", "a:b", content=7), "content"),
        (event("added", "a:b", "x", suffix="exe"), "media_type"),
        (event("added", "a:b", "x", media_type="application/x-secret"), "media_type"),
        (event("added", "a:b", "x", media_type=7), "media_type"),
    ],
)
def test_what_is_no_message(message: bytes, expected: str) -> None:
    """Each has its reason, and the sentence quotes nothing of it."""
    assert reason(message) == expected


@pytest.mark.parametrize(
    "uri",
    ["", "secret", "a b:c", "a:b\n", "a:\x1b[31m", "a:b\x00", "a:\u202e", "a:" + "x" * 10_000, "file:///docs/../secret",
     "file:///docs/%2e%2E/secret", "https://x/.", "a:b\\..\\c", "file:///x/./y", "a:", ":a", "1a:b"],
)  # fmt: skip
def test_what_is_no_uri(uri: str) -> None:
    """No control characters, no dots as segments, nothing endless, nothing without a scheme."""
    assert reason(event("added", uri, "x")) == "uri"
    assert reason(orjson.dumps({"type": "doc_added", "uri": 7})) == "uri"


@given(st.binary(max_size=200))
def test_any_bytes_are_an_event_or_refused(message: bytes) -> None:
    """Nothing else is raised for them."""
    with suppress(SkippableError):
        assert parsed(message).uri


TEXTS = st.text(st.sampled_from("ab \n#é."), max_size=300)


@given(TEXTS, st.sampled_from(["text/markdown", "text/plain"]), st.integers(0, 20))
def test_a_text_is_rebuilt_from_its_chunks(text: str, media_type: str, overlap: int) -> None:
    """All but the blanks between chunks, each chunk at its place, and on its page."""
    starts = (0, *(at + 1 for at in range(len(text)) if text[at] == "\n"))[:3]
    chunks = Chunker(40, overlap).chunks(Text(text, media_type, starts))
    built = rebuilt_text(chunks, media_type, {})
    assert "".join(built.text.split()) == "".join(text.split())
    for chunk in chunks:
        assert built.text[chunk.offset : chunk.offset + chunk.length] == chunk.text
        assert built.page(chunk.offset) == chunk.page
