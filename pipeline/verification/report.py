"""The verification report: one self-contained HTML page, and every score as CSV beside it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import sqlalchemy as sa

from pipeline import catalog as tables
from pipeline import times
from pipeline.catalog import Catalog, Row
from pipeline.domain import Domain
from pipeline.errors import NotForecast, SettingsError
from pipeline.frames.archive import Archive
from pipeline.storage import Store
from pipeline.verification import events, figures, summary
from pipeline.verification.cases import Case, cases
from pipeline.verification.pairs import PIXEL_SETS
from pipeline.verification.period import Verified, read_period
from pipeline.verification.rules import Rules, nearest, rules_of, rules_text
from pipeline.verification.tables import COLUMNS, Estimate, estimates, score_table
from pipeline.version import software_version

TABLE_LEADS_MINUTES = (10, 30, 60, 120)
FIELD_FIGURES = ("mae", "mse", "rain_mse", "correlation", "rain_ratio")
SEED = 0


@dataclass(frozen=True)
class WrittenReport:
    """Where the report lies, and the scores behind it.

    Attributes:
        summary: its sentences.
        tables: name -> score table over the whole period.
    """

    page: Path
    scores: Path
    summary: list[str]
    tables: dict[str, pd.DataFrame]


def write_report(
    domain: Domain,
    store: Store,
    catalog: Catalog,
    start: datetime | None,
    end: datetime | None,
    out: Path | None,
    now: datetime,
    pair: tuple[str, str] | None = None,
) -> WrittenReport:
    """Write ``DOMAIN_START_END.html`` and ``.csv``; without times over all that the catalog knows.

    Args:
        pair: the two methods that the summary compares; default: the forecast and optical flow.

    Raises:
        NotForecast: the catalog knows no cycle of the domain in the period.
        SettingsError: the archive was made with other settings, or no scores are of both methods of the pair.
    """
    source = Archive(store, domain).source()  # scores of other settings do not belong on this domain's page
    cycles = _cycles(catalog, domain, start, end)
    if not cycles:
        span = " to ".join(times.iso(t) if t else "now" for t in (start or times.EPOCH, end))
        raise NotForecast(
            f"no forecast of {domain.name} in the period {span}; `nowcast backfill {domain.name}` makes some"
        )
    first, last = (tables.from_seconds(cycles[n]["reference_time"]) for n in (0, -1))
    unreadable: list[str] = []
    found = read_period(store, catalog, domain, first, last, unreadable=unreadable)
    if pair is not None:
        found = _with_pair(found, pair, domain)
    start, end = start or first, end or last
    span_before = (start - (end - start) - domain.cadence, start - domain.cadence)
    before = read_period(store, catalog, domain, *span_before, unreadable=[])
    folder = out or store.report(domain.name)
    stem = f"{domain.name}_{times.compact(first)}_{times.compact(last)}" + (
        "" if pair is None else "_" + "_".join(pair)
    )
    csv, page = folder / f"{stem}.csv", folder / f"{stem}.html"
    estimated = [{pixel_set: estimates(one, pixel_set, SEED) for pixel_set in PIXEL_SETS} for one in found]
    score_tables = {one.name: score_table(one, of_both) for one, of_both in zip(found, estimated, strict=True)}
    everything = pd.concat(score_tables.values(), ignore_index=True) if found else pd.DataFrame(columns=list(COLUMNS))
    everything.insert(0, "domain", domain.name)
    with store.publish(csv) as temporary:
        everything.to_csv(temporary, index=False, float_format="%.6g")
    of_places = events.place_table(domain, found)
    if len(of_places):
        with store.publish(csv.with_name(f"{stem}_places.csv")) as temporary:
            of_places.to_csv(temporary, index=False, float_format="%.6g")
    span = f"the period before ({times.iso(start - (end - start) - domain.cadence)} to {times.iso(start)})"
    sections = [
        _section(domain, one, of_both, before, span, pair, whole=one is found[0])
        for one, of_both in zip(found, estimated, strict=True)
    ]
    said = _issued(domain, cycles) + (sections[0]["summary"] if sections else [])
    shown = cases(domain, store, catalog, found[0]) if found else []
    rules = None if source is None else rules_of(domain, source)
    said += [f"Some scores are left out: {problem}." for problem in unreadable]
    text = _page(domain, catalog, cycles, (first, last), said, sections, shown, rules, now)
    with store.publish(page) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return WrittenReport(page, csv, said, score_tables)


def headline(table: pd.DataFrame) -> pd.DataFrame:
    """CSI on the common pixels for people: one row per lead and threshold, one column per method."""
    part = table[(table.pixel_set == "common") & (table.score == "csi") & (table.versus == "")]
    leads = np.sort(part.lead_minutes.unique())
    part = part[part.lead_minutes.isin(leads[nearest(leads, TABLE_LEADS_MINUTES)])]
    wide = part.pivot_table(
        index=["lead_minutes", "threshold_mm_h"], columns="method", values="value", sort=False, dropna=False
    )
    return wide[list(dict.fromkeys(part.method))].sort_index()


def _with_pair(found: Sequence[Verified], pair: tuple[str, str], domain: Domain) -> list[Verified]:
    if pair[0] == pair[1]:
        raise SettingsError(f"the two methods to compare are the same, {pair[0]!r}")
    both = [one for one in found if set(pair) <= set(one.methods)]
    if not both:
        known = "; ".join(f"{one.name}: {', '.join(one.methods)}" for one in found) or "nothing verified"
        raise SettingsError(
            f"no scores of {pair[0]!r} and {pair[1]!r} on the same pixels for {domain.name} in the period; "
            f"there are {known}"
        )
    return both


def _cycles(catalog: Catalog, domain: Domain, start: datetime | None, end: datetime | None) -> list[Row]:
    c = tables.cycles.c
    query = sa.select(tables.cycles).where(c.domain == domain.name)
    if start is not None:
        query = query.where(c.reference_time >= times.seconds(start))
    if end is not None:
        query = query.where(c.reference_time <= times.seconds(end))
    return catalog.read(query.order_by(c.reference_time, c.kind, c.revision))


def _issued(domain: Domain, cycles: list[Row]) -> list[str]:
    """What was issued, and how much of it could be verified."""
    published = [row for row in cycles if row["state"] == "published"]
    kinds = Counter(row["kind"] for row in published)
    by = Counter(row["method"] for row in published)
    skipped = len(cycles) - len(published)
    fallbacks = sum(1 for row in published if row["reason"])
    said = "1 forecast was published" if len(published) == 1 else f"{len(published)} forecasts were published"
    if published:
        said += f" ({_listed(kinds)}): {', '.join(f'{n} by {method}' for method, n in by.most_common())}"
    said += f"; {skipped} cycles issued none" * bool(skipped)
    said += f"; {fallbacks} are not by the model {domain.model_name} but by a fallback" * bool(fallbacks)
    verified = Counter(row["verified"] or "not yet" for row in published)
    return [said + ".", f"Verified: {_listed(verified)}."] if published else [said + "."]


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{n} {name}" for name, n in counts.most_common())


def _section(
    domain: Domain,
    one: Verified,
    of_both: dict[str, list[Estimate]],
    before: list[Verified],
    span: str,
    pair: tuple[str, str] | None,
    whole: bool,
) -> dict[str, Any]:
    """What the page says of one set of forecasts; all figures only if ``whole``."""
    found, of_all = ({e.score: e for e in of_both[pixel_set]} for pixel_set in PIXEL_SETS)
    method, other = pair or (one.methods[0], one.methods[1])
    compared = summary.verdicts(one, found["csi"], method, other)
    said = [summary.belief(compared), *map(summary.sentence, compared)]
    said += summary.about_last_frame(one, found["csi"], method)
    said += summary.about_amount_and_blur(one, method)
    if whole:
        said += summary.about_change(compared, _before(one, before, method, other), span)
    said.append(summary.about_certainty(one))
    return {
        "name": one.name,
        "methods": one.methods,
        "summary": said,
        "figures": _figures(one, found, whole),
        "tables": [
            ("Common pixels: observation and every method have a value", csi_rows(one, found["csi"])),
            ("All observed pixels: a missing forecast counts as dry", csi_rows(one, of_all["csi"])),
        ],
        "counted": _counted(one),
        "forecasts": len(one.reference_times),
        "whole": whole,
        "warnings": [events.warning_row(score) for score in events.warning_scores(domain, one)],
        "onsets": [events.onset_row(score) for score in events.onset_scores(one)],
    }


def _before(one: Verified, before: list[Verified], method: str, other: str) -> list[summary.Verdict]:
    same = [b for b in before if b.model == one.model and b.kind == one.kind and {method, other} <= set(b.methods)]
    if not same:
        return []
    csi = next(e for e in estimates(same[0], "common", SEED) if e.score == "csi")
    return summary.verdicts(same[0], csi, method, other)


def _figures(one: Verified, found: dict[str, Estimate], whole: bool) -> list[tuple[str, str, str]]:
    """Title, caption and picture of each figure."""
    shade = "" if np.isnan(found["csi"].low).all() else "Shaded: 95 % intervals."
    made = [
        ("Critical success index against lead time", shade, figures.against_lead(found["csi"], one, "CSI (best 1)")),
    ]
    if not whole:
        return made
    made += [
        (
            "Performance diagram",
            "Upper right is best. Grey curves: CSI; dotted lines: frequency bias 0.5, 1 and 2. Numbers: mm/h.",
            figures.performance_diagram(found, one),
        ),
        (
            "Frequency bias",
            f"1 is best; what is above 3 is cut off. {shade}",
            figures.against_lead(found["bias"], one, "frequency bias"),
        ),
        (
            "Fractions skill score by scale",
            f"How good if rain may be displaced within the neighbourhood. {shade}",
            figures.fss_by_scale(found["fss"], one),
        ),
        (
            "Spectra: structure that is left",
            "Power relative to the observation; below 1 the forecast is smoother. Grey: showers, 4 to 16 km.",
            figures.spectra(one),
        ),
    ]
    made.append(("Errors, correlation and amount of rain", shade, figures.errors(found, one, FIELD_FIGURES)))
    if "bin_pairs" in one.by_hour:
        text = "Left: on the diagonal a probability means what it says. Right: ROC, upper left is best."
        made.append(("Reliability of probabilities", text, figures.reliability(one)))
    return made


def csi_rows(one: Verified, csi: Estimate) -> list[dict[str, Any]]:
    """Rows of the table of CSI: lead time, threshold, and of each method value, interval and whether it is best."""
    rows = []
    for lead in nearest(one.axes["lead"], TABLE_LEADS_MINUTES):
        for t, threshold in enumerate(one.axes["threshold"]):
            values = csi.value[:, lead, t]
            best = np.nan if np.isnan(values).all() else np.nanmax(values)
            cells = [
                (
                    summary.measured(values[m], ".3f"),
                    _span(csi.low[m, lead, t], csi.high[m, lead, t]),
                    bool(values[m] == best),
                )
                for m in range(len(one.methods))
            ]
            rows.append({"lead": int(one.axes["lead"][lead]), "threshold": f"{threshold:g}", "cells": cells})
    return rows


def _counted(one: Verified) -> list[tuple[str, ...]]:
    """Per lead time: forecasts, independent ones, pairs of both sets, share of the common ones."""
    pairs, coverage, effective = one.total["pairs"][0], one.coverage(), one.effective_forecasts
    return [
        (
            f"{one.axes['lead'][n]}",
            f"{one.total['observed'][n]}",
            summary.measured(effective[n], ".0f"),
            f"{int(pairs[n, 0]):,}",
            f"{int(pairs[n, 1]):,}",
            summary.measured(coverage[n], ".1%"),
        )
        for n in nearest(one.axes["lead"], TABLE_LEADS_MINUTES)
    ]


def _span(low: float, high: float) -> str:
    return "" if np.isnan(low) else f"[{low:.2f}, {high:.2f}]"


def _page(
    domain: Domain,
    catalog: Catalog,
    cycles: list[Row],
    period: tuple[datetime, datetime],
    said: list[str],
    sections: list[dict[str, Any]],
    shown: list[Case],
    rules: Rules | None,
    now: datetime,
) -> str:
    from jinja2 import Environment, FileSystemLoader, select_autoescape

    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(["j2"]))
    published = [row for row in cycles if row["state"] == "published"]
    first, last = period
    return environment.get_template("report.html.j2").render(
        domain=domain,
        first=times.iso(first),
        last=times.iso(last),
        said=said,
        published=len(published),
        fallbacks=Counter(row["reason"] for row in published if row["reason"]),
        skipped=[(_when(row), row["reason"]) for row in cycles if row["state"] == "skipped"],
        unverified=[
            (_when(row), row["kind"], row["verified"] or "not yet", row["verified_reason"] or "not asked for yet")
            for row in published
            if row["verified"] != "fully"
        ],
        quarantined=_quarantined(catalog, domain, first, last + domain.horizon),
        sections=sections,
        cases=shown,
        rules=[] if rules is None else rules_text(domain, rules, SEED),
        made=times.iso(now),
        version=software_version(),
    )


def _when(row: Row) -> str:
    return times.iso(tables.from_seconds(row["reference_time"]))


def _quarantined(catalog: Catalog, domain: Domain, first: datetime, last: datetime) -> list[str]:
    v = tables.volumes.c
    inside = v.nominal_time.between(times.seconds(first), times.seconds(last))
    query = sa.select(v.reason).where(v.domain == domain.name, v.state == "quarantined", inside).order_by(v.key)
    return [row["reason"] for row in catalog.read(query)]


def last_whole(period: str, now: datetime) -> tuple[datetime, datetime]:
    """The last day, week (from Monday) or month that is over, UTC, both ends included."""
    today = times.day_of(now)
    if period == "day":
        start, end = today - timedelta(days=1), today
    elif period == "week":
        end = today - timedelta(days=today.weekday())
        start = end - timedelta(days=7)
    else:
        end = today.replace(day=1)
        start = (end - timedelta(days=1)).replace(day=1)
    return start, end - timedelta(seconds=1)
