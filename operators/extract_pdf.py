"""The two readers of PDFs. Everything that they raise is translated here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from io import BytesIO
from typing import TYPE_CHECKING

from operators.documents import Text
from operators.errors import DecodeError
from operators.extract import ExtractLimits, PdfReader, join_pages, sound

if TYPE_CHECKING:
    import pypdfium2

_TAIL_BYTES = 4096
_INFO = {
    "Title": "title",
    "Author": "author",
    "Subject": "subject",
    "Keywords": "keywords",
    "Creator": "creator",
    "Producer": "producer",
    "CreationDate": "created",
    "ModDate": "modified",
}
_INFO_CHARS = 1_000
_PDFIUM_HYPHEN = "\ufffe"  # stands where the page had a hyphen and a line end


def extract_pdf(data: bytes, uri: str, *, reader: PdfReader, limits: ExtractLimits) -> Text:
    """The text of a PDF, page by page. Raises DecodeError with a reason (see `operators.extract.extract`).

    One page that cannot be read refuses the document: nothing is left out unseen.
    """
    if b"%PDF-" not in data[:1024]:
        raise DecodeError("unreadable", f"`{uri}` does not begin as a PDF does")
    if b"%%EOF" not in data.rstrip(b"\0\t\n\r ")[-_TAIL_BYTES:]:
        raise DecodeError("truncated", f"`{uri}` ends before the end of its PDF; write it anew")
    read = _read_pdfium if reader == "pdfium" else _read_pypdf
    text = read(data, uri, limits)
    if not text.text.strip():
        raise DecodeError("no_text", f"`{uri}` has {len(text.page_starts)} pages and no text: it may be a scan")
    return text


class _Pages:
    """Collects pages up to the limit of characters."""

    def __init__(self, uri: str, count: int, limits: ExtractLimits) -> None:
        if count > limits.pages:
            raise DecodeError("too_many_pages", f"`{uri}` has {count:,} pages; at most {limits.pages:,} are read")
        if not count:
            raise DecodeError("no_text", f"`{uri}` has no pages")
        self.texts: list[str] = []
        self._uri = uri
        self._left = limits.characters

    def add(self, text: str) -> None:
        self._left -= len(text)
        if self._left < 0:
            raise DecodeError("too_large", f"`{self._uri}` has more text than is read")
        self.texts.append(sound(text))


def _read_pdfium(data: bytes, uri: str, limits: ExtractLimits) -> Text:
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        if getattr(error, "err_code", None) == pypdfium2.raw.FPDF_ERR_PASSWORD:
            raise DecodeError("encrypted", f"`{uri}` opens with a password only") from error
        raise DecodeError("unreadable", f"`{uri}` is damaged: pdfium cannot open it") from error
    with closing(document):
        pages = _Pages(uri, len(document), limits)
        for index in range(len(document)):
            pages.add(_pdfium_page(document, index, uri).replace(_PDFIUM_HYPHEN, "-\n"))
        return join_pages(pages.texts, _info(document.get_metadata_dict(skip_empty=True)))


def _pdfium_page(document: pypdfium2.PdfDocument, index: int, uri: str) -> str:
    import pypdfium2

    try:
        with closing(document[index]) as page, closing(page.get_textpage()) as text:
            return str(text.get_text_range())
    except pypdfium2.PdfiumError as error:
        raise DecodeError("unreadable", f"`{uri}` is damaged: pdfium cannot read page {index + 1}") from error


def _read_pypdf(data: bytes, uri: str, limits: ExtractLimits) -> Text:
    with _pypdf_errors(uri, "its structure"):
        import pypdf

        document = pypdf.PdfReader(BytesIO(data))
        if document.is_encrypted and not document.decrypt(""):
            raise DecodeError("encrypted", f"`{uri}` opens with a password only")
        pages = _Pages(uri, len(document.pages), limits)
        info = {key.lstrip("/"): str(value) for key, value in (document.metadata or {}).items()}
    for index in range(len(document.pages)):
        with _pypdf_errors(uri, f"page {index + 1}"):
            pages.add(document.pages[index].extract_text())
    return join_pages(pages.texts, _info(info))


@contextmanager
def _pypdf_errors(uri: str, what: str) -> Iterator[None]:
    """Translate whatever pypdf raises on bytes that nobody foresaw; its own errors are only some of them."""
    from pypdf.errors import DependencyError, FileNotDecryptedError, LimitReachedError

    try:
        yield
    except DecodeError:
        raise
    except MemoryError as error:
        raise DecodeError("out_of_memory", f"`{uri}` needs more memory than it may have") from error
    except RecursionError as error:
        raise DecodeError("too_deep", f"`{uri}` is nested too deep in {what}") from error
    except LimitReachedError as error:
        raise DecodeError("too_large", f"`{uri}` inflates to more than is read in {what}") from error
    except (DependencyError, FileNotDecryptedError) as error:
        raise DecodeError("encrypted", f"`{uri}` is encrypted in a way that pypdf cannot open") from error
    except Exception as error:
        raise DecodeError("unreadable", f"`{uri}` is damaged: pypdf cannot read {what}") from error


def _info(info: Mapping[str, str]) -> dict[str, object]:
    """The document's own description under our names; a blank value is none."""
    named = ((name, " ".join(sound(info.get(key, ""))[:_INFO_CHARS].split())) for key, name in _INFO.items())
    return {name: re.sub(r"[\x00-\x1f\x7f]", "", value) for name, value in named if value}
