"""What a run needs, looked at before one is started: each thing is ok, or what to do is said. Nothing is changed."""

from __future__ import annotations

import os
import re
import resource
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from operators.errors import ConfigError, HeadraceError

if TYPE_CHECKING:
    from dataflows.config import Settings
    from operators.feature_sets import FeatureSets

_LIMIT_S = 5.0
_FEAST_LIMIT_S = 60.0
"""Importing Feast takes seconds, and a shared registry is a server."""

_PYTHONS = ((3, 11), (3, 12))
_FREE_BYTES = 1 << 30
_FREE_FILES = 10_000
_OPEN_FILES = 512
"""What a run opens at the same time besides the partitions of a folder, generously."""

_REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?([^;]*)$")
_VIEW_NAME_FIELD = b"\x0a"
"""How the name of a view begins in Feast's registry: the first field of its protobuf message."""

State = Literal["ok", "wrong", "skipped"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found about one thing. says: of what is wrong, also what to do; never a secret."""

    check: str
    state: State
    says: str

    def record(self) -> dict[str, object]:
        """As printed: `check, state, says`."""
        return asdict(self)


Findings = Sequence[tuple[State, str]]


@dataclass(frozen=True, slots=True)
class Check:
    """Something to look at. look: what is found, or a HeadraceError; given up after `limit_s` seconds.

    what: what gives no answer if it is given up.
    """

    name: str
    what: str
    look: Callable[[], Findings]
    limit_s: float = _LIMIT_S


def examine() -> Iterator[Finding]:
    """Look at everything, one thing after the other; ends in bounded time, whatever does not answer."""
    from dataflows.config import load_settings

    for check in (Check("python", "Python", _python), Check("packages", "the environment", _packages)):
        yield from outcome(check)
    try:
        settings = load_settings()
    except ConfigError as error:
        yield Finding("settings", "wrong", str(error))
        return
    named = [name.upper() for name in type(settings).model_fields if name in settings.model_fields_set]
    yield Finding("settings", "ok", f"from the environment: {', '.join(named)}" if named else "all are defaults")
    for check in (*_checks(settings), *_bus_checks(settings)):
        yield from outcome(check)


def outcome(check: Check) -> list[Finding]:
    """What the check finds; one finding if it fails, or does not end in its time."""
    found: list[Findings | BaseException] = []

    def work() -> None:
        try:
            found.append(check.look())
        except BaseException as error:  # noqa: BLE001  # it is judged by the thread that waits
            found.append(error)

    thread = threading.Thread(target=work, name=f"doctor {check.name}", daemon=True)
    thread.start()
    thread.join(check.limit_s)
    match found:
        case []:
            return [Finding(check.name, "wrong", f"{check.what} gives no answer in {check.limit_s:g} seconds")]
        case [HeadraceError() as error]:
            return [Finding(check.name, "wrong", str(error))]
        case [BaseException() as error]:
            raise error
        case [findings]:
            return [Finding(check.name, state, says) for state, says in findings]  # type: ignore[union-attr]  # an error is told above
    raise AssertionError(check.name)


def _checks(settings: Settings) -> list[Check]:
    """What does not depend on the bus."""
    sets: list[FeatureSets] = []

    def with_sets(look: Callable[[FeatureSets], Findings]) -> Callable[[], Findings]:
        return lambda: look(sets[0]) if sets else [("skipped", "the feature sets cannot be read")]

    def read_sets() -> Findings:
        sets.append(settings.feature_sets())
        told = ", ".join(f"`{s.name}` version {s.version}" for s in sets[0].sets)
        return [("ok", f"{told} ({sum(len(s.windows) for s in sets[0].sets)} windows)")]

    return [
        Check("files", "the system", lambda: _open_files(settings)),
        Check("feature sets", f"FEATURE_SETS_PATH `{settings.feature_sets_path}`", read_sets),
        *[
            Check("disk", f"{setting} `{folder}`", lambda setting=setting, folder=folder: _disk(setting, folder))  # type: ignore[misc]  # mypy cannot infer a lambda with defaults
            for setting, folder in _folders(settings)
        ],
        Check("recovery", f"RECOVERY_DIR `{settings.recovery_dir}`", with_sets(lambda _: _recovery(settings))),
        Check("online", "Feast's registry", with_sets(lambda s: _online(settings, s)), _FEAST_LIMIT_S),
    ]


def _bus_checks(settings: Settings) -> Sequence[Check]:
    if settings.kafka_brokers:
        from dataflows.doctor_kafka import kafka_checks

        return kafka_checks(settings)
    return [Check("bus", f"BUS_DIR `{settings.bus_dir}`", lambda: _folder_bus(settings))]


def _python() -> Findings:
    version = sys.version_info
    told = f"{version.major}.{version.minor}.{version.micro} at `{sys.executable}`"
    if (version.major, version.minor) not in _PYTHONS:
        return [("wrong", f"{told}; make the environment anew with Python 3.11 or 3.12")]
    return [("ok", told)]


def _packages() -> Findings:
    """Every package that a run needs, in a version that it can run with."""
    try:
        needed = [r for r in metadata.requires("headrace") or [] if "extra ==" not in r]
    except metadata.PackageNotFoundError:
        return [("skipped", "Headrace itself is not installed here, so what it needs is not known")]
    wrong: list[str] = []
    for requirement in needed:
        parts = _REQUIREMENT.match(requirement.partition(";")[0].strip())
        assert parts is not None, requirement
        name, versions = parts[1], parts[2].strip()
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            wrong.append(f"`{name}` is not installed")
            continue
        if not _is_within(installed, versions):
            wrong.append(f"`{name}` is {installed}, needed is {versions}")
    if wrong:
        return [("wrong", f"{'; '.join(wrong)}: install Headrace anew, as with `make run` or `pip install headrace`")]
    told = ", ".join(
        f"{name} {metadata.version(name)}" for name in ("headrace", "bytewax", "confluent-kafka", "pyarrow")
    )
    return [("ok", f"{told}; {len(needed)} needed ones are there")]


def _is_within(installed: str, versions: str) -> bool:
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError:
        return True  # it is there; nothing here can compare versions
    return SpecifierSet(versions).contains(installed, prereleases=True)


def _open_files(settings: Settings) -> Findings:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = _OPEN_FILES
    if not settings.kafka_brokers:
        from dataflows.wiring import bus_of

        needed += len(bus_of(settings).partitions(settings.topic_signals))
    if soft != resource.RLIM_INFINITY and soft < needed:
        return [("wrong", f"a process may open {soft} files, a run may need {needed}: raise it (`ulimit -n {needed}`)")]
    return [("ok", f"a process may open {soft:,} files" if soft != hard or soft > 0 else "any number may be open")]


def _folders(settings: Settings) -> list[tuple[str, Path]]:
    """(setting, folder) of everything that a run writes to."""
    found = [
        ("OFFLINE_DATA_PATH", settings.offline_data_path),
        ("RECOVERY_DIR", settings.recovery_dir),
        ("BUS_DIR", settings.bus_dir),
    ]
    if settings.archive_signals:
        found.append(("ARCHIVE_PATH", settings.archive_path))
    if settings.ingest_sources:
        found.append(("VECTORSTORE_PATH", settings.vectorstore_path))
        if settings.metadata_db_url.startswith("sqlite:///"):
            found.append(("METADATA_DB_URL", Path(settings.metadata_db_url.removeprefix("sqlite:///")).parent))
    return found


def _disk(setting: str, folder: Path) -> Findings:
    """Whether files can be written there, and how many."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        if there == folder.absolute():
            with tempfile.TemporaryFile(dir=folder):
                pass
        elif not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            return [("wrong", f"{setting} `{folder}` cannot be made in `{there}`; name a folder of this user's")]
    except OSError as error:
        reason = f"{setting} `{folder}` cannot be written to: {error.strerror}; name a folder of this user's"
        return [("wrong", reason)]
    free = shutil.disk_usage(there).free
    room = os.statvfs(there)
    told = f"{free / (1 << 30):,.1f} GiB are free at {setting} `{folder}`"
    if free < _FREE_BYTES:
        return [("wrong", f"only {told}; free space, or name a folder on another disk")]
    if room.f_files > 0 and room.f_favail < _FREE_FILES:
        return [("wrong", f"only {room.f_favail} more files can be made at {setting} `{folder}`; remove some")]
    return [("ok", told + ("" if there == folder.absolute() else ", which a run will make"))]


def _recovery(settings: Settings) -> Findings:
    """Whether the recovery folder is that of these settings, and who holds it."""
    from dataflows.recovery import Recovery
    from dataflows.set_versions import sets_run_together
    from dataflows.wiring import identity_of

    recovery = Recovery(settings.recovery_dir)
    lineage = recovery.look(identity_of(settings, sets_run_together(settings)))
    if lineage is None:
        return [("ok", f"`{settings.recovery_dir}` is new: a run begins at the beginning of the log")]
    told = f"`{settings.recovery_dir}` belongs to these settings, lineage {lineage}"
    holder = recovery.holder()
    if holder is None:
        return [("ok", f"{told}; no run holds it")]
    return [("ok", f"{told}; held by {f'process {holder}{_command(holder)}' if holder else 'a process'}, which runs")]


def _command(process: int) -> str:
    """What the process was started with, as far as this user may see it; arguments hold no secret of ours."""
    try:
        words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    return f" (`{' '.join(word.decode('utf-8', 'replace') for word in words[:4] if word)}`)"


def _online(settings: Settings, sets: FeatureSets) -> Findings:
    """Whether Feast knows the views; Feast itself is asked only if its registry is no local file."""
    if settings.online_store == "none":
        return [("skipped", "ONLINE_STORE is `none`")]
    import yaml

    from stores.features.port import views_of

    path = settings.feast_repo_path / "feature_store.yaml"
    try:
        declared = yaml.safe_load(path.read_text("utf-8"))
        registry = declared["registry"]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError):
        return [("wrong", f"FEAST_REPO_PATH `{settings.feast_repo_path}` holds no feature_store.yaml with a registry")]
    kind = registry.get("registry_type", "file") if isinstance(registry, dict) else "file"
    where = str(registry.get("path", "") if isinstance(registry, dict) else registry)
    names = [view.name for view in views_of(sets)]
    if kind != "file" or "://" in where:
        from dataflows.wiring import features_of

        features = features_of(settings, sets)
        assert features is not None  # ONLINE_STORE is not none
        features.close()
        return [("ok", f"all {len(names)} views are in Feast's shared registry")]
    file = settings.feast_repo_path / where
    known = file.read_bytes() if file.is_file() else b""
    missing = [name for name in names if _VIEW_NAME_FIELD + bytes([len(name)]) + name.encode() not in known]
    if not missing:
        return [("ok", f"all {len(names)} views are in Feast's registry `{file}`")]
    return [
        ("ok", f"{len(missing)} of {len(names)} views are not in Feast's registry `{file}` yet: a run puts them there")
    ]


def _folder_bus(settings: Settings) -> Findings:
    from dataflows.wiring import bus_of

    bus = bus_of(settings)
    partitions = bus.partitions(settings.topic_signals)
    folder = settings.bus_dir / settings.topic_signals
    if not partitions:
        return [("ok", f"`{folder}` has no partition yet; `headrace produce --rate 10` writes one, to try")]
    size = sum(bus.end(settings.topic_signals, name) for name in partitions)
    return [("ok", f"`{folder}` has {len(partitions)} partitions of {size:,} bytes")]
