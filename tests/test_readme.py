"""README.md does not lie: commands run and print what it says, tables are the code's, links lead somewhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dataflows.config import Settings
from tests.readme_tables import README, ROOT, commands, missing_tests, rendered

_BLOCK = re.compile(
    r"<!-- run -->\n```(?P<language>sh|python)\n(?P<code>.*?)```\n(<!-- prints -->\n```\w+\n(?P<printed>.*?)```\n)?",
    re.DOTALL,
)
_LINK = re.compile(r"\]\((?!https?://)([^)#]*)(#[^)]*)?\)")
_NAMED = re.compile(r"\bheadrace ((?:[a-z]+ ?)+)")


@dataclass(frozen=True)
class Block:
    """A piece of the page that is to be run, and what the page says that it prints; None says nothing.

    A line that is `…` alone stands for any lines, a `…` in a line for any text; blanks at line ends are not looked at.
    """

    language: str
    code: str
    printed: str | None

    def says(self, output: str) -> bool:
        """Whether the page says what was printed."""
        if self.printed is None:
            return True
        said = re.escape(_stripped(self.printed)).replace("…\\\n", "(?:.*\n)*?").replace("…", ".*")
        return re.fullmatch(said, _stripped(output)) is not None


def _stripped(text: str) -> str:
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def _text() -> str:
    return README.read_text("utf-8")


def _blocks() -> Iterator[Block]:
    for found in _BLOCK.finditer(_text()):
        yield Block(found["language"], found["code"], found["printed"])


def _environment(project: Path) -> dict[str, str]:
    """What a person has after activating the virtual environment: this interpreter's commands, and no setting."""
    commands_folder = project.with_name("commands")
    commands_folder.mkdir()
    for name, module in (("headrace", "dataflows"), ("python", "")):
        run_module = f"-m {module} " if module else ""
        (commands_folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {run_module}"$@"\n', "utf-8")
        (commands_folder / name).chmod(0o755)
    (commands_folder / "feast").symlink_to(Path(sys.executable).with_name("feast"))
    kept = {name: value for name, value in os.environ.items() if name.lower() not in Settings.model_fields}
    return {**kept, "PYTHONPATH": str(ROOT), "PATH": f"{commands_folder}:{os.environ['PATH']}"}


@pytest.mark.timeout(900)  # ten processes, most of which import Feast
def test_the_minute_with_your_own_data_works(tmp_path: Path) -> None:
    """Every block marked for it runs in a fresh project, one after the other, and prints what the page says."""
    project = tmp_path / "project"
    shutil.copytree(ROOT / "feature_repo", project / "feature_repo", ignore=shutil.ignore_patterns("__pycache__"))
    environ = _environment(project)
    blocks = list(_blocks())
    assert len(blocks) == _text().count("<!-- run -->") > 5
    for block in blocks:
        command = ["python", "-c", block.code] if block.language == "python" else ["sh", "-ec", block.code]
        done = subprocess.run(command, cwd=project, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{block.code}\n{done.stdout}\n{done.stderr}"
        assert block.says(done.stdout), f"{block.code}\n{done.stdout}"


def test_tables_are_those_of_the_code() -> None:
    """Settings, guarantees, commands, metrics and rooms are up to date; `make docs` makes them so."""
    assert rendered(_text()) == _text()


def test_each_guarantee_names_a_test_that_exists() -> None:
    """A promise without its proof is none."""
    assert missing_tests() == []


def test_links_lead_somewhere() -> None:
    """Every relative link is a file of the project, every anchor a heading of the page."""
    headings = {
        re.sub(r"[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.*)$", _text(), re.MULTILINE)
    }
    for path, anchor in _LINK.findall(_text()):
        assert (ROOT / path).exists(), path
        assert not anchor or anchor[1:] in headings, anchor


def test_every_command_named_exists() -> None:
    """Where the page says `headrace …` there is such a command."""
    known = {words for words, _ in commands()}
    groups = {words.split()[0] for words in known}
    named = {
        match.strip()
        for code in re.findall(r"`(headrace [^`]*)`|^(.*headrace .*)$", _text(), re.MULTILINE)
        for match in _NAMED.findall("".join(code))
    }
    assert named
    for words in named:
        assert any(f"{words} ".startswith(f"{command} ") for command in known) or words in groups, words


def test_every_make_target_named_exists() -> None:
    """Where the page says `make …` there is such a target."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z]+)", _text(), re.MULTILINE))
    assert {"run", "test"} <= named <= targets
