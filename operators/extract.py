"""Extract: the bytes of a document to its text, with pages and metadata. Pure; `dataflows.extraction` bounds PDFs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from operators.documents import Text
from operators.errors import DecodeError, MissingExtraError

EXTRACTOR = "1"
"""Raised whenever the same bytes give another text."""

PdfReader = Literal["pypdf", "pdfium"]
"""pdfium: a C library, about 20 times as fast and sure of the blanks between words. pypdf: pure Python."""

MARKDOWN, PLAIN, PDF = "text/markdown", "text/plain", "application/pdf"

_PACKAGES: dict[PdfReader, str] = {"pypdf": "pypdf", "pdfium": "pypdfium2"}
_SUFFIXES = {"md": MARKDOWN, "markdown": MARKDOWN, "mdown": MARKDOWN, "mkd": MARKDOWN, "pdf": PDF}
_BOMS = (
    (b"\xef\xbb\xbf", "utf-8"),
    (b"\xff\xfe\0\0", "utf-32-le"),
    (b"\0\0\xfe\xff", "utf-32-be"),
    (b"\xff\xfe", "utf-16-le"),
    (b"\xfe\xff", "utf-16-be"),
)
_LEGACY = (
    *("cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "koi8_r", "iso8859_2"),
    *("cp932", "euc_jp", "gb18030", "big5", "cp949"),
)
_SAMPLE_BYTES = 1 << 17
_GOOD_PER_BAD = 10
_FRONT_MATTER = re.compile(r"---[ \t]*\r?\n(.*?)(?:\r?\n)?^(?:---|\.\.\.)[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_FRONT_MATTER_CHARS = 16_384
_METADATA_DEPTH = 12
_INT64 = 1 << 63


@dataclass(frozen=True, slots=True)
class ExtractLimits:
    """What a document may cost. Beyond it, it is refused with a reason.

    size_bytes: of the document. pages: of a PDF. characters: of the text of a PDF.
    memory_bytes: address space of the process that reads a PDF, the interpreter's own 100 MB included.
    seconds: wall clock for one PDF. The last two are kept by `dataflows.extraction`.
    """

    size_bytes: int = 64 << 20
    pages: int = 5_000
    characters: int = 20_000_000
    memory_bytes: int = 1 << 30
    seconds: float = 60.0


def extractor_shape(pdf: PdfReader) -> str:
    """What shapes an extracted text: the version of these rules and of the library that reads PDFs.

    Raises MissingExtraError if the library is not installed.
    """
    try:
        return f"extract-{EXTRACTOR}/{pdf}-{version(_PACKAGES[pdf])}"
    except PackageNotFoundError as error:
        raise MissingExtraError(f"the PDF reader `{pdf}`", pdf) from error


def media_type_of(data: bytes, uri: str, said: str | None = None) -> str:
    """What a document is: what is said, else by the end of its name, but a PDF under any name is a PDF."""
    if data.startswith(b"%PDF-"):
        return PDF
    if said is not None:
        return said
    name = uri.partition("?")[0].partition("#")[0].rpartition("/")[2]
    return _SUFFIXES.get(name.rpartition(".")[2].lower(), PLAIN)


def extract(
    data: bytes, uri: str, *, pdf: PdfReader, limits: ExtractLimits | None = None, said: str | None = None
) -> Text:
    """The text of a document as it stands there, not yet normalised; no lone surrogates in it.

    said: the media type, where its source says one.

    Markdown: front matter (YAML between `---`) becomes metadata and leaves the text. PDF: a page begins at each of
    `page_starts`, a line feed before it; the document's own title, author … are metadata. Text in no Unicode
    encoding: its `encoding` is metadata.

    Raises DecodeError; its reason is one of `too_large`, `not_text`, and for a PDF `encrypted`, `truncated`,
    `too_many_pages`, `no_text`, `too_deep`, `out_of_memory`, `unreadable`. Messages hold nothing of the content.
    """
    limits = limits or ExtractLimits()
    check_size(data, uri, limits)
    media_type = media_type_of(data, uri, said)
    if media_type == PDF:
        from operators.extract_pdf import extract_pdf

        return extract_pdf(data, uri, reader=pdf, limits=limits)
    text, metadata = _decode(data, uri)
    if media_type == MARKDOWN:
        body, front = split_front_matter(text)
        return Text(body, MARKDOWN, metadata=metadata | front)
    return Text(text, PLAIN, metadata=metadata)


def check_size(data: bytes, uri: str, limits: ExtractLimits) -> None:
    """Raise DecodeError `too_large` for a document of more bytes than the limit."""
    if len(data) > limits.size_bytes:
        raise DecodeError("too_large", f"`{uri}` has {len(data):,} bytes; at most {limits.size_bytes:,} are read")


def sound(text: str) -> str:
    """The text with surrogate pairs joined and lone surrogates replaced, so that every encoder takes it."""
    if text.isascii() or not re.search("[\ud800-\udfff]", text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _decode(data: bytes, uri: str) -> tuple[str, dict[str, object]]:
    """Text and metadata: `encoding` unless it is Unicode, `replaced` = bytes that are not of the encoding."""
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            return _text(data[len(mark) :].decode(encoding, "replace"), uri), {}
    try:
        return _text(data.decode("utf-8"), uri), {}
    except UnicodeDecodeError:
        if b"\0" in data:
            raise DecodeError("not_text", f"`{uri}` holds zero bytes: it is no text") from None
    mended = data.decode("utf-8", "replace")
    bad = mended.count("\ufffd")
    beyond_ascii = len(mended) - len(mended.encode("ascii", "ignore"))
    if beyond_ascii - bad >= _GOOD_PER_BAD * bad:
        return mended, {"replaced": bad}
    return _decode_legacy(data, uri)


def _text(text: str, uri: str) -> str:
    if "\0" in text:
        raise DecodeError("not_text", f"`{uri}` holds zero characters: it is no text")
    return text


def _decode_legacy(data: bytes, uri: str) -> tuple[str, dict[str, object]]:
    """Text in an encoding from before Unicode, guessed by charset-normalizer.

    Where Western European is as likely as the best guess it is taken: of two languages that share their letters'
    bytes the guess knows nothing.
    """
    from charset_normalizer import from_bytes

    sample = data[:_SAMPLE_BYTES]
    if len(data) > _SAMPLE_BYTES:
        sample = sample[: sample.rfind(b"\n") + 1] or sample
    matches = list(from_bytes(sample, cp_isolation=list(_LEGACY)))
    if not matches:
        raise DecodeError("not_text", f"`{uri}` is in no known encoding of text")
    best = matches[0]
    alike = [match for match in matches if match.coherence >= best.coherence]
    names = {name for match in alike for name in (match.encoding, *match.could_be_from_charset)}
    encoding = "cp1252" if "cp1252" in names else best.encoding
    text = data.decode(encoding, "replace")
    replaced = text.count("\ufffd")
    return text, {"encoding": encoding} | ({"replaced": replaced} if replaced else {})


def split_front_matter(text: str) -> tuple[str, dict[str, object]]:
    """The Markdown below the front matter, and the front matter as JSON-able values.

    Dates become ISO 8601, integers beyond 64 bits and other odd values text. Front matter that is too large, no YAML,
    nested too deep or uses aliases stays in the text, with the reason under `front_matter_error`; a block that is no
    mapping was none: it stays, too.
    """
    found = _FRONT_MATTER.match(text)
    if found is None:
        return text, {}
    if len(found[1]) > _FRONT_MATTER_CHARS:
        return text, {"front_matter_error": "too_large"}
    try:
        values = _plain(_load_yaml(found[1]))
    except (ValueError, RecursionError):
        return text, {"front_matter_error": "not_yaml"}
    return (text[found.end() :], values) if isinstance(values, dict) else (text, {})


def _load_yaml(source: str) -> object:
    """Values of the safe YAML types.

    Raises ValueError for what is no YAML, is nested too deep (the parser's time grows with the square of the depth) or
    uses aliases (they multiply).
    """
    import yaml

    try:
        depth = 0
        for event in yaml.parse(source, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _METADATA_DEPTH or isinstance(event, yaml.AliasEvent):
                raise ValueError("front matter is nested too deep or uses aliases")
        return yaml.safe_load(source)
    except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise ValueError("front matter is no YAML") from error


def _plain(value: object, depth: int = 0) -> object:  # noqa: PLR0911  # a table of types
    """The value in JSON's types. Raises ValueError when nested deeper than a person would write."""
    if depth > _METADATA_DEPTH:
        raise ValueError("front matter is nested too deep")
    match value:
        case None | bool():
            return value
        case int():
            return value if -_INT64 <= value < _INT64 else hex(value)
        case float():
            return value if value - value == 0 else str(value)
        case str():
            return sound(value)
        case date():
            return value.isoformat()
        case Mapping():
            return {sound(str(key)): _plain(item, depth + 1) for key, item in value.items()}
        case bytes():
            return value.hex()
        case Sequence():
            return [_plain(item, depth + 1) for item in value]
        case set():
            return sorted((_plain(item, depth + 1) for item in value), key=str)
    raise ValueError(f"front matter holds a value of type {type(value).__name__}")


def join_pages(pages: Sequence[str], metadata: dict[str, object]) -> Text:
    """One text of all pages, a line feed between them."""
    starts = []
    offset = 0
    for page in pages:
        starts.append(offset)
        offset += len(page) + 1
    return replace(Text("\n".join(pages), PDF), page_starts=tuple(starts), metadata=metadata)
