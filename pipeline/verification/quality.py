"""How good such forecasts were lately: what each product says of itself."""

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np

from pipeline import times
from pipeline.catalog import Catalog
from pipeline.domain import Domain
from pipeline.errors import reason_of
from pipeline.storage import Store
from pipeline.verification import scores
from pipeline.verification.period import Verified, read_period
from pipeline.verification.rules import HEADLINE_LEADS, HEADLINE_THRESHOLDS, nearest
from pipeline.verification.summary import better_leads

log = logging.getLogger(__name__)

# of the compared pixels with an event, from which a forecast counts as one of rain
RAINY_SHARE = 0.01
SPANS = {"verified_skill_24h": timedelta(hours=24), "verified_skill_30d": timedelta(days=30)}


def known_quality(domain: Domain, store: Store, catalog: Catalog, model: str, time: datetime) -> dict[str, str]:
    """Attributes of a product: the skill that was verified by its reference time, of the last 24 hours and 30 days.

    A verification that cannot be read never harms a forecast; the attribute then says so.

    Args:
        model: what made the product, see ``compared.model_key``.
        time: nothing observed later is known.
    """
    found = {}
    for name, span in SPANS.items():
        try:
            verified = read_period(store, catalog, domain, time - span, time, known_by=time, made_by=model)
            own = [one for one in verified if one.kind != "external"]
            said = _said(own[0], time) if own else f"not measured: no forecast of {model} was verified in this time"
        except Exception as err:
            log.warning("%s of %s: %s", name, domain.name, reason_of(err))
            said = "not measured: the scores cannot be read"
        found[name] = said
    return found


@dataclass(frozen=True)
class Skill:
    """Critical success index of forecasts, and of the first method beside them, on the common pixels.

    Attributes:
        rainy: forecasts with observed rain in at least ``RAINY_SHARE`` of the pairs; the index of others means little.
    """

    csi: float
    other: str
    csi_other: float
    rainy: int
    lead_minutes: int
    threshold_mm_h: float


def lately_and_before(
    domain: Domain, store: Store, catalog: Catalog, now: datetime
) -> tuple[Skill | None, Skill | None]:
    """Skill of the issued forecasts of the last 24 hours, and of 30 days, both of the model that made most in the day.

    None where none was verified.

    Raises:
        StoreUnavailable: a file of sums is missing or damaged.
    """
    day_span, month_span = SPANS.values()
    issued = [one for one in read_period(store, catalog, domain, now - day_span, now) if one.kind == "issued"]
    if not issued:
        return None, None
    day = issued[0]
    month = read_period(store, catalog, domain, now - month_span, now, made_by=day.made_by)
    same = [one for one in month if (one.kind, one.model, one.methods) == (day.kind, day.model, day.methods)]
    return _skill(day), _skill(same[0]) if same else None


def _skill(verified: Verified) -> Skill:
    lead = verified.measured_lead("lead", HEADLINE_LEADS[-1])
    t = nearest(verified.axes["threshold"], HEADLINE_THRESHOLDS[:1])[0]
    value = scores.csi(*(verified.total[name][:2, lead, t, 0] for name in ("hits", "misses", "false_alarms")))
    events = verified.each["hits"][:, 0, lead, t] + verified.each["misses"][:, 0, lead, t]
    rainy = (events > 0) & (events >= RAINY_SHARE * verified.each["pairs"][:, 0, lead])
    return Skill(
        csi=float(value[0]),
        other=verified.methods[1],
        csi_other=float(value[1]),
        rainy=int(rainy.sum()),
        lead_minutes=int(verified.axes["lead"][lead]),
        threshold_mm_h=float(verified.axes["threshold"][t]),
    )


def _said(verified: Verified, time: datetime) -> str:
    leads, total = verified.axes["lead"], verified.total
    t = nearest(verified.axes["threshold"], HEADLINE_THRESHOLDS[:1])[0]
    value = scores.csi(*(total[name][:, :, t, 0] for name in ("hits", "misses", "false_alarms")))
    method, other = verified.methods[:2]
    parts = []
    for lead in nearest(leads, HEADLINE_LEADS):
        if np.isnan(value[:2, lead]).any():
            parts.append(f"{leads[lead]} min not measured")
        else:
            parts.append(f"{leads[lead]} min {value[0, lead]:.2f} against {value[1, lead]:.2f} of {other}")
    if "last_frame" in verified.methods[1:]:
        gain = value[0] - value[verified.methods.index("last_frame")]
        measured = ~np.isnan(gain)
        where = better_leads(leads[measured], gain[measured] > 0) if measured.any() else ""
        parts.append(f"better than the last frame {where}" if where else "nowhere better than the last frame")
    count, kind = int(total["observed"].max()), verified.kind
    threshold = f"{verified.axes['threshold'][t]:g} mm/h"
    head = f"CSI of {method} at {threshold}, {count} {kind} forecasts known by {times.iso(time)}, without intervals: "
    return head + "; ".join(parts)
