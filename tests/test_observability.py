"""Who watches: log lines that lead to an event without showing it, and the metrics on Bytewax's own endpoint."""

from __future__ import annotations

import io
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from dataflows.observability import events, logs, metrics
from stores.deadletters.memory import MemoryDeadLetters
from tests.commands import headrace
from tests.flows import Log, Place, Run, free_ports, until

NOON = 1_772_366_400_000
CANARY = "CANARY-4711"
NUMBER = 987_654_321.125


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """An empty place."""
    with Place(tmp_path / "place") as made:
        yield made


def signal(number: int, *, at: int = 0, **members: object) -> bytes:
    """A signal with a payload that nobody may see, `at` milliseconds after noon."""
    event = {"entity_id": "pump-7", "event_time": NOON + at, "sequence": number, "trace_id": f"trace-{number}"}
    payload = {"a": NUMBER, "b": 1.0, "note": CANARY}
    return json.dumps(event | {"payload": payload, "source": "plant/1"} | members).encode()


LINES = [
    signal(0),
    signal(1, payload={"a": CANARY}),
    signal(2, at=600_000),
    signal(3, at=10),
    signal(4, at=20),
    b'{"entity_id": "' + CANARY.encode(),
    signal(6, sequence=CANARY),
    signal(7, at=600_100)[:-1] + b'"' + CANARY.encode() + b'"}',
    signal(8, at=600_200),
]
"""Three good ones, two late ones, four that are refused; the payload of each holds a canary."""


def log_lines(run: Run) -> list[dict[str, Any]]:
    """The lines on stderr of a run, each of which must be a JSON object."""
    return [orjson.loads(line) for line in run.errors.splitlines()]


def metric(text: str, name: str, **labels: str) -> float | None:
    """The value of one time series in what the endpoint says, or None if it is not there."""
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return float(sample.value)
    return None


def test_metrics_on_the_engines_own_endpoint(place: Place) -> None:
    """Every metric is there under its name with the right value; dead letters are counted as they are now."""
    place.write(Log(tuple(("p-0", line) for line in LINES)))
    (port,) = free_ports(1)
    run = place.signals(BUS_FOLLOW=1, BYTEWAX_DATAFLOW_API_ENABLED=1, BYTEWAX_DATAFLOW_API_PORT=port)

    def scrape() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            return str(answer.read().decode())

    def scraped() -> object:
        assert not run.ended, run.errors
        try:
            text = scrape()
            return metric(text, "dlq_size") == 4 and metric(text, "features_latency_ms_count", window="5s")
        except OSError:
            return False  # it does not listen yet

    until(scraped, "all to be counted")
    text = scrape()
    expected = {
        ("ingestion_signals_total", "decode", "ok"): 3,
        ("ingestion_signals_total", "decode", "late"): 2,
        ("ingestion_signals_total", "decode", "dead"): 4,
    }
    for (name, stage, status), value in expected.items():
        assert metric(text, name, stage=stage, status=status, source="p-0") == value
    assert metric(text, "ingestion_errors_total", stage="decode", reason="not_json") == 2
    assert metric(text, "ingestion_errors_total", stage="decode", reason="field") == 1
    assert metric(text, "ingestion_errors_total", stage="decode", reason="sequence") == 1
    lag = metric(text, "ingestion_lag_seconds", source="p-0")
    assert lag is not None
    assert lag > 0
    rows = metric(text, "ingestion_signals_total", stage="windows", status="rows", source="5s")
    assert metric(text, "features_latency_ms_count", window="5s") == rows == 1
    assert CANARY not in text
    letter = headrace(place, "dlq", "list", "--json").records[0]["id"]
    assert headrace(place, "dlq", "drop", letter).code == 0
    assert metric(scrape(), "dlq_size") == 3
    assert run.stop()["in"] == len(LINES)


@pytest.mark.parametrize("command", ["signals", "backfill"])
def test_logs_lead_to_an_event_and_never_show_it(place: Place, command: str) -> None:
    """Refused and late events are JSON lines with entity, trace, partition and offset; no payload is in any line."""
    place.write(Log(tuple(("p-0", line) for line in LINES)))
    words = ("signals",) if command == "signals" else ("backfill", "signals", "--input", f"{place.topic}/p-0.jsonl")
    run = place.headrace(*words, "--json", LOG_LEVEL="debug")
    assert run.done()["dead"] == 4
    assert CANARY not in run.errors
    assert str(NUMBER) not in run.errors
    assert "987654321" not in run.errors
    lines = log_lines(run)
    assert all({"event", "level", "timestamp"} <= line.keys() for line in lines)
    offsets = [sum(len(line) + 1 for line in LINES[:i]) for i in range(len(LINES))]
    refused = [line for line in lines if line["event"] == "refused"]
    assert [(line["partition"], line["offset"]) for line in refused] == [("p-0", offsets[i]) for i in (1, 5, 6, 7)]
    assert [(line["entity_id"], line["trace_id"]) for line in refused] == [
        ("pump-7", "trace-1"),
        (None, None),
        ("pump-7", "trace-6"),
        (None, None),
    ]
    assert [line["reason"] for line in refused] == ["field", "not_json", "sequence", "not_json"]
    if command == "signals":
        (late,) = [line for line in lines if line["event"] == "late"]
        said = {name: late[name] for name in ("partition", "offset", "entity_id", "trace_id", "count", "reason")}
        assert said == {
            "partition": "p-0",
            "offset": offsets[3],
            "entity_id": "pump-7",
            "trace_id": "trace-3",
            "count": 2,
            "reason": "late",
        }
        assert [line["event"] for line in lines if line["event"] in ("started", "stopped")] == ["started", "stopped"]


