"""The verification report: one self-contained HTML page, and the scores as CSV beside it."""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import sqlalchemy as sa
import xarray as xr

from pipeline import catalog as tables
from pipeline import product, times
from pipeline.catalog import Catalog, Row
from pipeline.domain import DRIZZLE_FLOOR_MM_H, Domain
from pipeline.errors import DamagedFrame, NotForecast, StoreUnavailable
from pipeline.frames.archive import Archive
from pipeline.frames.grayscale import NO_COVERAGE, Frame, Pixels, rate_table
from pipeline.grids import Grid
from pipeline.storage import Store
from pipeline.verification import figures, files
from pipeline.version import software_version

CASE_LEADS_MINUTES = (10, 30, 60, 120)
TABLE_LEADS_MINUTES = (10, 30, 60, 120)


@dataclass(frozen=True)
class WrittenReport:
    """Where the report lies, and the scores behind it.

    Attributes:
        tables: model key -> score table over the whole period.
    """

    page: Path
    scores: Path
    tables: dict[str, pd.DataFrame]


def write_report(
    domain: Domain,
    store: Store,
    catalog: Catalog,
    start: datetime | None,
    end: datetime | None,
    out: Path | None,
    now: datetime,
) -> WrittenReport:
    """Write ``DOMAIN_START_END.html`` and ``.csv``; without times over all that the catalog knows.

    Raises:
        NotForecast: the catalog knows no cycle of the domain in the period.
        SettingsError: the archive was made with other settings.
    """
    Archive(store, domain).source()  # scores of other settings do not belong on this domain's page
    cycles = _cycles(catalog, domain, start, end)
    if not cycles:
        raise NotForecast(f"no forecast of {domain.name} in the period; run `nowcast backfill {domain.name}` first")
    first, last = (tables.from_seconds(cycles[n]["reference_time"]) for n in (0, -1))
    sums = _sums(store, catalog, domain, cycles)
    score_tables = {key: files.score_table(data) for key, data in sums.items()}
    flat = [table.assign(domain=domain.name, model=key) for key, table in score_tables.items()]
    folder = out or store.report(domain.name)
    stem = f"{domain.name}_{times.compact(first)}_{times.compact(last)}"
    csv, page = folder / f"{stem}.csv", folder / f"{stem}.html"
    columns = ["domain", "model"]
    everything = pd.concat(flat, ignore_index=True) if flat else pd.DataFrame(columns=columns)
    everything = everything[columns + [c for c in everything.columns if c not in columns]]
    with store.publish(csv) as temporary:
        everything.to_csv(temporary, index=False, float_format="%.6g")
    sections = [_model_section(key, table, sums[key]) for key, table in score_tables.items()]
    case = _case(domain, store, cycles)
    with store.publish(page) as temporary:
        text = _page(domain, catalog, cycles, first, last, sections, case, now)
        temporary.write_text(text, encoding="utf-8")
    return WrittenReport(page, csv, score_tables)


def headline(table: pd.DataFrame) -> pd.DataFrame:
    """CSI on the common pixels for people: one row per lead and threshold, one column per method."""
    part = table[(table.pixel_set == "common") & table.lead_minutes.isin(_nearest_leads(table, TABLE_LEADS_MINUTES))]
    wide = part.pivot_table(
        index=["lead_minutes", "threshold_mm_h"], columns="method", values="csi", sort=False, dropna=False
    )
    return wide[list(dict.fromkeys(part.method))].sort_index()


def _nearest_leads(table: pd.DataFrame, wanted: tuple[int, ...]) -> list[int]:
    leads = np.sort(table.lead_minutes.unique())
    return sorted({int(leads[np.abs(leads - w).argmin()]) for w in wanted})


def _cycles(catalog: Catalog, domain: Domain, start: datetime | None, end: datetime | None) -> list[Row]:
    c = tables.cycles.c
    query = sa.select(tables.cycles).where(c.domain == domain.name)
    if start is not None:
        query = query.where(c.reference_time >= times.seconds(start))
    if end is not None:
        query = query.where(c.reference_time <= times.seconds(end))
    return catalog.read(query.order_by(c.reference_time, c.kind, c.revision))


def _sums(store: Store, catalog: Catalog, domain: Domain, cycles: list[Row]) -> dict[str, xr.Dataset]:
    """Sums of the cycles' reference times, per kind, model and layout (methods, leads, thresholds).

    Raises:
        StoreUnavailable: a file of sums is missing or damaged.
    """
    wanted = {(row["kind"], row["reference_time"]) for row in cycles}
    s = tables.scores.c
    found: dict[str, list[xr.Dataset]] = {}
    for row in catalog.read(sa.select(tables.scores).where(s.domain == domain.name).order_by(s.kind, s.model, s.day)):
        try:
            data = files.read(store.root / row["path"])
        except (OSError, ValueError) as err:
            raise StoreUnavailable(f"{row['path']}: {err}; remove it and run `nowcast catalog rebuild`") from err
        keep = [(row["kind"], int(t)) in wanted for t in data["reference_time"].values]
        if any(keep):
            name = f"{row['model']} ({row['kind']})"
            while name in found and not files.same_layout(found[name][0], data):
                name += ", other settings"
            found.setdefault(name, []).append(data.isel(reference_time=keep))
    joined = {
        key: xr.concat(parts, dim="reference_time", combine_attrs="override", data_vars="minimal")
        for key, parts in found.items()
    }
    return dict(sorted(joined.items(), key=lambda item: -item[1].sizes["reference_time"]))


