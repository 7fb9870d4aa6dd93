"""The written rule: when a challenger takes the place of the model in use. Nothing is read or changed here."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.retrain.evaluation import Evidence
from pipeline.retrain.settings import Retrain
from pipeline.verification import bootstrap, scores
from pipeline.verification.period import Verified
from pipeline.verification.quality import RAINY_SHARE
from pipeline.verification.rules import HEADLINE_LEADS, nearest
from pipeline.verification.scores import Sums

# the headline score is the mean CSI of these, mm/h, at the headline lead times
HEADLINE_RATES = (0.5, 2.0)
SEED = 0
# cells of observed rain; of fewer the CSI says little
FEWEST_EVENTS = 1000
EVENTS = ("hits", "misses", "false_alarms")
BETTER, REJECTED, NO_EVIDENCE = "better", "rejected", "not enough evidence"


@dataclass(frozen=True)
class Check:
    """One condition of the rule.

    Attributes:
        holds: None where it cannot be told.
        text: what was found, with numbers.
    """

    name: str
    holds: bool | None
    text: str


@dataclass(frozen=True)
class Verdict:
    """What the rule says: better, rejected, or not enough evidence. Only the first changes anything."""

    state: str
    reason: str
    checks: tuple[Check, ...]


def decide(evidence: Evidence | None, chosen: Retrain, seconds: float | None = None) -> Verdict:
    """Apply the rule.

    A challenger that fails a condition is rejected, however little evidence there is: the model in use stays anyway.

    Args:
        evidence: None if no time of the deciding period could be scored.
        seconds: of a forecast in operation, where that was seen; else as in the evaluation.
    """
    if evidence is None:
        text = "no time of the deciding period has whole input with rain"
        return Verdict(NO_EVIDENCE, text, (Check("wet spells", False, text),))
    verified = evidence.verified
    if evidence.failures:
        text = f"{len(evidence.failures)} forecasts of the challenger failed, the first: {evidence.failures[0]}"
        return Verdict(REJECTED, text, (Check("forecasts", False, text),))
    if evidence.absences or verified is None:
        text = f"{len(evidence.absences)} forecasts of the model in use failed, the first: {evidence.absences[0]}"
        return Verdict(NO_EVIDENCE, text, (Check("forecasts", False, text),))
    checks = (
        _forecast_time(evidence, chosen, seconds),
        _thresholds(verified, chosen),
        _calibration(verified, evidence.in_use, chosen),
        _wet_spells(verified, chosen),
        _headline(verified, chosen),
    )
    failed = [check for check in checks[:3] if check.holds is False]
    if failed:
        return Verdict(REJECTED, failed[0].text, checks)
    if not checks[3].holds:
        return Verdict(NO_EVIDENCE, checks[3].text, checks)
    return Verdict(BETTER if checks[4].holds else REJECTED, checks[4].text, checks)


def headline(verified: Verified, sums: Sums) -> NDArray[np.float64]:
    """Mean CSI of each method at the headline lead times and rates, (..., method)."""
    leads = nearest(verified.axes["lead"], HEADLINE_LEADS)
    rates = nearest(verified.axes["threshold"], HEADLINE_RATES)
    value = scores.csi(*(sums[name][..., 0] for name in EVENTS))
    return np.asarray(value[..., leads, :][..., rates].mean(axis=(-2, -1)))


def wet_blocks(verified: Verified) -> int:
    """Blocks, as long as forecasts resemble each other, in which it rained on a hundredth of the pixels or more."""
    lead = nearest(verified.axes["lead"], HEADLINE_LEADS)[0]
    hits, misses = (np.asarray(verified.blocks[name])[:, 0, lead, 0, 0] for name in ("hits", "misses"))
    pairs = np.asarray(verified.blocks["pairs"])[:, 0, lead, 0]
    return int(((hits + misses >= RAINY_SHARE * pairs) & (pairs > 0)).sum())


def _headline(verified: Verified, chosen: Retrain) -> Check:
    total = headline(verified, verified.total)
    difference = total[0] - total[1]
    level = f"{chosen.confidence:.0%}"
    said = f"mean CSI {total[0]:.3f} against {total[1]:.3f} of {verified.methods[1]}: {difference:+.4f}"
    if verified.block_count < bootstrap.FEWEST_BLOCKS or not np.isfinite(difference):
        return Check("headline score", None, f"{said}, too few blocks for an interval")
    weights = bootstrap.draws(verified.block_count, SEED)
    drawn = bootstrap.resampled({name: verified.blocks[name] for name in EVENTS}, weights)
    samples = headline(verified, drawn)
    low, high = bootstrap.interval(
        samples[:, 0] - samples[:, 1], np.asarray(difference), verified.block_count, chosen.confidence
    )
    found = f"{said} [{low:+.4f}, {high:+.4f}] ({level})"
    if low > 0:
        return Check("headline score", True, f"better: {found}")
    return Check("headline score", False, f"{'worse' if high < 0 else 'not shown to be better'}: {found}")


def _thresholds(verified: Verified, chosen: Retrain) -> Check:
    value = scores.csi(*(verified.total[name][..., 0] for name in EVENTS))
    leads = nearest(verified.axes["lead"], HEADLINE_LEADS)
    events = (verified.total["hits"] + verified.total["misses"])[0, ..., 0]
    difference = np.where(events >= FEWEST_EVENTS, value[0] - value[1], np.nan)[leads]
    if np.isnan(difference).all():
        return Check("every threshold", None, f"no threshold with {FEWEST_EVENTS} cells of observed rain")
    lead, rate = np.unravel_index(np.nanargmin(difference), difference.shape)
    worst = float(difference[lead, rate])
    where = f"{verified.axes['threshold'][rate]:g} mm/h and {verified.axes['lead'][leads[lead]]} min"
    said = f"the CSI at {where} differs by {worst:+.4f}, the worst of all; {-chosen.margin:+.4f} is allowed"
    return Check("every threshold", worst >= -chosen.margin, said)


def _calibration(verified: Verified, in_use: Verified | None, chosen: Retrain) -> Check:
    own = unreliability(verified)
    other = None if in_use is None else unreliability(in_use)
    if own is None:
        if other is None:
            return Check("calibration", None, "neither gives probabilities")
        return Check("calibration", False, "the challenger gives no probabilities, the model in use does")
    if other is None:
        return Check("calibration", None, f"unreliability {own:.3f}; the model in use gives no probabilities")
    said = f"unreliability {own:.3f} against {other:.3f}; {chosen.calibration_margin:g} more is allowed"
    return Check("calibration", own <= other + chosen.calibration_margin, said)


def unreliability(verified: Verified) -> float | None:
    """Mean over thresholds, at the headline lead times, of the reliability term of the Brier score.

    Each as a share of the event's variance; 0 is best (Murphy 1973). None without probabilities or events.
    """
    if "bin_pairs" not in verified.total:
        return None
    leads = nearest(verified.axes["structure_lead"], HEADLINE_LEADS)
    pairs, said, events = (
        np.asarray(verified.total[name], np.float64)[leads][..., 0]
        for name in ("bin_pairs", "bin_probability", "bin_events")
    )
    term = (np.where(pairs > 0, (said - events) ** 2 / np.maximum(pairs, 1), 0.0)).sum(axis=-1) / pairs.sum(axis=-1)
    rate = events.sum(axis=-1) / pairs.sum(axis=-1)
    variance = rate * (1 - rate)
    known = variance > 0
    return float((term[known] / variance[known]).mean()) if known.any() else None


def _forecast_time(evidence: Evidence, chosen: Retrain, seconds: float | None) -> Check:
    found = float(np.median(evidence.seconds)) if seconds is None else seconds
    return Check("forecast time", found <= chosen.forecast_s, f"{found:.2f} s a forecast, of {chosen.forecast_s:g} s")


def _wet_spells(verified: Verified, chosen: Retrain) -> Check:
    wet, length = wet_blocks(verified), verified.block_hours
    hours = "an hour" if length == 1 else f"{length} hours"
    said = f"{wet} independent wet spells of {hours}, of {chosen.fewest_wet_blocks} that are needed"
    return Check("wet spells", wet >= chosen.fewest_wet_blocks, said)