FAULTS = [
    ("read", "dataflows.buses.folder.FileReader.poll", "p-0", 0),
    ("split", "dataflows.signal_flow.split", "p-0", 0),
    ("windows", "operators.windows.Shard._wait", "p-0", 0),
    ("refused", "dataflows.signal_flow.letters_of", "p-0", 0),
    ("late", "dataflows.signal_flow.late_messages", "p-0", 0),
    ("dead_letters", "stores.deadletters.sqlite.SqliteDeadLetters.put", "letters", None),
    ("offline", "stores.offline.parquet.ParquetOfflineStore.stage", "w", None),
]


@pytest.mark.parametrize("fault", FAULTS, ids=[step for step, *_ in FAULTS])
def test_an_exception_in_a_step_is_logged_before_it_is_swallowed(
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    fault: tuple[str, str, str, int | None],
) -> None:
    """Step, partition and offset are on record, the error is counted, the run ends in one sentence and exit code 1."""
    step, function, part, offset = fault
    place.write(Log(tuple(("p-0", line) for line in LINES)))

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("on purpose\nand more")

    before = REGISTRY.get_sample_value("ingestion_errors_total", {"stage": step, "reason": "RuntimeError"}) or 0
    with monkeypatch.context() as patch:
        patch.setattr(function, broken)
        done = headrace(place, "signals", "--json")
    assert (done.code, done.out) == (1, b"")
    *_, last = done.err.splitlines()
    assert last.startswith(f"headrace: step `{step}` failed at `{part}")
    assert "RuntimeError: on purpose; LOG_LEVEL=debug" in last
    errors = [orjson.loads(line) for line in capfd.readouterr().err.splitlines()]
    (failed, *_) = [line for line in errors if line["event"] == "failed"]
    assert (failed["step"], failed["offset"], failed["level"]) == (step, offset, "error")
    assert failed["partition"].startswith(part)
    assert failed["error"].startswith("RuntimeError: on purpose")
    after = REGISTRY.get_sample_value("ingestion_errors_total", {"stage": step, "reason": "RuntimeError"})
    assert after is not None
    assert after > before
    assert headrace(place, "signals", "--json").code == 0
    assert place.totals().used == 3


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """Where log lines go as JSON during a test."""
    stream = io.StringIO()
    logs.set_up_logs("info", "json", stream)
    yield stream
    logs.set_up_logs("info", "json")


def test_a_storm_of_bad_input_is_no_storm_of_lines(logged: io.StringIO) -> None:
    """The first ones of a partition are logged and the last of these says so; another partition has its own."""
    for partition in ("storm-a", "storm-b"):
        for offset in range(100):
            events.tell(events.Refused("decode", "empty", "the message is empty", partition, offset, None))
    lines = [orjson.loads(line) for line in logged.getvalue().splitlines()]
    assert [line["offset"] for line in lines] == [0, 1, 2, 3, 4] * 2
    assert ["note" in line for line in lines] == ([False] * 4 + [True]) * 2


def test_names_that_others_chose_are_cut(logged: io.StringIO) -> None:
    """An entity or trace of any length and content stays one short line."""
    events.tell(events.Refused("decode", "field", "x", "cut-a", 0, "t\n" * 5000, "e" * 100_000))
    (line,) = logged.getvalue().splitlines()
    assert len(line) < 1000
    assert orjson.loads(line)["entity_id"].startswith("eee")


def test_levels_choose_and_terminals_get_short_lines() -> None:
    """A level leaves out what is below it; `console` is for people, without JSON."""
    stream = io.StringIO()
    logs.set_up_logs("warning", "console", stream)
    events.tell(events.PartitionStatus("levels", "found"))
    events.tell(events.Late("late", "levels", 3, "pump", 17, "t1"))
    logs.set_up_logs("info", "json")
    (line,) = stream.getvalue().splitlines()
    assert "warning" in line
    assert "entity_id=pump" in line
    assert "offset=17" in line


def test_hooks_are_added_once() -> None:
    """Setting up twice, as two runs in one process do, counts nothing twice."""
    metrics.set_up_metrics()
    metrics.set_up_metrics()
    labels = {"stage": "windows", "status": "idle", "source": "once"}
    events.tell(events.Late("idle", "once", 3, "pump", 17))
    assert REGISTRY.get_sample_value("ingestion_signals_total", labels) == 3


def test_dlq_size_of_a_store_that_is_gone_is_no_number() -> None:
    """The endpoint goes on answering when nobody can say how many letters there are."""
    metrics.set_up_metrics()
    store = MemoryDeadLetters()
    events.tell(events.DeadLettersOpened(store.count))
    assert REGISTRY.get_sample_value("dlq_size") == 0
    store.close()
    value = REGISTRY.get_sample_value("dlq_size")
    assert value is not None
    assert value != value  # noqa: PLR0124  # NaN
