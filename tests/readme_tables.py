"""The parts of README.md that are made from the code. `make docs` writes them; a test holds them up to date.

A part stands between `<!-- made: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import typer
from prometheus_client.metrics import MetricWrapperBase

from dataflows.cli import app
from dataflows.config import settings_table
from dataflows.observability import metrics
from tests.guarantees import GUARANTEES

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
FOLDERS = ("dataflows", "stores", "operators", "feature_repo", "tests")
_PART = re.compile(r"(<!-- made: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def rendered(text: str) -> str:
    """The README with every made part written anew. Raises KeyError for a part that nobody makes."""
    return _PART.sub(lambda match: f"{match[1]}{PARTS[match[2]]()}{match[3]}", text)


def missing_tests() -> list[str]:
    """The tests that guarantees name and that do not exist."""
    return [name for one in GUARANTEES for name in one.tests if name.partition("::")[2] not in _tests_of(name)]


def commands() -> Iterator[tuple[str, Any]]:
    """Every command with the words that call it, `headrace` left out."""
    yield from _walk(typer.main.get_command(app), ())


def _walk(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, Any]]:  # noqa: ANN401  # of typer's own click
    inner = getattr(command, "commands", None)
    if inner is None:
        yield " ".join(words), command
        return
    for name, one in inner.items():
        yield from _walk(one, (*words, name))


def _tests_of(name: str) -> set[str]:
    path = ROOT / "tests" / name.partition("::")[0]
    if not path.is_file():
        return set()
    tree = ast.parse(path.read_text("utf-8"))
    found = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found.update(f"{node.name}::{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef))
    return found


def _settings() -> str:
    rows = ((f"`{name}`", f"`{default}`" if default else "", meaning) for name, default, meaning in settings_table())
    return _table(("setting", "default", "meaning"), rows)


def _guarantees() -> str:
    def proof(test: str) -> str:
        return f"[`{test.rpartition('::')[2]}`](tests/{test.partition('::')[0]})"

    rows = ((one.promise, "<br>".join(proof(test) for test in one.tests)) for one in GUARANTEES)
    return _table(("promise", "proof"), rows)


def _commands() -> str:
    rows = (
        (f"`headrace {words}{_arguments(command)}`", command.get_short_help_str(200)) for words, command in commands()
    )
    return _table(("command", "what it does"), rows)


def _arguments(command: Any) -> str:  # noqa: ANN401  # of typer's own click
    """What must or may be typed after the command, but for optional options."""
    words = []
    for parameter in command.params:
        named = parameter.metavar or parameter.name.upper()
        if parameter.param_type_name == "argument":
            words.append(f"{named}…" if parameter.nargs == -1 else named)
        elif parameter.required:
            words.append(f"{parameter.opts[0]} {named}")
    return "".join(f" {word}" for word in words)


def _metrics() -> str:
    rows = []
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            (described,) = metric.describe()
            name = f"{described.name}_total" if described.type == "counter" else described.name
            labels = ", ".join(f"`{label}`" for label in metric._labelnames)
            rows.append((f"`{name}`", labels, described.documentation))
    return _table(("metric", "labels", "meaning"), rows)


def _rooms() -> str:
    lines = ["```text"]
    for folder in FOLDERS:
        lines += [f"{folder}/", *_inside(ROOT / folder, "  "), ""]
    lines[-1] = "```"
    return "\n".join(lines) + "\n"


def _inside(folder: Path, indent: str) -> Iterator[str]:
    """A line for each Python file, folders after files, each with the first line of its docstring."""
    for path in sorted(folder.iterdir(), key=lambda p: (p.is_dir(), p.name)):
        if path.is_dir() and any(path.glob("*.py")):
            yield f"{indent}{path.name}/"
            yield from _inside(path, indent + "  ")
        elif path.suffix == ".py" and (said := _first_line(path)):
            yield f"{indent}{path.name:<{26 - len(indent)}} {said}"


def _first_line(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text("utf-8")))
    return docstring.splitlines()[0] if docstring else ""


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


PARTS: dict[str, Callable[[], str]] = {
    "settings": _settings,
    "guarantees": _guarantees,
    "commands": _commands,
    "metrics": _metrics,
    "rooms": _rooms,
}
"""What makes each part."""


def main() -> None:
    """Write the parts into README.md; exit with 1, nothing written, if a guarantee names a test that does not exist."""
    if missing := missing_tests():
        sys.exit(f"README's guarantees name tests that do not exist: {', '.join(missing)}")
    README.write_text(rendered(README.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
