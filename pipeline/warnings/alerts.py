"""When a warning is raised and when it ends: from one cycle's amounts to the next state, without files or network."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from pipeline import times
from pipeline.place_settings import WarningRule

# cycles below the lower threshold before a warning is over
CALM_CYCLES = 2


@dataclass(frozen=True)
class RuleState:
    """How a warning stands.

    Attributes:
        raised_at: reference time of the forecast that raised it; None while there is no warning.
        calm: cycles in a row whose amount was below the lower threshold.
        raised_before, calm_before: the same before the newest cycle, of which a reissue may say something else.
    """

    raised_at: datetime | None = None
    calm: int = 0
    raised_before: datetime | None = None
    calm_before: int = 0


@dataclass(frozen=True)
class State:
    """How the warnings of a domain stand after the cycle of ``reference_time``; keys are those of the rules.

    Attributes:
        revision: of the forecast of that cycle; a later one is a reissue.
    """

    reference_time: datetime | None = None
    rules: dict[str, RuleState] = field(default_factory=dict)
    revision: int = 1


@dataclass(frozen=True)
class Message:
    """A warning that was raised, or is over."""

    event: Literal["raised", "cleared"]
    rule: WarningRule
    amount_mm: float
    reference_time: datetime
    raised_at: datetime
    revision: int = 1

    @property
    def text(self) -> str:
        """In words."""
        expected = (
            f"{self.rule.place}: {self.amount_mm:.1f} mm in {self.rule.minutes} minutes expected "
            f"from {self.reference_time:%H:%M} UTC"
        )
        if self.event == "raised":
            return f"{expected}; threshold {self.rule.amount_mm:g} mm"
        return f"{expected}; the warning of {self.rule.amount_mm:g} mm from {self.raised_at:%Y-%m-%d %H:%M} UTC is over"

    def to_json(self, domain: str) -> dict[str, Any]:
        """The text and all fields; ``id`` is the same however often a message is sent."""
        time = times.iso(self.reference_time)
        return {
            "id": f"{domain}/{self.rule.key}/{time}{f'/r{self.revision}' * (self.revision > 1)}/{self.event}",
            "text": self.text,
            "event": self.event,
            "domain": domain,
            "place": self.rule.place,
            "minutes": self.rule.minutes,
            "amount_mm": round(self.amount_mm, 2),
            "threshold_mm": self.rule.amount_mm,
            "clear_mm": self.rule.clear_mm,
            "reference_time": time,
            "revision": self.revision,
            "raised_at": times.iso(self.raised_at),
        }


def next_state(
    state: State,
    rules: Sequence[WarningRule],
    amounts: dict[str, float | None],
    reference_time: datetime,
    revision: int = 1,
) -> tuple[State, list[Message]]:
    """The state after a forecast, and the messages that it gives rise to.

    A warning is raised by an amount of ``amount_mm`` or more, and is over when the amount was below ``clear_mm`` in
    two cycles in a row. Forecasts are ordered by reference time, then revision; one that is not newer than the last
    changes nothing. A reissue takes the place of its cycle's first forecast: it may raise what that did not, and ends
    what that would have ended.

    Args:
        amounts: by key of the rule, mm; None, or no key, is no forecast, which changes nothing for that rule.
    """
    if state.reference_time is not None and (reference_time, revision) <= (state.reference_time, state.revision):
        return state, []
    is_reissue = reference_time == state.reference_time
    after: dict[str, RuleState] = {}
    messages = []
    for rule in rules:
        now, amount = state.rules.get(rule.key, RuleState()), amounts.get(rule.key)
        before = (now.raised_before, now.calm_before) if is_reissue else (now.raised_at, now.calm)
        if amount is None:
            after[rule.key] = RuleState(now.raised_at, now.calm, *before)
            continue
        # what the first forecast of the cycle has raised has begun; it can only become calm
        raised_at, calm = (now.raised_at, 0) if before[0] is None and is_reissue else before
        raised_at, calm = _after(rule, amount, raised_at, calm, reference_time)
        if raised_at is not None and now.raised_at is None:
            messages.append(Message("raised", rule, amount, reference_time, raised_at, revision))
        elif raised_at is None and now.raised_at is not None:
            messages.append(Message("cleared", rule, amount, reference_time, now.raised_at, revision))
        after[rule.key] = RuleState(raised_at, calm, *before)
    return State(reference_time, after, revision), messages


def _after(
    rule: WarningRule, amount: float, raised_at: datetime | None, calm: int, reference_time: datetime
) -> tuple[datetime | None, int]:
    """Since when a warning stands after a forecast, None if it does not; and its calm cycles in a row."""
    if raised_at is None:
        return (reference_time, 0) if amount >= rule.amount_mm else (None, 0)
    if amount >= rule.clear_mm:
        return raised_at, 0
    return (raised_at, calm + 1) if calm + 1 < CALM_CYCLES else (None, 0)
