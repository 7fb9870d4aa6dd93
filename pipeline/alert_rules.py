"""What deserves an operator's attention: one function per rule, from facts to findings. Nothing is read or sent here.

A rule is ``bad`` where an alert is raised, ``good`` where it ends, and ``unclear`` between, where what stands stays.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal

from pipeline.disk import GB, Disk
from pipeline.domain import Domain
from pipeline.errors import SOFTWARE_FAULT
from pipeline.feed_health import COMPOSITE, Feed
from pipeline.frames.correlation import FROZEN
from pipeline.settings import Alerts
from pipeline.timeline import Timeline

if TYPE_CHECKING:
    from pipeline.drift import Inputs
    from pipeline.verification.quality import Skill

Level = Literal["bad", "unclear", "good"]
# a poll may fail once
FAULT_LASTS = timedelta(minutes=2)
# forecasts with rain that scores must be of, in a day and in thirty
ENOUGH_DAY, ENOUGH_MONTH = 24, 120
# of what raises it: an alert ends when this share is left, or is surpassed
ENDS_AT = 2 / 3
ENDS_FREE = 1.2
# share of a day's frames that are unlike the training; loss of skill that is more than rounding
DRIFTED, LOST = 0.5, 0.01
ALL_RADARS = "all radars"


@dataclass(frozen=True)
class Finding:
    """What a rule says now; ``domain`` and ``subject`` are empty where there is but one."""

    domain: str
    kind: str
    subject: str
    level: Level
    text: str = ""


def no_forecast(domain: Domain, timeline: Timeline, alerts: Alerts) -> Iterator[Finding]:
    """The newest forecast is older than the deadline of the cycles since allows."""
    if not alerts.missed_cycles:
        return
    missed = timeline.missed
    level: Level = "unclear" if missed else "good"
    text = ""
    if missed >= alerts.missed_cycles:
        level = "bad"
        minutes = missed * domain.cadence_minutes
        newest = timeline.newest
        last = f"the newest is of {newest.reference_time:%Y-%m-%d %H:%M} UTC" if newest else "there never was one"
        cycles = "cycle" if missed == 1 else "cycles"
        text = f"no forecast for {missed} {cycles} ({minutes} minutes), {last}; {timeline.why_missed}"
    yield Finding(domain.name, "no_forecast", "", level, text)


def fallback(domain: Domain, timeline: Timeline, alerts: Alerts) -> Iterator[Finding]:
    """The newest forecasts are all by a fallback."""
    newest = timeline.newest
    if not alerts.fallback_cycles:
        return
    row = timeline.fallbacks_in_a_row
    if newest is not None and newest.state == "model":
        yield Finding(domain.name, "fallback", "", "good")
    elif newest is not None and row >= alerts.fallback_cycles:
        asked = f"{newest.method} instead of {timeline.model_asked}"
        yield Finding(domain.name, "fallback", "", "bad", f"{row} forecasts by {asked}: {newest.reason}")
    else:
        yield Finding(domain.name, "fallback", "", "unclear")


def software_fault(domain: str, subject: str, text: str) -> Finding:
    """Something failed that nobody foresaw; ``subject`` is the work in which it did."""
    return Finding(domain, "software_fault", subject, "bad", text)


def faulty_cycles(domain: Domain, timeline: Timeline) -> Iterator[Finding]:
    """A forecast of the last day met a fault of the software: a fallback serves instead, or there is none."""
    faulty = [cycle for cycle in timeline.cycles if SOFTWARE_FAULT in cycle.reason]
    if not faulty:
        yield Finding(domain.name, "software_fault", "nowcast", "good")
        return
    newest = f"{faulty[-1].reference_time:%Y-%m-%d %H:%M} UTC: {faulty[-1].reason}"
    text = f"{len(faulty)} cycle{'s' * (len(faulty) > 1)} of the last day, the newest {newest}"
    yield software_fault(domain.name, "nowcast", text)


def silent_radars(
    domain: Domain, feed: Feed, since: datetime | None, now: datetime, alerts: Alerts
) -> Iterator[Finding]:
    """A radar is silent while others are heard; if none is, that is one finding and not one per radar.

    A composite has no radars; that it stays away is told as forecasts that are missing. What was heard before the
    domain went live, at ``since``, says nothing until the limit has gone by.
    """
    radars = [radar for radar in feed.radars if radar.name != COMPOSITE]
    limit = alerts.radar_silent_minutes
    if not limit or not radars or since is None or now - since < timedelta(minutes=limit):
        return
    newest = min(radar.age_minutes for radar in radars)
    if len(radars) > 1:
        heard: Level = "bad" if newest > limit else "good"
        text = f"none of {len(radars)} radars was heard for {newest:.0f} minutes"
        yield Finding(domain.name, "radar_silent", ALL_RADARS, heard, text)
    for radar in radars:
        level: Level = "bad" if radar.age_minutes > limit else "good"
        # when a whole feed ends its radars pass the limit one by one; the finding above is for that
        if level == "bad" and len(radars) > 1 and newest > limit / 2:
            level = "unclear"
        text = f"{radar.name} was not heard for {radar.age_minutes:.0f} minutes, last {radar.last:%Y-%m-%d %H:%M} UTC"
        yield Finding(domain.name, "radar_silent", radar.name, level, text)


def feed_fault(domain: Domain, feed: Feed, now: datetime) -> Iterator[Finding]:
    """The source cannot be polled, and not for the first time."""
    if feed.fault_at is None:
        yield Finding(domain.name, "feed_fault", "", "good")
        return
    lasts = feed.polled_at is None or now - feed.polled_at > FAULT_LASTS
    since = f"since {feed.polled_at:%Y-%m-%d %H:%M} UTC" if feed.polled_at else "and never was"
    text = f"the source cannot be polled, {since}: {feed.fault}"
    yield Finding(domain.name, "feed_fault", "", "bad" if lasts else "unclear", text)


def frozen_feed(domain: Domain, timeline: Timeline) -> Iterator[Finding]:
    """The oldest and the newest input frame of the newest forecast are the same rain."""
    newest = timeline.newest
    if newest is None or newest.correlation is None:
        yield Finding(domain.name, "frozen_feed", "", "unclear")
        return
    frozen = newest.correlation >= FROZEN
    when = f"{newest.reference_time:%H:%M} UTC"
    text = f"the feed is frozen: the rain of {when} is the same as {domain.input_frames - 1} cycles before"
    yield Finding(domain.name, "frozen_feed", "", "bad" if frozen else "good", text)


def fallen_scores(domain: Domain, day: "Skill | None", month: "Skill | None", alerts: Alerts) -> Iterator[Finding]:
    """The last day was verified clearly worse than thirty days; too little rain to tell ends it."""
    if not alerts.csi_drop:
        return
    if day is None or month is None or day.rainy < ENOUGH_DAY or month.rainy < ENOUGH_MONTH:
        yield Finding(domain.name, "fallen_scores", "", "good")
        return
    drop = month.csi - day.csi
    level: Level = "bad" if drop > alerts.csi_drop else "unclear"
    if math.isnan(drop) or drop <= ENDS_AT * alerts.csi_drop:
        level = "good"
    text = (
        f"CSI at {day.threshold_mm_h:g} mm/h, {day.lead_minutes} minutes ahead, was {day.csi:.2f} in the last 24 hours "
        f"and {month.csi:.2f} in 30 days; {day.other} {day.csi_other:.2f} and {month.csi_other:.2f}"
    )
    yield Finding(domain.name, "fallen_scores", "", level, text)


def drifted_inputs(domain: Domain, inputs: "Inputs | None", alerts: Alerts) -> Iterator[Finding]:
    """Most frames of the last day have more echo than all but one in a hundred that the model was trained on."""
    if not alerts.drift:
        return
    if inputs is None or inputs.frames < ENOUGH_DAY:
        yield Finding(domain.name, "drift", "inputs", "good")
        return
    level: Level = "bad" if inputs.beyond > DRIFTED else "unclear"
    if inputs.beyond <= ENDS_AT * DRIFTED:
        level = "good"
    where = "" if inputs.own else " of other places"
    text = (
        f"{inputs.beyond:.0%} of the frames of the last 24 hours have more echo than 99 % of those{where} that "
        f"{inputs.model} was trained on: half of them on {inputs.median:.0%} of the map or more, there "
        f"{inputs.most:.0%} at most"
    )
    yield Finding(domain.name, "drift", "inputs", level, text)


def drifted_scores(domain: Domain, month: "Skill | None", alerts: Alerts) -> Iterator[Finding]:
    """What the training gained over the method beside it is lost in thirty days."""
    if not alerts.drift:
        return
    if month is None or month.rainy < ENOUGH_MONTH or math.isnan(month.csi) or math.isnan(month.csi_other):
        yield Finding(domain.name, "drift", "scores", "good")
        return
    level: Level = "bad" if month.csi < month.csi_other - LOST else "unclear"
    if month.csi >= month.csi_other:
        level = "good"
    text = (
        f"CSI at {month.threshold_mm_h:g} mm/h, {month.lead_minutes} minutes ahead, was {month.csi:.2f} in 30 days, "
        f"that of {month.other} {month.csi_other:.2f}; `nowcast retrain {domain.name}` may help"
    )
    yield Finding(domain.name, "drift", "scores", level, text)


def low_disk(disk: Disk, alerts: Alerts) -> Iterator[Finding]:
    """Little is free on the disk of the root."""
    if not alerts.free_gb or disk.free is None:
        return
    free = disk.free / GB
    level: Level = "bad" if free < alerts.free_gb else "unclear"
    if free >= ENDS_FREE * alerts.free_gb:
        level = "good"
    yield Finding(
        "", "low_disk", "", level, f"{free:.1f} GB are free on the disk of the root, less than {alerts.free_gb:g}"
    )
