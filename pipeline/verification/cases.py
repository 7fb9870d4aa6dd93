"""The best and the worst forecast of a period as maps: observed, forecast, optical flow, difference."""

import logging
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from pipeline import catalog as tables
from pipeline import product, times
from pipeline.catalog import Catalog, Row
from pipeline.domain import Domain
from pipeline.errors import DamagedFrame
from pipeline.frames.archive import Archive
from pipeline.frames.grayscale import NO_COVERAGE, Pixels, rate_table
from pipeline.storage import Store
from pipeline.verification import figures, scores
from pipeline.verification.compared import BASELINES
from pipeline.verification.period import Verified
from pipeline.verification.rules import HEADLINE_LEADS, HEADLINE_THRESHOLDS, nearest

log = logging.getLogger(__name__)

# a case needs at least this share of the pairs to be events, observed or forecast
SMALLEST_SHARE = 0.01


@dataclass(frozen=True)
class Case:
    """One forecast that is shown.

    Attributes:
        title: which, and why it was chosen.
        text: what the picture shows, for those who cannot see it.
        picture: PNG as a data URI; empty if the products are lost, or are not ours.
    """

    title: str
    text: str
    picture: str


def cases(domain: Domain, store: Store, catalog: Catalog, verified: Verified) -> list[Case]:
    """Best and worst forecast by CSI at the headline lead time and lowest headline threshold.

    Chosen among those with an event in at least a hundredth of the pairs; fewer than two of them give fewer cases.
    """
    lead = verified.measured_lead("lead", HEADLINE_LEADS[-1])
    at = nearest(verified.axes["threshold"], HEADLINE_THRESHOLDS[:1])[0]
    h, m, f = (verified.each[name][:, 0, lead, at].astype(np.float64) for name in ("hits", "misses", "false_alarms"))
    pairs = verified.each["pairs"][:, 0, lead]
    csi = scores.csi(h, m, f)
    enough = np.flatnonzero((pairs > 0) & (h + m + f >= SMALLEST_SHARE * np.maximum(pairs, 1)) & ~np.isnan(csi))
    if not enough.size:
        return []
    chosen = {"Best": int(enough[csi[enough].argmax()]), "Worst": int(enough[csi[enough].argmin()])}
    if len(set(chosen.values())) == 1:
        chosen = {"The only": chosen["Best"]}
    what = f"CSI at {verified.axes['lead'][lead]} min and {verified.axes['threshold'][at]:g} mm/h"
    found = []
    for word, n in chosen.items():
        time = tables.from_seconds(int(verified.reference_times[n]))
        title = f"{word} forecast: {times.iso(time)}, {what} {csi[n]:.2f}"
        try:
            picture = _picture(domain, store, catalog, verified, time)
        except (OSError, ValueError, KeyError) as err:
            log.warning("no maps of %s: %s", times.iso(time), err)
            picture = ""
        found.append(Case(title, f"Maps of observed and forecast rain, {title}", picture))
    return found


def _picture(domain: Domain, store: Store, catalog: Catalog, verified: Verified, time: datetime) -> str:
    row = _row(domain, catalog, verified, time)
    if row is None or not store.has(store.root / row["path"]):
        return ""
    archive = Archive(store, domain)
    source = archive.source()
    assert source is not None  # its frames have been scored
    path = store.get(store.root / row["path"])
    pixels, state, attrs = product.read_forecast(path, domain)
    baselines = product.read_baselines(store.get(store.baselines(path)))
    rates = rate_table(domain.zr, domain.scale, float(attrs["drizzle_floor_mm_h"]))
    covered = state[0] != NO_COVERAGE
    # beside the forecast goes optical flow, or the last frame if that is the forecast
    other = next(name for name in BASELINES if name != attrs["method"])

    def field(frames: Pixels | None, lead: int) -> NDArray[np.floating[Any]] | None:
        return None if frames is None else np.where(covered, rates[frames[lead]], np.nan)

    lines = {}
    for lead in nearest(verified.axes["lead"], HEADLINE_LEADS):
        observed = _observed(archive, time + (lead + 1) * domain.cadence, rates)
        forecast = field(pixels, lead)
        difference = None if observed is None or forecast is None else forecast - observed
        lines[f"+{verified.axes['lead'][lead]} min"] = [observed, forecast, field(baselines[other], lead), difference]
    columns = ["observed", str(attrs["method"]), other, f"{attrs['method']} - observed"]
    return figures.case_maps(lines, columns, source.grid)


def _row(domain: Domain, catalog: Catalog, verified: Verified, time: datetime) -> Row | None:
    c = tables.cycles.c
    query = sa.select(tables.cycles).where(
        c.domain == domain.name, c.reference_time == times.seconds(time), c.state == "published", c.revision == 1
    )
    rows = catalog.read(query)
    own = [row for row in rows if row["kind"] == verified.kind and row["method"] == verified.methods[0]]
    return own[0] if own else None


def _observed(archive: Archive, time: datetime, rates: NDArray[np.float32]) -> NDArray[np.floating[Any]] | None:
    try:
        frame = archive.read(time)
    except DamagedFrame:
        return None
    return None if frame is None else np.where(frame.observed, rates[frame.rain], np.nan)
