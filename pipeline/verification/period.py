"""The sums of a period, read from the daily files and added up by blocks of time."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
import xarray as xr
from numpy.typing import NDArray

from pipeline import catalog as tables
from pipeline import times
from pipeline.catalog import Catalog
from pipeline.domain import Domain
from pipeline.errors import StoreUnavailable
from pipeline.storage import Store
from pipeline.verification import files
from pipeline.verification.bootstrap import HOUR_S, block_hours, effective_size, in_blocks
from pipeline.verification.pairs import COUNTS, PIXEL_SETS
from pipeline.verification.rules import HEADLINE_LEADS, nearest
from pipeline.verification.scores import Sums, csi

# what is kept of every single forecast, on the common pixels: to choose cases, and to see how alike neighbours are
OF_EACH = (*COUNTS, "pairs")


@dataclass(frozen=True)
class Verified:
    """Sums of forecasts that were scored together.

    Attributes:
        model: what made them, and what else than the baselines they are compared with.
        kind: issued, hindcast or external.
        methods: compared, the forecast itself first.
        axes: values of lead, structure_lead (minutes), threshold (mm/h), scale and band (km), probability_bin.
        hours: in which any forecast was made, since 1970, rising.
        by_hour: name -> (hour, *dimensions); also ``frames``, the forecasts that have pairs.
        cadence_s, horizon_s: of the forecasts.
        reference_times: of all forecasts, seconds since 1970, rising.
        each: name -> (forecast, method, lead[, threshold]) on the common pixels.
        places: of each forecast, see ``place_records``.
    """

    model: str
    kind: str
    methods: tuple[str, ...]
    axes: dict[str, NDArray[Any]]
    hours: NDArray[np.int64]
    by_hour: Sums
    cadence_s: int
    horizon_s: int
    reference_times: NDArray[np.int64]
    each: Sums
    places: list[dict[str, Any]]

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.model} ({self.kind})"

    @cached_property
    def total(self) -> Sums:
        """Sums of the whole period."""
        return {name: values.sum(axis=0) for name, values in self.by_hour.items()}

    @property
    def made_by(self) -> str:
        """What made the forecasts, without what else they were compared with."""
        return self.model.partition(".with.")[0]

    @cached_property
    def block_hours(self) -> int:
        """Hours that are drawn together, by the headline lead times."""
        leads = nearest(self.axes["lead"], HEADLINE_LEADS)
        count, hours = len(self.reference_times), len(self.hours)
        return block_hours(self.effective_forecasts[leads], count, hours, self.cadence_s, self.horizon_s)

    @cached_property
    def blocks(self) -> Sums:
        """Sums by blocks of so many hours, (block, *dimensions)."""
        return in_blocks(self.by_hour, self.hours, self.block_hours)

    @property
    def block_count(self) -> int:
        """Blocks in which any forecast was scored."""
        return len(self.blocks["observed"])

    def measured_lead(self, axis: str, minutes: float) -> int:
        """Index, on the axis ``lead`` or ``structure_lead``, of the lead time with common pairs nearest to ``minutes``.

        A foreign forecast may end before ours; if nothing is common, of the nearest of all.
        """
        leads = self.axes[axis]
        pairs = self.total["pairs"][0, np.searchsorted(self.axes["lead"], leads), 0]
        measured = np.flatnonzero(pairs > 0) if pairs.any() else np.arange(len(leads))
        return int(measured[nearest(leads[measured], (minutes,))[0]])

    def coverage(self) -> NDArray[np.float64]:
        """Share of the observed pairs that is common, per lead."""
        pairs = self.total["pairs"][0].astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(pairs[:, 1] > 0, pairs[:, 0] / pairs[:, 1], np.nan)

    @cached_property
    def effective_forecasts(self) -> NDArray[np.float64]:
        """Independent forecasts among those scored, per lead.

        By the difference in CSI, at the lowest threshold, between the first method and the second: what is asked is
        which is better, and there neighbours resemble each other less than in how wet it was.
        """
        hits, misses, alarms = (self.each[name][:, :2, :, 0] for name in ("hits", "misses", "false_alarms"))
        value = csi(hits, misses, alarms)
        series = value[:, 0] - value[:, 1]
        return np.array(
            [effective_size(series[:, n], self.reference_times, self.cadence_s) for n in range(series.shape[1])]
        )


def read_period(
    store: Store,
    catalog: Catalog,
    domain: Domain,
    start: datetime,
    end: datetime,
    known_by: datetime | None = None,
    made_by: str | None = None,
    unreadable: list[str] | None = None,
) -> list[Verified]:
    """Sums of the forecasts with a reference time in [start, end], the most numerous first.

    Forecasts of one model that were scored by other rules, or with other methods, stay apart.

    Args:
        known_by: leave out the lead times whose observation is of a later time.
        made_by: only forecasts of that model.
        unreadable: gets what is wrong with files that are missing or damaged, which then are left out.

    Raises:
        StoreUnavailable: a file of sums is missing or damaged, and there is no ``unreadable``.
    """
    s = tables.scores.c
    days = s.day.between(times.seconds(times.day_of(start)), times.seconds(end))
    query = sa.select(tables.scores).where(s.domain == domain.name, days).order_by(s.kind, s.model, s.day)
    groups: dict[tuple[str, ...], list[xr.Dataset]] = {}
    for row in catalog.read(query):
        if made_by is not None and row["model"].partition(".with.")[0] != made_by:
            continue
        try:
            day = tables.from_seconds(row["day"])
            last = day + timedelta(days=1) - domain.cadence
            # a day that is over and wanted whole is read once in the life of a process
            whole = start <= day and last <= end and (known_by is None or last + domain.horizon <= known_by)
            data: xr.Dataset | None
            if whole:
                data = _whole_day(store, store.root / row["path"], row["content_digest"])
            else:
                data = _part_of_day(store.get(store.root / row["path"]), start, end, known_by)
        except (OSError, ValueError, KeyError) as err:
            problem = f"{row['path']} cannot be read: {err}"
            if unreadable is None:
                raise StoreUnavailable(problem) from err
            again = f"`nowcast verify {domain.name}{' --external' * (row['kind'] == 'external')}` makes it again"
            unreadable.append(f"{problem}; {again}")
            continue
        if data is not None:
            key = (row["kind"], row["model"], str(data.attrs["methods"]), str(data.attrs["rules"]))
            groups.setdefault(key, []).append(data)
    found = [_verified(domain, key[1], key[0], key[2].split(), parts) for key, parts in groups.items()]
    return sorted(found, key=lambda one: -len(one.reference_times))


def of_sums(domain: Domain, kind: str, data: xr.Dataset) -> Verified:
    """Forecasts whose sums were just made, as ``files.to_dataset`` gives them."""
    methods = str(data.attrs["methods"]).split()
    return _verified(domain, methods[0], kind, methods, [_by_block(data)])


@lru_cache(maxsize=64)
def _whole_day(store: Store, path: Path, content_digest: str) -> xr.Dataset:
    return _by_block(files.read(store.get(path)))


def _part_of_day(path: Path, start: datetime, end: datetime, known_by: datetime | None) -> xr.Dataset | None:
    data = files.read(path)
    when = data["reference_time"].values
    data = data.isel(reference_time=(when >= times.seconds(start)) & (when <= times.seconds(end)))
    if not data.sizes["reference_time"]:
        return None
    return _by_block(data if known_by is None else _until(data, known_by))


def _until(data: xr.Dataset, known_by: datetime) -> xr.Dataset:
    """``data`` without what was observed after ``known_by``."""
    latest = times.seconds(known_by)
    changed = {}
    for name, variable in data.variables.items():
        dim = next((d for d in ("lead", "structure_lead") if d in variable.dims), None)
        if dim is None or name == dim:
            continue
        known = data["reference_time"] + 60 * data[dim] <= latest
        changed[name] = data[name].where(known, 0).transpose(*variable.dims).astype(variable.dtype)
    return data.assign(changed)


def _by_block(data: xr.Dataset) -> xr.Dataset:
    """One file: sums of blocks, and what is kept of each forecast."""
    block = data["reference_time"].values // HOUR_S
    first = np.flatnonzero(np.diff(block, prepend=block[0] - 1))
    found: dict[str, xr.Variable] = {}
    frames = xr.Variable(data["pairs"].dims, (data["pairs"].values > 0).astype(np.int64))
    for name, variable in (*((str(k), v) for k, v in data.variables.items()), ("frames", frames)):
        if name in ("reference_time", "observations_digest", "places"):
            continue
        if "reference_time" not in variable.dims:
            found[name] = variable
            continue
        wide = np.float64 if variable.dtype.kind == "f" else np.int64
        summed = np.add.reduceat(variable.values, first, axis=0, dtype=wide)
        found[name] = xr.Variable(("block", *variable.dims[1:]), summed)
    found["reference_time"] = data["reference_time"].variable
    found["hour"] = xr.Variable(("block",), block[first])
    for name in OF_EACH:
        common = data[name].isel(pixel_set=PIXEL_SETS.index("common")).variable
        found[f"each_{name}"] = common
    found["places"] = data["places"].variable
    return xr.Dataset(found, attrs=data.attrs)


def _verified(domain: Domain, model: str, kind: str, methods: Iterable[str], parts: list[xr.Dataset]) -> Verified:
    names = {str(name) for part in parts for name in part.variables}

    def joined(name: str, dim: str) -> NDArray[Any]:
        like = next(part[name] for part in parts if name in part)
        arrays = [
            part[name].values if name in part else np.zeros((part.sizes[dim], *like.shape[1:]), like.dtype)
            for part in parts
        ]
        return np.concatenate(arrays)

    by_hour = {n: joined(n, "block") for n in names if any(n in p and p[n].dims[:1] == ("block",) for p in parts)}
    each = {n.removeprefix("each_"): joined(n, "reference_time") for n in names if n.startswith("each_")}
    axes = ("lead", "structure_lead", "threshold", "scale", "band", "probability_bin")
    return Verified(
        model=model,
        kind=kind,
        methods=tuple(methods),
        axes={name: next(p[name].values for p in parts if name in p) for name in axes if name in names},
        hours=by_hour.pop("hour"),
        by_hour=by_hour,
        cadence_s=60 * domain.cadence_minutes,
        horizon_s=int(domain.horizon.total_seconds()),
        reference_times=joined("reference_time", "reference_time"),
        each=each,
        places=[one for part in parts for one in files.places(part)],
    )
