"""PDFs made byte by byte: honest ones, and those that a reader must be protected from."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from functools import cache
from io import BytesIO

_FONT = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>"


def assemble(objects: Sequence[bytes], trailer: bytes = b"") -> bytes:
    """A file of numbered objects (the first is the catalog, number 1) with its table of places."""
    out = bytearray(b"%PDF-1.7\n")
    places = []
    for number, body in enumerate(objects, start=1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % place for place in places)
    out += b"trailer\n<< /Size %d /Root 1 0 R %s >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, trailer, table)
    return bytes(out)


def stream(content: bytes, entries: bytes = b"") -> bytes:
    """A stream object."""
    return b"<< /Length %d %s >>\nstream\n%s\nendstream" % (len(content), entries, content)


def written(lines: Sequence[str]) -> bytes:
    """Page content that writes the lines below each other."""
    shown = [
        b"(" + line.encode("cp1252").replace(b"\\", b"\\\\").replace(b"(", b"\\(").replace(b")", b"\\)")
        for line in lines
    ]
    return b"BT /F1 11 Tf 14 TL 50 780 Td\n" + b"".join(text + b") Tj T*\n" for text in shown) + b"ET"


def pages_of(contents: Sequence[bytes], *more: bytes, resources: bytes = b"", trailer: bytes = b"") -> bytes:
    """A file with a page a content stream object; `more` objects are numbered from 4 + 2 × pages."""
    kids = b" ".join(b"%d 0 R" % (4 + 2 * i) for i in range(len(contents)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kids, len(contents)),
        _FONT,
    ]
    for i, content in enumerate(contents):
        objects += [
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents %d 0 R"
            b" /Resources << /Font << /F1 3 0 R >> %s >> >>" % (5 + 2 * i, resources),
            content,
        ]
    return assemble([*objects, *more], trailer)


def honest(*pages: Sequence[str], title: str = "") -> bytes:
    """A plain PDF: the lines of each page, in Helvetica."""
    info = b"<< /Title (%s) /Author (Nobody) >>" % title.encode("cp1252")
    number = 4 + 2 * len(pages)
    return pages_of([stream(written(lines)) for lines in pages], info, trailer=b"/Info %d 0 R" % number)


def encrypted() -> bytes:
    """A PDF that opens with a password only."""
    from pypdf import PdfReader, PdfWriter

    writer = PdfWriter(clone_from=PdfReader(BytesIO(honest(["secret"]))))
    writer.encrypt("a password", algorithm="RC4-128")
    out = BytesIO()
    writer.write(out)
    return out.getvalue()


def truncated() -> bytes:
    """The first half of a PDF, as a writer that was interrupted leaves it."""
    data = honest(*[[f"page {i}"] for i in range(20)])
    return data[: len(data) // 2]


def no_text() -> bytes:
    """A page with a drawing and no text, like a scan."""
    return pages_of([stream(b"0 0 1 rg 100 100 200 200 re f")])


def many_pages(pages: int = 10_000) -> bytes:
    """More pages than anybody reads."""
    return pages_of([stream(b"")] * pages)


def doubling_forms(depth: int = 28) -> bytes:
    """A page that shows a form twice, which shows another twice, and so on: 2 ** depth showings."""
    first = 6
    forms = []
    for level in range(depth):
        inner = b"/X Do /X Do" if level < depth - 1 else written(["x"])
        names = b"/XObject << /X %d 0 R >>" % (first + level + 1) if level < depth - 1 else b"/Font << /F1 3 0 R >>"
        entries = b"/Type /XObject /Subtype /Form /BBox [0 0 595 842] /Resources << %s >>" % names
        forms.append(stream(inner, entries))
    return pages_of([stream(b"/X Do /X Do")], *forms, resources=b"/XObject << /X %d 0 R >>" % first)


def form_in_itself() -> bytes:
    """A form that shows itself."""
    entries = b"/Type /XObject /Subtype /Form /BBox [0 0 9 9] /Resources << /XObject << /X 6 0 R >> >>"
    return pages_of([stream(b"/X Do")], stream(b"/X Do", entries), resources=b"/XObject << /X 6 0 R >>")


def pages_in_a_circle() -> bytes:
    """A tree of pages whose branch is its own root."""
    return assemble(
        [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
            b"<< /Type /Pages /Parent 2 0 R /Kids [2 0 R] /Count 1 >>",
        ]
    )


@cache
def bomb(megabytes: int = 120) -> bytes:
    """A page content of a few kilobytes that inflates, in two steps, to more than 100 MB of text."""
    piece = b"(" + b"A" * 4000 + b") Tj T*\n"
    packer = zlib.compressobj(9)
    block = piece * 250
    once = b"".join(
        [
            packer.compress(b"BT /F1 11 Tf 14 TL 50 780 Td\n"),
            *(packer.compress(block) for _ in range(megabytes)),
            packer.flush(),
        ]
    )
    return pages_of([stream(zlib.compress(once, 9), b"/Filter [/FlateDecode /FlateDecode]")])


def deep_nesting(depth: int = 200_000) -> bytes:
    """A page whose resources and content are arrays in arrays in arrays."""
    nested = b"[" * depth + b"]" * depth
    return pages_of([stream(b"BT /F1 11 Tf " + nested + b" TJ ET")], resources=b"/Deep " + nested)


def not_a_pdf() -> bytes:
    """Bytes that only claim to be a PDF."""
    return b"%PDF-1.7\n" + bytes(range(256)) * 40 + b"\n%%EOF\n"


HOSTILE: dict[str, Callable[[], bytes]] = {
    maker.__name__: maker
    for maker in (
        bomb,
        deep_nesting,
        doubling_forms,
        encrypted,
        form_in_itself,
        many_pages,
        no_text,
        not_a_pdf,
        pages_in_a_circle,
        truncated,
    )
}
"""Makers of hostile PDFs by name."""
