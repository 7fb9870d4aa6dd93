"""What a verification says, in plain sentences: how good, against what, how sure, and what got worse."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.verification.bootstrap import FEWEST_BLOCKS
from pipeline.verification.period import Verified
from pipeline.verification.rules import HEADLINE_LEADS, HEADLINE_THRESHOLDS, nearest
from pipeline.verification.tables import Estimate

# wavelengths of showers, which blur takes away first
SHOWER_KM = (4.0, 16.0)
# of the observed structure and amount of rain
MUCH_LESS, ENOUGH_RAIN = 0.5, 0.7


@dataclass(frozen=True)
class Verdict:
    """One score of two methods on the same pixels, and what may be said of the difference.

    Attributes:
        difference, low, high: of ``method`` - ``other``; the interval is NaN if there are too few hours for one.
    """

    lead_minutes: int
    threshold_mm_h: float
    method: str
    other: str
    value: float
    other_value: float
    difference: float
    low: float
    high: float
    pairs: int

    @property
    def word(self) -> str:
        """Better, worse, "no difference shown", "not measured"; without an interval higher, lower or equal."""
        if np.isnan(self.difference):
            return "not measured"
        if np.isnan(self.low):
            if round(self.difference, 3) == 0:
                return "equal"
            return "higher" if self.difference > 0 else "lower"
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "no difference shown"


def verdicts(verified: Verified, csi: Estimate, method: str, other: str) -> list[Verdict]:
    """CSI of two methods for the headline lead times and thresholds that the rules have."""
    m, n = verified.methods.index(method), verified.methods.index(other)
    value, low, high = (part[m] for part in csi.differences[other])
    made = []
    for t in nearest(verified.axes["threshold"], HEADLINE_THRESHOLDS):
        for lead in nearest(verified.axes["lead"], HEADLINE_LEADS):
            minutes, threshold = int(verified.axes["lead"][lead]), float(verified.axes["threshold"][t])
            made.append(
                Verdict(
                    minutes,
                    threshold,
                    method,
                    other,
                    value=float(csi.value[m, lead, t]),
                    other_value=float(csi.value[n, lead, t]),
                    difference=float(value[lead, t]),
                    low=float(low[lead, t]),
                    high=float(high[lead, t]),
                    pairs=int(verified.total["pairs"][m, lead, 0]),
                )
            )
    return made


def measured(value: float, form: str) -> str:
    """A number for people; NaN is not measured."""
    return "not measured" if np.isnan(value) else format(value, form)


def sentence(verdict: Verdict) -> str:
    """One comparison, said plainly."""
    v = verdict
    event = f"{v.lead_minutes} min, {v.threshold_mm_h:g} mm/h or more"
    if not v.pairs:
        return f"{event}: not measured; no pixel where {v.method}, {v.other} and the observation all have a value."
    if np.isnan(v.value) and np.isnan(v.other_value):
        return f"{event}: no event was observed or forecast; not measured."
    if np.isnan(v.difference):
        return f"{event}: not measured for {v.method if np.isnan(v.value) else v.other}."
    head = f"{event}: CSI {v.value:.2f} against {v.other_value:.2f} of {v.other}"
    size = f"{v.difference:+.3f}"
    if np.isnan(v.low):
        return f"{head}; {v.word} ({size}), but there are too few hours to tell whether by chance."
    span = f"{size} [{v.low:+.3f}, {v.high:+.3f}]"
    return f"{head}; no difference shown: {span}." if v.word == "no difference shown" else f"{head}; {v.word}: {span}."


def belief(found: list[Verdict]) -> str:
    """Which of two methods to believe, as far as the comparisons tell."""
    method, other = found[0].method, found[0].other
    better = [v for v in found if v.word == "better"]
    worse = [v for v in found if v.word == "worse"]
    known = [v for v in found if v.word != "not measured"]
    if not known:
        return f"Nothing was measured that could tell {method} from {other}."
    if any(v.word in ("higher", "lower", "equal") for v in known):
        ahead = sum(v.difference > 0 for v in known)
        return (
            f"{method} has the higher CSI in {ahead} of {len(known)} comparisons with {other}; there are too few "
            "hours to say that this is more than chance."
        )
    if better and not worse:
        return f"Believe {method} rather than {other}: better in {_of(better, known)}, worse in none."
    if worse and not better:
        return f"Believe {other} rather than {method}: {method} is worse in {_of(worse, known)}, better in none."
    if not better:
        return f"No difference between {method} and {other} is shown in any of {len(known)} comparisons."
    return (
        f"{method} is better than {other} at {_events(better)} and worse at {_events(worse)}: which to believe depends "
        "on what is asked."
    )


def _of(some: list[Verdict], everything: list[Verdict]) -> str:
    return f"{len(some)} of {len(everything)} comparisons" if len(everything) > 1 else "the one comparison"


def _events(some: list[Verdict]) -> str:
    return ", ".join(f"{v.lead_minutes} min and {v.threshold_mm_h:g} mm/h" for v in some)


def better_leads(leads: NDArray[np.integer[Any]], ahead: NDArray[np.bool_]) -> str:
    """Where a forecast is better, in words; empty if nowhere.

    Args:
        leads: minutes, rising.
        ahead: for each whether it is better.
    """
    if ahead.all():
        return "at all lead times"
    edges = np.flatnonzero(np.diff(np.concatenate(([False], ahead, [False]))))
    spans = []
    for first, end in zip(edges[::2], edges[1::2], strict=True):
        spans.append(f"at {leads[first]} min" if end == first + 1 else f"from {leads[first]} to {leads[end - 1]} min")
    return " and ".join(spans)


def about_last_frame(verified: Verified, csi: Estimate, method: str) -> list[str]:
    """At which lead times the forecast is better than doing nothing; where there is an interval it must lie above 0."""
    if "last_frame" not in verified.methods or method == "last_frame":
        return []
    t = nearest(verified.axes["threshold"], HEADLINE_THRESHOLDS[:1])[0]
    threshold = f"{verified.axes['threshold'][t]:g} mm/h"
    value, low, _ = (part[verified.methods.index(method), :, t] for part in csi.differences["last_frame"])
    known = ~np.isnan(value)
    if not known.any():
        return [f"Whether {method} is better than the last frame at {threshold} was not measured."]
    sure = "" if not np.isnan(low).all() else " (without an interval: too few hours)"
    ahead = np.where(np.isnan(low), value, low)[known] > 0
    where = better_leads(verified.axes["lead"][known], ahead)
    if not where:
        return [f"At {threshold}, {method} is at no lead time better than simply keeping the last frame{sure}."]
    return [f"At {threshold}, {method} is better than simply keeping the last frame {where}{sure}."]


def about_amount_and_blur(verified: Verified, method: str) -> list[str]:
    """Whether the forecast has as much rain as fell, and as much structure."""
    said, ratio = [], np.nan
    m = verified.methods.index(method)
    lead = verified.measured_lead("lead", HEADLINE_LEADS[-1])
    minutes = int(verified.axes["lead"][lead])
    forecast, observed = (float(verified.total[f"{k}_rain"][m, lead, 0]) for k in ("forecast", "observed"))
    if observed > 0:
        ratio = forecast / observed
        said.append(f"At {minutes} min {method} forecasts {ratio:.2f} times the rain that was observed.")
    share = shower_power(verified, method)
    if share is not None:
        at, kept = share
        beside = shower_power(verified, "last_frame") if "last_frame" in verified.methods else None
        of_last = f" (the last frame {100 * beside[1]:.0f} %)" if beside is not None and method != "last_frame" else ""
        blur = ""
        if kept < MUCH_LESS:
            # too little rain has little structure, whether it is blurred or not
            blur = (
                "; it is blurred, which lowers squared errors without any skill"
                if ratio > ENOUGH_RAIN
                else ("; it is too weak, too smooth or both, which lowers squared errors without any skill")
            )
        said.append(
            f"At {at} min it keeps {100 * kept:.0f} % of the observed structure at wavelengths of {SHOWER_KM[0]:g} to "
            f"{SHOWER_KM[1]:g} km{of_last}{blur}."
        )
    return said


def shower_power(verified: Verified, method: str) -> tuple[int, float] | None:
    """Lead time (minutes), and forecast power per observed power at the wavelengths of showers; None if none."""
    band, leads = verified.axes["band"], verified.axes["structure_lead"]
    here = (band >= SHOWER_KM[0]) & (band < SHOWER_KM[1])
    lead = verified.measured_lead("structure_lead", HEADLINE_LEADS[-1])
    truth = float(verified.total["observed_power"][lead, here].sum())
    if not truth > 0:
        return None
    power = float(verified.total["power"][verified.methods.index(method), lead, here].sum())
    return int(leads[lead]), power / truth


def about_certainty(verified: Verified) -> str:
    """How much evidence there is."""
    count, hours, blocks = len(verified.reference_times), len(verified.hours), verified.block_count
    effective = verified.effective_forecasts
    known = effective[~np.isnan(effective)]
    worth = f"; neighbours resemble each other, so they are worth about {np.median(known):.0f}" if known.size else ""
    head = f"{_number(count, 'forecast')} in {_number(hours, 'hour')}{worth}"
    length = f"{_number(verified.block_hours, 'hour')}"
    if blocks < FEWEST_BLOCKS:
        return (
            f"{head}. As long as they resemble each other they count as one: that makes {_number(blocks, 'block')} of "
            f"{length}. Fewer than {FEWEST_BLOCKS} are too few for intervals, and every difference may be chance."
        )
    return f"{head}. Intervals are of 95 %, from {blocks} blocks of {length}."


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def about_change(now: list[Verdict], before: list[Verdict], period: str) -> list[str]:
    """What became better or worse since the period before, beyond both intervals."""
    known = {(v.lead_minutes, v.threshold_mm_h): v for v in before}
    said, compared = [], 0
    for v in now:
        old = known.get((v.lead_minutes, v.threshold_mm_h))
        if old is None or np.isnan(v.low) or np.isnan(old.low):
            continue
        compared += 1
        if v.low > old.high or v.high < old.low:
            word = "grew" if v.difference > old.difference else "fell"
            said.append(
                f"Since {period} the CSI of {v.method} relative to {v.other} {word} at {v.lead_minutes} min and "
                f"{v.threshold_mm_h:g} mm/h, from {old.difference:+.3f} to {v.difference:+.3f}."
            )
    if said:
        return said
    if not before:
        return [f"There is no forecast of {period} that was verified in the same way to compare with."]
    if not compared:
        return [f"Whether anything changed since {period} cannot be told: one of the two has too few hours."]
    return [f"Nothing changed beyond chance since {period}."]