def _case(domain: Domain, store: Store, cycles: list[Row]) -> str:
    """Maps of the fully verified forecast of the model with the most observed rain; empty if there is none."""
    archive = Archive(store, domain)
    best: tuple[float, Row] | None = None
    complete = [row for row in cycles if row["state"] == "published" and row["verified"] == "fully"]
    complete = [row for row in complete if (store.root / row["path"]).is_file()]
    by_model = [row for row in complete if row["model_checksum"]] or complete
    for row in by_model:
        middle = tables.from_seconds(row["reference_time"]) + (domain.lead_frames // 2) * domain.cadence
        frame = _observed(archive, middle)
        rain = 0.0 if frame is None else float((frame.rain > 0).mean())
        if best is None or rain > best[0]:
            best = (rain, row)
    if best is None:
        return ""
    row = best[1]
    path = store.root / row["path"]
    pixels, state, attrs = product.read_forecast(path, domain)
    leads = len(pixels)
    rates = rate_table(domain.zr, domain.scale, float(attrs["drizzle_floor_mm_h"]))
    reference = tables.from_seconds(row["reference_time"])
    steps = sorted({min(max(round(m / domain.cadence_minutes), 1), leads) - 1 for m in CASE_LEADS_MINUTES})
    covered = state[0] != NO_COVERAGE

    def forecast(frames: Pixels | None) -> list[Any]:
        if frames is None:
            return [None] * len(steps)
        return [np.where(covered, rates[frames[n]], np.nan) for n in steps]

    observed = []
    for n in steps:
        frame = _observed(archive, reference + (n + 1) * domain.cadence)
        observed.append(None if frame is None else np.where(frame.observed, rates[frame.rain], np.nan))
    rows = {"observed": observed, str(attrs["method"]): forecast(pixels)}
    for name, frames in product.read_baselines(store.baselines(path)).items():
        rows.setdefault(name, forecast(frames))
    columns = [f"+{(n + 1) * domain.cadence_minutes} min" for n in steps]
    return figures.case_maps(rows, columns, _grid(archive), f"{domain.name}, from {times.iso(reference)}")


def _observed(archive: Archive, time: datetime) -> Frame | None:
    try:
        return archive.read(time)
    except DamagedFrame:
        return None


def _grid(archive: Archive) -> Grid:
    source = archive.source()
    assert source is not None  # the case was chosen by its observed frames
    return source.grid


def _model_section(key: str, table: pd.DataFrame, data: xr.Dataset) -> dict[str, Any]:
    common = table[table.pixel_set == "common"]
    thresholds = sorted(common.threshold_mm_h.unique())
    return {
        "name": key,
        "sentences": sentences(common),
        "curves": figures.score_curves(common, "csi", thresholds, "CSI (0 to 1, best 1)"),
        "errors": figures.error_curves(common),
        "headline": headline(table),
        "coverage": float(common.coverage.mean()),
        "forecasts": int(data.sizes["reference_time"]),
    }


def sentences(common: pd.DataFrame) -> list[str]:
    """Who was best, said plainly, for two thresholds and two lead times that the table has."""
    methods = list(dict.fromkeys(common.method))
    said = []
    thresholds = [t for t in (0.5, 5.0) if t in set(common.threshold_mm_h)] or [common.threshold_mm_h.min()]
    for threshold in thresholds:
        for lead in _nearest_leads(common, (30, 60)):
            here = common[(common.threshold_mm_h == threshold) & (common.lead_minutes == lead)]
            part = here.set_index("method").csi
            if not here.pairs.any():
                said.append(
                    f"{lead} min, {threshold:g} mm/h: no pixel where {', '.join(methods)} and the observation "
                    "all have a value; nothing to compare."
                )
                continue
            if part.isna().all():
                said.append(f"{lead} min, {threshold:g} mm/h: no event was observed or forecast; nothing to measure.")
                continue
            values = ", ".join(f"{m} {_number(part[m])}" for m in methods)
            highest = [str(m) for m in methods if part[m] == part.max()]
            verdict = f"{highest[0]} is highest" if len(highest) == 1 else f"{' and '.join(highest)} are equal"
            said.append(f"{lead} min, {threshold:g} mm/h: CSI {values}; {verdict}.")
    return said


def _number(value: float) -> str:
    return "not measured" if np.isnan(value) else f"{value:.3f}"


def _page(
    domain: Domain,
    catalog: Catalog,
    cycles: list[Row],
    first: datetime,
    last: datetime,
    sections: list[dict[str, Any]],
    case: str,
    now: datetime,
) -> str:
    from jinja2 import Environment, FileSystemLoader, select_autoescape

    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(["j2"]))
    environment.filters["number"] = _number
    published = [row for row in cycles if row["state"] == "published"]
    return environment.get_template("report.html.j2").render(
        domain=domain,
        first=times.iso(first),
        last=times.iso(last),
        published=len(published),
        by_method=Counter(row["method"] for row in published),
        kinds=Counter(row["kind"] for row in published),
        fallbacks=Counter(row["reason"] for row in published if row["reason"]),
        skipped=[
            (times.iso(tables.from_seconds(row["reference_time"])), row["reason"])
            for row in cycles
            if row["state"] == "skipped"
        ],
        unverified=Counter(row["verified"] or "not yet" for row in published),
        quarantined=_quarantined(catalog, domain, first, last),
        sections=sections,
        case=case,
        floor=f"{DRIZZLE_FLOOR_MM_H:g}",
        made=times.iso(now),
        version=software_version(),
    )


def _quarantined(catalog: Catalog, domain: Domain, first: datetime, last: datetime) -> list[str]:
    v = tables.volumes.c
    inside = v.nominal_time.between(times.seconds(first), times.seconds(last + domain.horizon))
    query = sa.select(v.reason).where(v.domain == domain.name, v.state == "quarantined", inside).order_by(v.key)
    return [row["reason"] for row in catalog.read(query)]
