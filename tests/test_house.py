"""The house rules that no single file shows: which way imports go, what stays outside, how long files get."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"dataflows", "feature_repo", "operators", "stores", "tests"}
MAY_IMPORT = {
    "operators": {"operators"},
    "stores": {"operators", "stores"},
    "dataflows": {"dataflows", "operators", "stores"},
}
LINES_MAX = 400

READS_THE_WORLD = {
    "asyncio",
    "fcntl",
    "glob",
    "http",
    "logging",
    "multiprocessing",
    "os",
    "pathlib",
    "platform",
    "random",
    "secrets",
    "select",
    "shutil",
    "signal",
    "socket",
    "sqlite3",
    "ssl",
    "subprocess",
    "sys",
    "tempfile",
    "threading",
    "time",
    "urllib",
    "uuid",
}
"""Modules that reach the network, the disk, the environment, the wall clock or chance."""

CALLS_THE_WORLD = {"input", "now", "open", "print", "today", "utcnow"}
"""Calls that do the same without such an import."""


def _files(folder: str) -> list[Path]:
    return sorted(p for p in (ROOT / folder).rglob("*.py") if "__pycache__" not in p.parts)


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of every module that the file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            yield node.lineno, node.module or ""


def _offences(folder: str, forbidden: set[str]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in _files(folder)
        for line, name in _imports(path)
        if name.split(".")[0] in forbidden
    ]


@pytest.mark.parametrize("folder", sorted(MAY_IMPORT))
def test_imports_go_one_way(folder: str) -> None:
    """Dataflows import stores, stores import operators, and nothing looks back."""
    assert _offences(folder, FOLDERS - MAY_IMPORT[folder]) == []


def test_operators_reach_nothing_outside() -> None:
    """An operator's file imports and calls nothing that does I/O or reads the environment, the clock or chance."""
    calls = [
        f"{path.relative_to(ROOT)}:{node.lineno} calls {name}"
        for path in _files("operators")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and (name := getattr(node.func, "id", getattr(node.func, "attr", ""))) in CALLS_THE_WORLD
    ]
    assert _offences("operators", READS_THE_WORLD) + calls == []


def test_feature_repo_imports_feast_and_siblings_only() -> None:
    """Declarations need Feast, the standard library and each other, so `feast apply` works with nothing else."""
    siblings = {path.stem for path in _files("feature_repo")}
    allowed = {"feast", *siblings, *sys.stdlib_module_names}
    offences = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in _files("feature_repo")
        for line, name in _imports(path)
        if name.split(".")[0] not in allowed
    ]
    assert offences == []


def test_files_stay_short() -> None:
    """A file that no longer fits one head is two files."""
    lines = {path: len(path.read_bytes().splitlines()) for folder in sorted(FOLDERS) for path in _files(folder)}
    assert {str(p.relative_to(ROOT)): n for p, n in lines.items() if n > LINES_MAX} == {}


def test_no_folder_comes_in_another_shape() -> None:
    """Code stands in the five folders and nowhere else."""
    found = {p.name for p in ROOT.iterdir() if p.is_dir() and not p.name.startswith(".") and any(p.rglob("*.py"))}
    assert found - {"build", "data", "dist"} == FOLDERS


@pytest.mark.parametrize("module", ["operators", "dataflows.cli"])
def test_heavy_libraries_come_late(module: str) -> None:
    """Importing the module loads neither Feast nor matplotlib nor pandas: a command pays for what it uses."""
    code = f"import sys, {module}; print(*sorted({{'feast', 'matplotlib', 'pandas', 'duckdb'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
