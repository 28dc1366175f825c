"""The demo as a stranger runs it, and that its checks really check."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numba import njit
from rich.console import Console

from dataflows.demo import show, steps
from dataflows.demo.check import Anomaly, check_counts, prove_equal, strongest
from dataflows.demo.folder import DemoFolder, no_settings
from dataflows.demo.report import _bar
from dataflows.engine import STOP
from operators.errors import ConfigError, HeadraceError, MissingExtraError
from operators.feature_sets import parse_feature_sets
from operators.hashes import digest
from operators.rows import hash_table
from stores.features import View, views_of
from tests.commands import environment
from tests.feature_rows import feature_rows

ROOT = Path(__file__).parents[1]
SECOND_US = 1_000_000
HOSTILE = {
    "BUS_DIR": "elsewhere/bus",
    "OFFLINE_DATA_PATH": "elsewhere/offline",
    "RECOVERY_DIR": "elsewhere/recovery",
    "FEATURE_SETS_PATH": "elsewhere/sets.toml",
    "FEATURE_WINDOWS": "nonsense",
    "ONLINE_STORE": "none",
    "WATERMARK_SECONDS": "1",
}
"""Settings of somebody else's run: the demo must neither obey nor touch them."""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with the commands of this checkout on a path of its own, in which nothing was done yet."""
    commands = tmp_path / "commands"
    commands.mkdir()
    (commands / "headrace").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m dataflows "$@"\n', "utf-8")
    (commands / "headrace").chmod(0o755)
    (commands / "feast").symlink_to(Path(sys.executable).with_name("feast"))
    return tmp_path


def _environment(home: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in HOSTILE}
    path = f"{home / 'commands'}:{os.environ['PATH']}"
    return {**kept, "PYTHONPATH": str(ROOT), "PATH": path, "COLUMNS": "80", **more}


