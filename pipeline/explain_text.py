"""An explanation as lines for a person: first what happened, then why, then every detail."""

from collections.abc import Iterator
from datetime import timedelta

from pipeline import times
from pipeline.domain import Domain
from pipeline.explain import CycleFacts, Explanation, FrameFacts, VolumeFacts

# what became of a volume, in words
STATES = {
    "framed": "used",
    "partial": "used as a part",
    "duplicate": "too late, or less than what stands",
    "off_axis": "not on the axis",
    "left_alone": "of another quantity or interval",
    "quarantined": "QUARANTINED",
    "reviewed": "quarantined, reviewed",
    "dropped": "quarantined, dropped",
    "future": "dated in the future",
    "unreadable": "to be read again",
    "": "the catalog does not know it any more",
}


def lines(found: Explanation, domain: Domain) -> Iterator[str]:
    """The whole explanation, a fact a line."""
    yield f"{found.domain} {found.reference_time}: {verdict(found, domain)}"
    for cycle in found.cycles:
        yield ""
        yield from _cycle(cycle)
    if found.frames:
        yield ""
        yield f"input frames ({sum(f.role == 'measured' for f in found.frames)} of {len(found.frames)} measured)"
    issued = max((cycle.issue_time for cycle in found.cycles if cycle.state == "published"), default="")
    for frame in found.frames:
        yield from _frame(frame, issued)
    if found.feed:
        yield ""
        yield f"feed: live since {found.feed['since']}, last good look {found.feed['polled_at'] or 'never'}"
        if found.feed["fault_at"]:
            yield f"  FAULT at {found.feed['fault_at']}: {found.feed['fault']}"
    for alert in found.alerts:
        ended = f"until {alert['ended_at']}" if alert["ended_at"] else "and stands"
        yield f"alert from {alert['raised_at']} {ended}: {alert['kind']} {alert['subject']}: {alert['text']}"
    if found.journal:
        yield ""
        yield "journal"
    for entry in found.journal:
        what = " ".join(str(entry[key]) for key in ("event", "action", "part", "name", "key") if key in entry)
        reason = entry.get("reason") or entry.get("cycle", {}).get("reason", "")
        yield f"  {entry.get('recorded_at', '')} {what}{': ' * bool(reason)}{reason}"


def verdict(found: Explanation, domain: Domain) -> str:
    """One sentence: is there a product, and if not, why."""
    time, now = times.parse_time(found.reference_time), times.parse_time(found.asked_at)
    if not found.on_axis:
        before = times.first_slot(time, domain.cadence) - domain.cadence
        near = f"{times.iso(before)} and {times.iso(before + domain.cadence)}"
        return f"no product: not an instant of the {found.cadence_minutes}-minute axis; those around it are {near}"
    published = [cycle for cycle in found.cycles if cycle.state == "published"]
    if published:
        said = [
            f"{cycle.kind} r{cycle.revision} by {cycle.method}"
            + f" INSTEAD of the model ({cycle.reason})" * bool(cycle.reason)
            for cycle in published
        ]
        broken = [cycle.path for cycle in published if cycle.stored != "whole"]
        return "published: " + "; ".join(said) + f"; NOT WHOLE: {', '.join(broken)}" * bool(broken)
    if time > now:
        return "no product: the time lies in the future"
    why = _why_no_frame(found.frames[-1], found)
    if found.cycles:
        reasons = "; ".join(f"{cycle.kind} skipped: {cycle.reason}" for cycle in found.cycles)
        return f"no product: {reasons}{'. ' * bool(why)}{why}"
    if any(entry["event"] == "removed" and entry["part"] == "products" for entry in found.journal):
        return "no product: it was removed by retention, see the journal below"
    since = found.feed.get("since")
    if since and found.reference_time < since:
        return f"no product: before live forecasting of this domain began ({since}); `nowcast backfill` makes hindcasts"
    until = time + timedelta(seconds=domain.lateness.grace_s)
    if since and now < until:
        return f"no product yet: a live cycle waits for its frame until {times.iso(until)}. {why}"
    if why:
        return f"no product: nobody asked for one, and it could not be made. {why}"
    return "no product: its frame is there, but nobody asked for one; `nowcast backfill` makes a hindcast"


def _why_no_frame(frame: FrameFacts, found: Explanation) -> str:
    """Why the frame of the reference time is missing; empty if it is there."""
    if frame.stored == "whole":
        return ""
    if frame.stored != "nothing":
        return f"Its frame: {frame.stored}"
    if any(
        e["event"] == "removed" and e["part"] == "frames" and frame.time.startswith(e["name"]) for e in found.journal
    ):
        return "Its frame was removed by retention, see the journal below"
    if frame.others:
        came = "; ".join(f"{v.radar or v.key} {STATES.get(v.state, v.state)}" for v in frame.others)
        return f"Its frame is missing: of what came for it nothing could be used ({came})"
    fault = f"; the feed had a fault: {found.feed['fault']}" if found.feed.get("fault_at") else ""
    return f"Its frame is missing: no ingest has seen a file for it{fault}"


