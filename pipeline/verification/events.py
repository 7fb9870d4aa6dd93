"""Warnings and the onset of rain at places, verified as events."""

from dataclasses import dataclass
from datetime import datetime

import numpy as np

from pipeline import catalog as tables
from pipeline.domain import Domain
from pipeline.place_settings import WarningRule
from pipeline.verification.period import Verified
from pipeline.warnings.alerts import State, next_state


@dataclass(frozen=True)
class Spell:
    """A stretch of cycles, both ends included; ``last`` is None for a warning that still stood at the end."""

    first: datetime
    last: datetime | None


@dataclass(frozen=True)
class WarningScore:
    """How a warning rule would have done, had it been followed over the whole period.

    Attributes:
        cycles: with a forecast and an observation of the amount.
        events: spells in which the observed amount reached the threshold.
        detected: of these, how many a warning was there for before all the rain had fallen.
        warnings: that were raised; ``false`` ones had no event.
        gained_minutes: median time from the warning to when the amount had fallen; NaN without a detected event.
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
    known: list[tuple[datetime, float, float]] = []
    for seconds, places in zip(verified.reference_times.tolist(), verified.places, strict=True):
        forecast, observed = places.get(rule.place, {}).get("amount_mm", {}).get(str(rule.minutes), (None, None))
        if forecast is not None and observed is not None:
            known.append((tables.from_seconds(seconds), float(forecast), float(observed)))
    warned = _warned(rule, known)
    events = _events(rule, known)
    window = np.timedelta64(rule.minutes, "m").item()
    gained = []
    for event in events:
        # the warning that stood when the amount first lay ahead, or came before all of it had fallen
        complete = event.first + window
        there = [w for w in warned if w.first <= complete and (w.last is None or w.last >= event.first)]
        if there:
            gained.append((complete - min(w.first for w in there)).total_seconds() / 60)
    false = sum(
        not any(e.first <= (w.last or e.first) and w.first <= (e.last or e.first) + window for e in events)
        for w in warned
    )
    return WarningScore(
        rule,
        cycles=len(known),
        events=len(events),
        detected=len(gained),
        warnings=len(warned),
        false=false,
        gained_minutes=float(np.median(gained)) if gained else float("nan"),
    )


def _warned(rule: WarningRule, known: list[tuple[datetime, float, float]]) -> list[Spell]:
    state, spells, raised = State(), list[Spell](), None
    for time, forecast, _ in known:
        state, messages = next_state(state, [rule], {rule.key: forecast}, time)
        for message in messages:
            if message.event == "raised":
                raised = time
            elif raised is not None:
                spells.append(Spell(raised, time))
                raised = None
    return spells if raised is None else [*spells, Spell(raised, None)]


def _events(rule: WarningRule, known: list[tuple[datetime, float, float]]) -> list[Spell]:
    """Spells of cycles with the amount ahead; two less than the rule's minutes apart are one event."""
    spells: list[Spell] = []
    for time, _, observed in known:
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