def _demo(home: Path) -> str:
    command = [sys.executable, "-m", "dataflows", "demo"]
    environ = _environment(home, **HOSTILE)
    done = subprocess.run(command, cwd=home, env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


class TestDemo:
    @pytest.mark.timeout(900)  # two demos and all the commands they tell to type, each a process of its own
    def test_as_a_stranger_runs_it(self, home: Path) -> None:
        """It works whatever is set, in its own folder alone; what it says to type works; a repeat finds the same."""
        shown = _demo(home)
        _check_page(shown)
        found = {str(p.relative_to(home)) for p in (*home.iterdir(), *(home / "data").iterdir())}
        assert found == {"commands", "data", "data/demo"}
        assert (home / "data/demo/picture.png").read_bytes().startswith(b"\x89PNG")
        _type_next(home, shown.partition("What to type next")[2].strip())
        pages = [text[text.index("What became") :] for text in (shown, _demo(home))]
        assert pages[0] == pages[1]

    def test_a_signal_ends_it(self, home: Path) -> None:
        """Ctrl-C ends it with 130 and no traceback."""
        command = [sys.executable, "-u", "-m", "dataflows", "demo"]
        pipe = subprocess.PIPE
        with subprocess.Popen(
            command, cwd=home, env=_environment(home), stdout=pipe, stderr=pipe, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            reaper = threading.Timer(120, process.kill)
            reaper.start()
            while "Shuffled" not in process.stdout.readline():
                assert process.poll() is None
            process.send_signal(signal.SIGINT)
            error = process.stderr.read()
            reaper.cancel()
        assert (process.returncode, "Traceback" in error) == (130, False), error

    def test_a_signal_during_the_run_ends_it_too(self) -> None:
        """The run takes the signal as a clean stop; the demo ends then, and answers signals as before."""

        def run() -> None:
            with show._interruptible():
                signal.signal(signal.SIGINT, lambda *_: STOP.set())
                signal.raise_signal(signal.SIGINT)

        before = signal.getsignal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            run()
        STOP.clear()
        assert signal.getsignal(signal.SIGINT) == before


def _check_page(shown: str) -> None:
    """The counts are those mixed in, no part is missing, and all but the commands fits 80 columns."""
    page, _, commands = shown.partition("What to type next")
    assert "15,179 + 120 + 24 + 36 + 12 = 15,371" in page
    for part in (
        "Live = batch, bit for bit",
        "Strongest anomalies",
        "Served online now",
        "Documents, searched",
        "data/demo/picture.png",
    ):
        assert part in page
    assert "✗" not in page
    assert "…" not in page
    assert max(map(len, page.splitlines())) <= 80
    assert len(commands.splitlines()) > 5
    sample = (ROOT / "README.md").read_text("utf-8").partition("<!-- shown by make run -->\n```text\n")[2]
    printed = {line.rstrip() for line in page.splitlines()}
    assert [line for line in sample.partition("```")[0].splitlines() if line not in printed] == []


def _type_next(home: Path, commands: str) -> None:
    """Type what the page tells, as printed, where the demo was run."""
    script = ["sh", "-c", f"set -e\n{commands}"]
    done = subprocess.run(script, cwd=home, env=_environment(home), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "patient-1 · glucose v1 · window 1h" in done.stdout
    assert "glucose_v1_1h" in done.stdout
    assert "pyarrow-licence.pdf · page 2" in done.stdout
    assert ["embedded", "0"] in [line.split()[:2] for line in done.stdout.splitlines()]
    counts = [line.split()[1] for line in done.stdout.splitlines() if line.split()[:1] in (["in"], ["repeated"])]
    assert counts == ["0", "15,371", "2,869"]


class TestFolder:
    def test_refuses_what_no_demo_made(self, tmp_path: Path) -> None:
        """A folder that holds anything else stays as it is."""
        (tmp_path / "thesis.txt").write_text("mine", "utf-8")
        with pytest.raises(ConfigError, match="no demo made it"), DemoFolder(tmp_path).claimed():
            pass
        assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]

    def test_refuses_a_file(self, tmp_path: Path) -> None:
        """A file is no folder."""
        (tmp_path / "file").touch()
        with pytest.raises(ConfigError, match="Not a directory"), DemoFolder(tmp_path / "file").claimed():
            pass

    def test_two_demos_do_not_share_it(self, tmp_path: Path) -> None:
        """While one works in the folder another is refused, and what the first wrote stays."""
        folder = DemoFolder(tmp_path / "demo")
        with folder.claimed():
            (folder.root / "picture.png").touch()
            with pytest.raises(ConfigError, match="another demo is at work"), folder.claimed():
                pass
            assert folder.picture.exists()
        with folder.claimed():
            assert not folder.picture.exists()

    def test_empties_without_following_links(self, tmp_path: Path) -> None:
        """What an earlier demo's folder links to is not emptied with it."""
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        (elsewhere / "kept").touch()
        folder = DemoFolder(tmp_path / "demo")
        with folder.claimed():
            (folder.root / "link").symlink_to(elsewhere)
        with folder.claimed():
            assert {p.name for p in folder.root.iterdir()} == {".headrace-demo", "feature_repo"}
        assert (elsewhere / "kept").exists()

    def test_settings_come_back(self) -> None:
        """The demo sees no setting of the environment, and leaves all as they were."""
        with environment(HOSTILE):
            before = dict(os.environ)
            with no_settings():
                assert not set(HOSTILE) & set(os.environ)
            assert dict(os.environ) == before


@pytest.mark.parametrize("missing", ["matplotlib", "pvlib"])
def test_a_missing_extra_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """Without a package of the extra `demo` the error says what to install, before anything is touched."""
    for module in (show, sys.modules["dataflows.demo.readings"]):
        found = vars(module)["find_spec"]
        monkeypatch.setattr(module, "find_spec", lambda name, found=found: None if name == missing else found(name))
    with pytest.raises(MissingExtraError, match=r"headrace\[demo\]"):
        show.run_demo(tmp_path / "demo")
    assert not (tmp_path / "demo").exists()


SETS = """
[[feature_set]]
name = "room"
version = 1
fields = ["heat", "damp"]
windows = ["10s", "1m/10s"]
halflife = "1m"
"""
VIEW, SLIDING = views_of(parse_feature_sets(SETS, where="SETS"))


def _rows(view: View, *scores: tuple[str, int, float, float], last: float = 20.0) -> pa.Table:
    """Rows of (entity, second, z-score of heat, z-score of damp), hashed as the flow hashes them."""
    rows = [
        {
            "entity_id": entity,
            "event_time": second * SECOND_US,
            "heat__last": last,
            "damp__last": last,
            "heat__zscore": heat,
            "damp__zscore": damp,
        }
        for entity, second, heat, damp in scores
    ]
    table = pa.Table.from_batches([feature_rows(view, rows)])
    hashes = hash_table(table, view.feature_set, view.window)
    column = pa.array([h.tobytes() for h in hashes], pa.binary(16))
    return table.set_column(table.schema.get_field_index("content_hash"), table.schema.field("content_hash"), column)


class TestChecks:
    def test_counts_that_differ_are_named(self) -> None:
        """The error says which run counts what, and what it should be."""
        with pytest.raises(HeadraceError, match=r"the live run .*: it counts late 35 and not 36$"):
            check_counts("live", {"used": 5, "late": 35}, {"used": 5, "late": 36})

    def test_equal_histories_share_a_digest(self) -> None:
        """Two histories of the same rows in another order are one; the digest is that of the rows' hashes."""
        ours = _rows(VIEW, ("a", 10, 1.0, 0.0), ("a", 20, 2.0, 0.0))
        theirs = ours.take(pa.array([1, 0]))
        (proof,) = prove_equal({VIEW: ours}, {VIEW: theirs})
        assert (proof.rows, proof.digest) == (2, f"{digest(hash_table(ours, VIEW.feature_set, VIEW.window)):032x}")

    def test_a_bit_makes_a_difference(self) -> None:
        """The smallest change of one value, or a row too many, is found."""
        ours = _rows(VIEW, ("a", 10, 1.0, 0.0))
        for theirs in (
            _rows(VIEW, ("a", 10, np.nextafter(1.0, 2.0), 0.0)),
            _rows(VIEW, ("a", 10, 1.0, 0.0), ("a", 10, 1.0, 0.0)),
        ):
            with pytest.raises(HeadraceError, match="live and batch differ in `room_v1_10s`"):
                prove_equal({VIEW: ours}, {VIEW: theirs})

    def test_stored_hashes_are_not_believed(self) -> None:
        """A row whose values do not make its hash is found, though both histories agree."""
        rows = _rows(VIEW, ("a", 10, 1.0, 0.0))
        index = rows.schema.get_field_index("heat__last")
        rows = rows.set_column(index, rows.schema.field("heat__last"), pa.array([21.0]))
        with pytest.raises(HeadraceError, match="does not carry the hash"):
            prove_equal({VIEW: rows}, {VIEW: rows})

    def test_strongest_anomalies(self) -> None:
        """Only tumbling windows; of one window the stronger field; at most four of an entity; strongest first."""
        many = [("a", 10 * i, 3.0 + i, -20.0 if i == 3 else 0.0) for i in range(8)]
        rows = _rows(VIEW, *many, ("b", 10, -3.5, 1.0))
        found = strongest({VIEW: rows, SLIDING: _rows(SLIDING, ("a", 10, 99.0, 0.0))})
        told = [(a.entity_id, a.event_time_us // SECOND_US, a.field, a.zscore) for a in found]
        assert told == [
            ("a", 30, "damp", -20.0),
            ("a", 70, "heat", 10.0),
            ("a", 60, "heat", 9.0),
            ("a", 50, "heat", 8.0),
            ("b", 10, "heat", -3.5),
        ]

    def test_wrong_answers_of_feast_are_found(self) -> None:
        """An answer from the future, or another value, is an error that names the column."""
        from dataflows.demo.serving import Serving

        class Liar(Serving):
            def __init__(self) -> None:
                """Opens nothing."""

            def _history(self, *_: object) -> list[dict[str, float | int | None]]:
                return [{"heat__last": 20.0, "heat__zscore": 4.0}] * 2

        rows = _rows(VIEW, ("a", 10, 4.0, 0.0))
        anomaly = Anomaly(VIEW, "a", 10 * SECOND_US, "heat", 20.0, 4.0)
        with pytest.raises(HeadraceError, match=r"`a` at 1970-01-01T00:00:09\.999999.*heat__last is 20\.0, not None"):
            Liar().look_back({VIEW: rows}, [anomaly])
        assert replace(anomaly, field="damp") != anomaly


class TestSteps:
    @pytest.fixture
    def out(self) -> Console:
        """A console that is no terminal."""
        return Console(file=StringIO(), width=100, highlight=False)

    def test_compiling_is_told_apart(self, out: Console, monkeypatch: pytest.MonkeyPatch) -> None:
        """Time in which numba compiles is a line of its own, and only when there is some."""
        monkeypatch.setattr(steps, "_WORTH_TELLING_S", 0.0)

        negative: Any = njit(lambda x: -x)
        for _ in range(2):
            with steps.Steps(out).step("Turning", "Turned"):
                assert negative(2) == -2
        assert isinstance(out.file, StringIO)
        lines = [line.split("  ")[0].strip() for line in out.file.getvalue().splitlines()]
        assert lines == [f"✓ {steps._COMPILED}", "✓ Turned", "✓ Turned"]

    def test_a_failure_is_crossed(self, out: Console) -> None:
        """A step that raises is shown as not done, and the error goes on."""
        with pytest.raises(ValueError, match="no"), steps.Steps(out).step("Trying", "Tried"):
            raise ValueError("no")
        assert isinstance(out.file, StringIO)
        assert out.file.getvalue().split()[:2] == ["✗", "Trying"]


def test_bars_show_whatever_is_there() -> None:
    """A share above nothing has a mark, nothing has none, and the whole is the longest bar."""
    assert [_bar(share) for share in (0.0, 1e-6, 0.5, 1.0)] == ["", "▏", "█" * 9, "█" * 18]


def test_lock_ends_with_the_demo(tmp_path: Path) -> None:
    """Once a demo has ended, however it did, its folder is free again."""
    folder = DemoFolder(tmp_path / "demo")
    with pytest.raises(ValueError, match="crash"), folder.claimed():
        raise ValueError("crash")
    with (folder.root / ".headrace-demo").open() as mark:
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
