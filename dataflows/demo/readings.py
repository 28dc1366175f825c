"""Real readings that ship inside packages: a glucose sensor, an ocean buoy and a weather station.

- Glucose: a continuous glucose monitor, every five minutes, 2010; `isig` is the sensor's raw current. Public domain,
  in bokeh-sampledata.
- Sea: NERACOOS station B01, Western Maine Shelf, half-hourly, 2016. Free to use, in bokeh-sampledata.
- Weather: station 723170, Greensboro, hourly, a typical year put together from months of several years
  (TMY3, National Renewable Energy Laboratory), in pvlib.

The files are read as they stand in the wheels; neither library is imported. Values are untouched. Times of the
glucose sensor and the station are moved to the buoy's year, 2016, so that the three run side by side; month, day and
time of day stay. The glucose record names no time zone and is taken as UTC.
"""

from __future__ import annotations

import csv
import gzip
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from operators.errors import MissingExtraError

FIRST_DAY = "2016-08-01"
"""Start of the demo's slice: summer, with five days in which the glucose sensor gave no `isig`."""

_HOUR_US = 3_600_000_000
_DAY_US = 24 * _HOUR_US
_GLUCOSE_MOVED_US = 2_192 * _DAY_US
_STATION_UTC_OFFSET_US = -5 * _HOUR_US
_STATION_MISSING = -9_900.0


@dataclass(frozen=True, slots=True)
class Instrument:
    """What reads: entity_id and source as in its signals, names of payload fields, a unit for each, and whose data."""

    entity_id: str
    source: str
    fields: tuple[str, ...]
    units: tuple[str, ...]
    credit: str


GLUCOSE_SENSOR = Instrument(
    "patient-1",
    "cgm/patient-1",
    ("glucose", "isig"),
    ("mg/dL", "nA"),
    "Continuous glucose monitor, 2010, moved to 2016; public domain, in bokeh-sampledata.",
)
BUOY = Instrument(
    "buoy-b01",
    "buoy/neracoos-b01",
    ("temperature",),
    ("°C",),
    "NERACOOS station B01, Western Maine Shelf, 2016; in bokeh-sampledata.",
)
STATION = Instrument(
    "station-723170",
    "station/723170",
    ("air_temperature", "pressure", "wind_speed"),
    ("°C", "hPa", "m/s"),
    "NREL TMY3, Greensboro Piedmont Triad, a typical year, moved to 2016; in pvlib.",
)


@dataclass(frozen=True, slots=True)
class Recording:
    """What one instrument read, in order of time.

    event_time: int64 (n,), microseconds UTC, not falling; two readings may share a time.
    sequence: int64 (n,), strictly rising: counts the instrument's readings, so it tells such two apart.
    values: float64 (n, fields); NaN where the instrument gave none.
    """

    instrument: Instrument
    event_time: NDArray[np.int64]
    sequence: NDArray[np.int64]
    values: NDArray[np.float64]

    def __len__(self) -> int:
        """Readings."""
        return len(self.event_time)

    def take(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Recording:
        """Return the readings that a mask or rising indices pick."""
        return Recording(self.instrument, self.event_time[rows], self.sequence[rows], self.values[rows])


def load_recordings(days: int = 45) -> tuple[Recording, ...]:
    """Read the first `days` days of each recording from FIRST_DAY on: for 45 days about 15,000 readings.

    Raises MissingExtraError without the packages of the extra `demo`.
    """
    start = int(_microseconds([FIRST_DAY])[0])
    stop = start + days * _DAY_US
    whole = (_glucose(), _sea(), _weather())
    return tuple(r.take((r.event_time >= start) & (r.event_time < stop)) for r in whole)


def _glucose() -> Recording:
    rows = _table(_wheel_file("bokeh_sampledata", "_data/CGM.csv.gz"))
    times = _microseconds([row["datetime"] for row in rows]) + _GLUCOSE_MOVED_US
    values = [[_number(row["glucose"]), _number(row["isig"])] for row in rows]
    return _recording(GLUCOSE_SENSOR, times, values)


def _sea() -> Recording:
    rows = _table(_wheel_file("bokeh_sampledata", "_data/sea_surface_temperature.csv.gz"))
    times = _microseconds([row["time (UTC)"].removesuffix("Z") for row in rows])
    values = [[_number(row["temperature (celsius)"])] for row in rows]
    return _recording(BUOY, times, values)


def _weather() -> Recording:
    rows = _table(_wheel_file("pvlib", "data/723170TYA.CSV"), lines_before_header=1)
    year = FIRST_DAY[:4]
    dates = [f"{year}-{month}-{day}" for month, day, _ in (row["Date (MM/DD/YYYY)"].split("/") for row in rows)]
    hours = [int(row["Time (HH:MM)"][:2]) for row in rows]  # 1 to 24: the end of the hour
    times = _microseconds(dates) + np.array(hours) * _HOUR_US - _STATION_UTC_OFFSET_US
    columns = ("Dry-bulb (C)", "Pressure (mbar)", "Wspd (m/s)")
    values = [[_number(row[column]) for column in columns] for row in rows]
    return _recording(STATION, times, values)


def _recording(instrument: Instrument, event_time: NDArray[np.int64], values: list[list[float]]) -> Recording:
    order = np.argsort(event_time, kind="stable")
    return Recording(instrument, event_time[order], np.arange(1, len(order) + 1), np.array(values)[order])


def _microseconds(texts: list[str]) -> NDArray[np.int64]:
    return np.array(texts, "datetime64[us]").astype(np.int64)


def _number(text: str) -> float:
    """NaN for what the instruments write in place of a reading: nothing, `nil` or a sentinel far below any value."""
    if text in ("", "nil"):
        return float("nan")
    value = float(text)
    return float("nan") if value <= _STATION_MISSING else value


def _wheel_file(package: str, name: str) -> Path:
    """Path of a file inside an installed package, found without importing the package."""
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder, name)
        if path.is_file():
            return path
    raise MissingExtraError("the demo", "demo")


def _table(path: Path, *, lines_before_header: int = 0) -> list[dict[str, str]]:
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    return list(csv.DictReader(text.splitlines()[lines_before_header:]))
