"""Warnings and the onset of rain at places, verified as events."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd

from pipeline import catalog as tables
from pipeline.domain import Domain
from pipeline.place_settings import WarningRule
from pipeline.verification.period import Verified
from pipeline.verification.summary import measured
from pipeline.warnings.alerts import State, next_state


@dataclass(frozen=True)
class Spell:
    """A stretch of cycles, both ends included; ``last`` is None for a warning that stands to the end."""

    first: datetime
    last: datetime | None


@dataclass(frozen=True)
class WarningScore:
    """How a warning rule would have done, had it been followed over the whole period.

    Attributes:
        cycles: with a forecast and an observation of the amount.
        events: spells in which the observed amount reached the threshold.
        detected: of these, how many a warning was there for before all the rain had fallen.
        warnings: that were raised; ``false`` ones never stood in a cycle with the amount ahead.
        gained_minutes: median time from the warning to when the amount had fallen, at most twice the rule's minutes;
            NaN without a detected event.
    """

    rule: WarningRule
    cycles: int
    events: int
    detected: int
    warnings: int
    false: int
    gained_minutes: float

    @property
    def pod(self) -> float:
        """Share of events detected; NaN without an event."""
        return self.detected / self.events if self.events else float("nan")

    @property
    def far(self) -> float:
        """Share of false warnings; NaN without a warning."""
        return self.false / self.warnings if self.warnings else float("nan")


@dataclass(frozen=True)
class OnsetScore:
    """When rain was forecast to begin at a place, against when it began; forecasts made while it was dry.

    Attributes:
        both: forecasts in which rain was forecast and came; the errors are of these.
        missed: rain came that was not forecast. false: the other way round.
        mean_error: forecast - observed, minutes, positive is too late; ``mean_size`` without the sign. NaN if none.
    """

    place: str
    forecasts: int
    both: int
    missed: int
    false: int
    mean_error: float
    mean_size: float


def warning_scores(domain: Domain, verified: Verified) -> list[WarningScore]:
    """Scores of the domain's warning rules, replayed over the forecasts with the hysteresis of operations."""
    return [_warning_score(rule, verified) for rule in domain.warnings]


def _warning_score(rule: WarningRule, verified: Verified) -> WarningScore:
    cycles: list[tuple[datetime, float | None, float | None]] = []
    for seconds, places in zip(verified.reference_times.tolist(), verified.places, strict=True):
        forecast, observed = places.get(rule.place, {}).get("amount_mm", {}).get(str(rule.minutes), (None, None))
        cycles.append((tables.from_seconds(seconds), forecast, observed))
    warned = _warned(rule, [(time, forecast) for time, forecast, _ in cycles])
    events = _events(rule, [(time, observed) for time, _, observed in cycles if observed is not None])
    window = timedelta(minutes=rule.minutes)
    gained = []
    for event in events:
        # all of the amount has fallen a window after the first cycle that had it ahead
        complete = event.first + window
        there = [w for w in warned if w.first < complete and (w.last is None or w.last >= event.first)]
        if there:
            # a warning that stood for long before says nothing of this event
            since = max(min(w.first for w in there), event.first - window)
            gained.append((complete - since).total_seconds() / 60)
    false = sum(
        not any(w.first <= e.last and (w.last is None or w.last >= e.first) for e in events if e.last is not None)
        for w in warned
    )
    return WarningScore(
        rule,
        cycles=sum(forecast is not None and observed is not None for _, forecast, observed in cycles),
        events=len(events),
        detected=len(gained),
        warnings=len(warned),
        false=false,
        gained_minutes=float(np.median(gained)) if gained else float("nan"),
    )


def _warned(rule: WarningRule, cycles: list[tuple[datetime, float | None]]) -> list[Spell]:
    state, spells, raised = State(), list[Spell](), None
    for time, forecast in cycles:
        state, messages = next_state(state, [rule], {rule.key: forecast}, time)
        for message in messages:
            if message.event == "raised":
                raised = time
            elif raised is not None:
                spells.append(Spell(raised, time))
                raised = None
    return spells if raised is None else [*spells, Spell(raised, None)]


def _events(rule: WarningRule, cycles: list[tuple[datetime, float]]) -> list[Spell]:
    """Spells of cycles with the amount ahead; two less than the rule's minutes apart are one event."""
    spells: list[Spell] = []
    for time, observed in cycles:
        if observed < rule.amount_mm:
            continue
        if spells and spells[-1].last is not None and (time - spells[-1].last).total_seconds() / 60 <= rule.minutes:
            spells[-1] = Spell(spells[-1].first, time)
        else:
            spells.append(Spell(time, time))
    return spells


def onset_scores(verified: Verified) -> list[OnsetScore]:
    """Errors of the onset of rain at each place that the products named."""
    names = list(dict.fromkeys(name for places in verified.places for name in places))
    made = []
    for name in names:
        pairs = [p[name]["onset"] for p in verified.places if name in p and p[name]["onset"] is not None]
        both = [forecast - observed for forecast, observed in pairs if forecast is not None and observed is not None]
        made.append(
            OnsetScore(
                name,
                forecasts=len(pairs),
                both=len(both),
                missed=sum(forecast is None and observed is not None for forecast, observed in pairs),
                false=sum(forecast is not None and observed is None for forecast, observed in pairs),
                mean_error=float(np.mean(both)) if both else float("nan"),
                mean_size=float(np.mean(np.abs(both))) if both else float("nan"),
            )
        )
    return made


def place_table(domain: Domain, found: Sequence[Verified]) -> pd.DataFrame:
    """Scores of warnings and onsets, a row each."""
    rows: list[dict[str, Any]] = []
    for one in found:
        head = {"domain": domain.name, "model": one.model, "kind": one.kind}
        for warning in warning_scores(domain, one):
            rule = warning.rule
            event = {"what": "warning", "place": rule.place, "amount_mm": rule.amount_mm, "minutes": rule.minutes}
            counts = {key: value for key, value in vars(warning).items() if key != "rule"}
            rows.append({**head, **event, **counts, "pod": warning.pod, "far": warning.far})
        rows += [{**head, "what": "onset", **vars(onset)} for onset in onset_scores(one)]
    return pd.DataFrame(rows)


def warning_row(score: WarningScore) -> tuple[str, ...]:
    """The cells of a row for people: rule, counts, POD, FAR, minutes gained."""
    rule = score.rule
    return (
        f"{rule.place}: {rule.amount_mm:g} mm in {rule.minutes} min",
        f"{score.cycles}",
        f"{score.events}",
        f"{score.detected}",
        f"{score.warnings}",
        f"{score.false}",
        measured(score.pod, ".2f"),
        measured(score.far, ".2f"),
        measured(score.gained_minutes, ".0f"),
    )


def onset_row(score: OnsetScore) -> tuple[str, ...]:
    """The cells of a row for people: place, counts, mean error and its size in minutes."""
    counts = (score.forecasts, score.both, score.missed, score.false)
    return (score.place, *map(str, counts), measured(score.mean_error, ".0f"), measured(score.mean_size, ".0f"))
