"""What a verification says, in plain sentences: how good, against what, how sure, and what got worse."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.verification.bootstrap import FEWEST_BLOCKS
from pipeline.verification.period import Verified
from pipeline.verification.scores import Scores
from pipeline.verification.tables import Estimate

HEADLINE_LEADS = (30, 60)
HEADLINE_THRESHOLDS = (0.5, 5.0)
# wavelengths of showers, which blur takes away first
SHOWER_KM = (4.0, 16.0)


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


def nearest(values: NDArray[np.number], wanted: tuple[float, ...]) -> list[int]:  # type: ignore[type-arg]
    """Index of the value nearest to each wanted one, each once, in order."""
    return sorted({int(np.abs(np.asarray(values, np.float64) - one).argmin()) for one in wanted})


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
    measured = [v for v in found if v.word != "not measured"]
    if not measured:
        return f"Nothing was measured that could tell {method} from {other}."
    if any(v.word in ("higher", "lower", "equal") for v in measured):
        ahead = sum(v.difference > 0 for v in measured)
        return (
            f"{method} has the higher CSI in {ahead} of {len(measured)} comparisons with {other}; there are too few "
            "hours to say that this is more than chance."
        )
    if better and not worse:
        return f"Believe {method} rather than {other}: better in {_of(better, measured)}, worse in none."
    if worse and not better:
        return f"Believe {other} rather than {method}: {method} is worse in {_of(worse, measured)}, better in none."
    if not better:
        return f"No difference between {method} and {other} is shown in any of {len(measured)} comparisons."
    return (
        f"{method} is better than {other} at {_events(better)} and worse at {_events(worse)}: which to believe depends "
        "on what is asked."
    )


def _of(some: list[Verdict], everything: list[Verdict]) -> str:
    return f"{len(some)} of {len(everything)} comparisons" if len(everything) > 1 else "the one comparison"


def _events(some: list[Verdict]) -> str:
    return ", ".join(f"{v.lead_minutes} min and {v.threshold_mm_h:g} mm/h" for v in some)


def useful_until(verified: Verified, csi: Estimate, method: str, other: str, threshold: int) -> int | None:
    """The last lead time in minutes up to which ``method`` has a higher CSI than ``other`` at every lead time.

    Where there is an interval, it must lie above 0. None if nothing was measured; 0 if it is not even at the first.
    """
    value, low, _ = (part[verified.methods.index(method), :, threshold] for part in csi.differences[other])
    if np.isnan(value).all():
        return None
    ahead = np.where(np.isnan(low), value, low) > 0
    count = len(ahead) if ahead.all() else int(np.argmin(ahead))
    return int(verified.axes["lead"][count - 1]) if count else 0


def about_last_frame(verified: Verified, csi: Estimate, method: str) -> list[str]:
    """Up to when the forecast is better than doing nothing."""
    if "last_frame" not in verified.methods or method == "last_frame":
        return []
    t = nearest(verified.axes["threshold"], HEADLINE_THRESHOLDS[:1])[0]
    threshold = f"{verified.axes['threshold'][t]:g} mm/h"
    until = useful_until(verified, csi, method, "last_frame", t)
    sure = "" if not np.isnan(csi.low).all() else " (without an interval: too few hours)"
    if until is None:
        return [f"Whether {method} is better than the last frame at {threshold} was not measured."]
    if until == 0:
        return [f"{method} is not better than simply keeping the last frame at {threshold}, at no lead time{sure}."]
    end = "all lead times" if until == verified.axes["lead"][-1] else f"lead times up to {until} min"
    return [f"At {threshold}, {method} is better than simply keeping the last frame at {end}{sure}."]


def about_amount_and_blur(verified: Verified, method: str) -> list[str]:
    """Whether the forecast has as much rain as fell, and as much structure."""
    said = []
    m = verified.methods.index(method)
    lead = nearest(verified.axes["lead"], HEADLINE_LEADS[-1:])[0]
    minutes = int(verified.axes["lead"][lead])
    forecast, observed = (float(verified.total[f"{k}_rain"][m, lead, 0]) for k in ("forecast", "observed"))
    if observed > 0:
        said.append(f"At {minutes} min {method} forecasts {forecast / observed:.2f} times the rain that was observed.")
    share = shower_power(verified, method)
    if share is not None:
        at, kept = share
        beside = shower_power(verified, "last_frame") if "last_frame" in verified.methods else None
        of_last = f" (the last frame {100 * beside[1]:.0f} %)" if beside is not None and method != "last_frame" else ""
        blur = "; it is blurred, which lowers squared errors without any skill" if kept < 0.5 else ""
        said.append(
            f"At {at} min it keeps {100 * kept:.0f} % of the observed structure at wavelengths of {SHOWER_KM[0]:g} to "
            f"{SHOWER_KM[1]:g} km{of_last}{blur}."
        )
    return said


def shower_power(verified: Verified, method: str) -> tuple[int, float] | None:
    """Lead time (minutes), and forecast power per observed power at the wavelengths of showers; None if none."""
    band, leads = verified.axes["band"], verified.axes["structure_lead"]
    here = (band >= SHOWER_KM[0]) & (band < SHOWER_KM[1])
    lead = nearest(leads, HEADLINE_LEADS[-1:])[0]
    truth = float(verified.total["observed_power"][lead, here].sum())
    if not truth > 0:
        return None
    power = float(verified.total["power"][verified.methods.index(method), lead, here].sum())
    return int(leads[lead]), power / truth


def about_certainty(verified: Verified, effective: Scores) -> str:
    """How much evidence there is."""
    count, hours = len(verified.reference_times), verified.block_count
    known = effective[~np.isnan(effective)]
    worth = f"; neighbours resemble each other, so they are worth about {np.median(known):.0f}" if known.size else ""
    if hours < FEWEST_BLOCKS:
        return (
            f"{count} forecasts within {hours} different hours{worth}: fewer than {FEWEST_BLOCKS} hours are too few "
            "for intervals, and every difference may be chance."
        )
    return f"{count} forecasts in {hours} different hours{worth}. Intervals are of 95 %, by drawing whole hours."


def about_change(now: list[Verdict], before: list[Verdict], period: str) -> list[str]:
    """What became better or worse since the period before, beyond both intervals."""
    known = {(v.lead_minutes, v.threshold_mm_h): v for v in before}
    said = []
    for v in now:
        old = known.get((v.lead_minutes, v.threshold_mm_h))
        if old is None or np.isnan(v.difference) or np.isnan(old.difference):
            continue
        change = v.difference - old.difference
        separate = v.low > old.high or v.high < old.low  # False where an interval is NaN
        if separate:
            word = "grew" if change > 0 else "fell"
            said.append(
                f"Since {period} the CSI of {v.method} relative to {v.other} {word} at {v.lead_minutes} min and "
                f"{v.threshold_mm_h:g} mm/h, from {old.difference:+.3f} to {v.difference:+.3f}."
            )
    if said:
        return said
    if not before:
        return [f"There is no verified forecast of {period} to compare with."]
    return [f"Nothing changed beyond chance since {period}."]