def _cycle(cycle: CycleFacts) -> Iterator[str]:
    if cycle.state != "published":
        yield f"{cycle.kind}: {cycle.state} at {cycle.issue_time}: {cycle.reason}"
        return
    a = cycle.attributes
    yield f"{cycle.kind} revision {cycle.revision}: {cycle.path} ({cycle.stored}, content {cycle.content_digest[:12]})"
    yield f"  method    {cycle.method}" + f", INSTEAD of {a.get('model_name', 'the model')}: {cycle.reason}" * bool(
        cycle.reason
    )
    yield f"  issued    {cycle.issue_time}" + f", because: {cycle.cause}" * bool(cycle.cause)
    for name, seconds in cycle.delays.items():
        yield f"            {span(seconds)} {name}"
    if cycle.stages:
        yield "            " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in cycle.stages.items())
    if a.get("radars_used") or a.get("radars_carried_on"):
        yield f"  radars    {a.get('radars_used', 'none')}" + f"; carried on: {a.get('radars_carried_on')}" * bool(
            a.get("radars_carried_on")
        )
    frozen = "; the feed is FROZEN" if a.get("frozen_feed") == "1" else ""
    if cycle.correlation is not None:
        yield f"  motion    correlation {cycle.correlation:.3f} from the oldest to the newest frame{frozen}"
    if cycle.model is not None:
        m = cycle.model
        yield f"  model     {m.name} ({m.network}), checksum {m.checksum[:12]}; its checkpoint is {m.matches}"
        for key, value in m.training.items():
            yield f"            {key}: {_short(value)}"
    if a.get("model_limits"):
        yield f"            limits: {a['model_limits']}"
    seen, of = cycle.observed
    state = cycle.verified or "not yet"
    yield (
        f"  verified  {state}"
        + f": {cycle.verified_reason}" * bool(cycle.verified_reason)
        + f"; {seen} of {of} lead times have an observation now"
    )
    for key in ("verified_skill_24h", "verified_skill_30d"):
        if key in a:
            yield f"            {key}: {a[key]}"
    yield f"  made with {a.get('software_version', 'unknown')}, inputs digest {a.get('inputs_digest', '')[:12]}"


def _frame(frame: FrameFacts, issued: str) -> Iterator[str]:
    role = frame.role if frame.role == "measured" else frame.role.upper()
    if not frame.sha256:
        yield f"  {frame.time} {role}: {frame.stored}"
    else:
        parts = [f"coverage {frame.coverage:.3f}", f"echo {frame.echo:.3f}", f"removed {frame.removed:.3f}"]
        parts += [f"offset {frame.offset_s:+.0f} s"] if frame.offset_s else []
        again = " AGAIN, after the forecast" if issued and frame.framed_at > issued else ""
        parts += [f"arrived {frame.arrived_at or 'unknown'}", f"framed{again} {frame.framed_at or 'unknown'}"]
        yield f"  {frame.time} {role}: {frame.stored}, {frame.sha256[:12]}, {', '.join(parts)}"
    for volume in frame.volumes:
        yield "    <- " + _volume(volume)
    for volume in frame.others:
        yield "    x  " + _volume(volume)


def _volume(volume: VolumeFacts) -> str:
    parts = [STATES.get(volume.state, volume.state)]
    if volume.used:
        offset = f" by {volume.offset_s:+.0f} s" if volume.offset_s else ""
        parts = [volume.used + offset * (volume.used == "moved forward")] + [
            "carried on from the instant before"
        ] * volume.carried
        parts += [STATES["partial"]] * (volume.state == "partial") + [STATES[""]] * (volume.state == "")
    if volume.removed:
        parts.append(f"{volume.removed:.1%} removed")
    if volume.arrived_at:
        parts.append(f"arrived {volume.arrived_at}")
    if volume.seen_at:
        parts.append(f"seen {volume.seen_at}")
    radar = f"{volume.radar} " if volume.radar else ""
    return f"{radar}{volume.key}: {', '.join(parts)}" + f" ({volume.reason})" * bool(volume.reason)


def span(seconds: float) -> str:
    """A duration in the unit that people read."""
    if abs(seconds) < 120:
        return f"{seconds:.1f} s"
    if abs(seconds) < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if abs(seconds) < 172800 else f"{seconds / 86400:.0f} days"


def _short(value: object) -> str:
    text = ", ".join(f"{k} {_short(v)}" for k, v in value.items()) if isinstance(value, dict) else str(value)
    return text if len(text) <= 300 else text[:300] + " ..."
