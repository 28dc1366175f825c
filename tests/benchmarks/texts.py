"""Real texts that every machine with this project has: what its packages say of themselves, cut into documents."""

from __future__ import annotations

import re
from importlib.metadata import distributions
from pathlib import Path

from dataflows.demo.papers import readme_of

_PARAGRAPHS = re.compile(r"\n\s*\n")
_LEAST_CHARS = 600


def readmes() -> dict[str, str]:
    """By name of the package, its README; those that have one, in the order of their names."""
    found: dict[str, str] = {}
    for package in distributions():
        text = readme_of(package)
        if text.strip():
            found[package.metadata["Name"]] = text
    return dict(sorted(found.items()))


def write_corpus(folder: Path, count: int) -> int:
    """Write `count` Markdown files of about a thousand characters each, no two the same; return their bytes."""
    folder.mkdir(parents=True)
    size = 0
    pieces = list(_pieces())
    for number in range(count):
        name, text = pieces[number % len(pieces)]
        title = f"# {name}, part {number}\n\n"
        size += (folder / f"{number:05}.md").write_bytes((title + text).encode())
    return size


def _pieces() -> list[tuple[str, str]]:
    pieces: list[tuple[str, str]] = []
    for name, text in readmes().items():
        held = ""
        for paragraph in _PARAGRAPHS.split(text):
            held += f"{paragraph}\n\n"
            if len(held) >= _LEAST_CHARS:
                pieces.append((name, held))
                held = ""
        if held:
            pieces.append((name, held))
    return pieces
