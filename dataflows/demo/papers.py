"""The demo's documents: what the packages of this project say of themselves, and their licences as PDFs."""

from __future__ import annotations

import re
import textwrap
from email.message import Message
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import cast

from operators.errors import MissingExtraError

READMES = (
    "bytewax",
    "feast",
    "usearch",
    "orjson",
    "pydantic-settings",
    "hypothesis",
    "typer",
    "rich",
    "semantic-text-splitter",
)
LICENCES = ("pvlib", "pyarrow", "matplotlib")
_README_CHARS = 7_000
_PAGES_MAX = 3
_PAGE_LINES = 52
_LINE_CHARS = 88
_LICENCE = re.compile(r"licen[cs]e[^/]*$", re.IGNORECASE)


def write_papers(folder: Path) -> tuple[int, int]:
    """Write READMEs as Markdown and licences as PDFs; return how many of each.

    Packages that are not installed are left out. Raises MissingExtraError if hardly any is.
    """
    folder.mkdir(parents=True)
    texts = {name: text for name in READMES if (text := _readme(name))}
    for name, text in texts.items():
        (folder / f"{name}.md").write_text(text, "utf-8")
    licences = {name: text for name in LICENCES if (text := _licence(name))}
    for name, text in licences.items():
        _typeset(folder / f"{name}-licence.pdf", f"Licence of {name}", text)
    if len(texts) < 2:
        raise MissingExtraError("the demo's documents", "demo")
    return len(texts), len(licences)


def readme_of(package: Distribution) -> str:
    """What the package says of itself, from its metadata; blank if nothing."""
    message = cast("Message", package.metadata)
    payload = message.get_payload()
    return payload if isinstance(payload, str) and payload.strip() else str(message.get("Description", ""))


def _found(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def _readme(name: str) -> str:
    """The beginning of the package's README, up to the end of a paragraph."""
    package = _found(name)
    text = "" if package is None else readme_of(package)
    end = text.rfind("\n\n", 0, _README_CHARS) if len(text) > _README_CHARS else len(text)
    return text[:end].strip() + "\n" if text.strip() else ""


def _licence(name: str) -> str:
    package = _found(name)
    for path in sorted(package.files or [], key=str) if package else []:
        if _LICENCE.search(str(path)):
            return path.read_text("utf-8")
    return ""


def _typeset(path: Path, title: str, text: str) -> None:
    """The first pages of a text as a PDF, in a typeface for typewriters; the same bytes each time."""
    from matplotlib.backends.backend_pdf import PdfPages
    from matplotlib.figure import Figure

    wrapped = [line for raw in text.splitlines() for line in textwrap.wrap(raw.strip(), _LINE_CHARS) or [""]]
    pages = [wrapped[at : at + _PAGE_LINES] for at in range(0, len(wrapped), _PAGE_LINES)][:_PAGES_MAX]
    with PdfPages(path, metadata={"Title": title, "CreationDate": None}) as pdf:
        for lines in pages:
            figure = Figure(figsize=(8.27, 11.69))
            shown = "\n".join(lines).replace("$", r"\$")
            figure.text(0.08, 0.95, shown, va="top", family="DejaVu Sans Mono", fontsize=8)
            pdf.savefig(figure)
