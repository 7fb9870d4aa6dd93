"""The status page: one self-contained file that a browser refreshes, and the words that console and page share."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from pipeline import times
from pipeline.catalog import Catalog, Row
from pipeline.disk import GB, Disk
from pipeline.feed_health import Radar
from pipeline.latency import SPANS
from pipeline.settings import Settings
from pipeline.status import WORDS, WORST_FIRST, DomainStatus, Status, read_status
from pipeline.storage import Store
from pipeline.timeline import DAY, Cycle

REFRESH_S = 60
# the live process writes a page every minute
OLD_S = 180
SYMBOLS = {"good": "✓", "warn": "!", "bad": "✕", "off": "-"}
# what a cycle is called, and the height of its bar, so that colour is not all that tells
BARS = {
    "model": ("by the model", 20),
    "fallback": ("by a fallback", 13),
    "skipped": ("no forecast, reason known", 7),
    "unaccounted": ("not accounted for", 20),
    "waiting": ("waiting", 4),
    "not_live": ("not live", 1),
}
STRIP_WIDTH = 960


def write(settings: Settings, store: Store, catalog: Catalog, now: datetime) -> Path:
    """Write ``status/index.html`` below the root.

    Raises:
        StoreUnavailable: the catalog cannot be used, or the page not be written.
    """
    path = store.root / "status" / "index.html"
    text = render(read_status(settings, store, catalog, now))
    with store.publish(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def render(status: Status) -> str:
    """The page; every text of it is escaped."""
    from jinja2 import Environment, FileSystemLoader, select_autoescape

    from pipeline.version import software_version

    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(["j2"]))
    helpers = {"minutes": minutes, "latest": latest, "latency_rows": latency_rows, "strip": strip, "ticks": ticks}
    return environment.get_template("status.html.j2").render(
        **helpers,
        status=status,
        domains=sorted(status.domains, key=lambda one: WORST_FIRST.index(one.level)),
        standing=[alert for alert in status.alerts if alert["ended_at"] is None],
        ended=[alert for alert in status.alerts if alert["ended_at"] is not None],
        disk=disk_text(status.disk),
        who=who(status.leases),
        words=WORDS,
        symbols=SYMBOLS,
        bars=BARS,
        written=times.seconds(status.now),
        refresh_s=REFRESH_S,
        old_s=OLD_S,
        width=STRIP_WIDTH,
        version=software_version(),
    )


def minutes(value: float | None) -> str:
    """An age for people: minutes to two hours, then hours, then days."""
    if value is None:
        return "none"
    if value < 120:
        return f"{value:.0f} min"
    return f"{value / 60:.0f} h" if value < 2880 else f"{value / 1440:.0f} d"


def latest(radar: Radar) -> str:
    """When a radar was last heard."""
    return f"{radar.last:%H:%M}, {minutes(radar.age_minutes)} ago"


def seconds(value: float) -> str:
    """A duration for people."""
    return f"{value:.1f} s" if value < 10 else f"{value:.0f} s" if value < 180 else f"{value / 60:.0f} min"


def latency_text(domain: DomainStatus) -> str:
    """From the last sweep to the published file: median and 95 %."""
    spread = domain.latency.get("total")
    return "-" if spread is None else f"{seconds(spread.median)} (95 %: {seconds(spread.p95)})"


def latency_rows(domain: DomainStatus) -> list[tuple[str, str, str, int]]:
    """Span, median, 95 % and count of the spans that are known."""
    known = [(text, domain.latency[name]) for name, text in SPANS.items() if name in domain.latency]
    return [(text, seconds(spread.median), seconds(spread.p95), spread.count) for text, spread in known]


def disk_text(disk: Disk) -> str:
    """Free space, and what is used by what."""
    if disk.free is None or disk.size is None:
        return "there is no root yet"
    kinds = ", ".join(f"{name} {_size(size)}" for name, size in disk.used.items())
    least = "at least " * (not disk.complete)
    return f"{_size(disk.free)} of {_size(disk.size)} free; ours {least}{_size(sum(disk.used.values()))} ({kinds})"


def _size(count: int) -> str:
    return f"{count / GB:.1f} GB" if count >= GB else f"{count / 1e6:.1f} MB"


def who(leases: Sequence[Row]) -> str:
    """Which processes hold which leases."""
    by_process: dict[tuple[str, str], list[str]] = {}
    for row in leases:
        by_process.setdefault((row["host"], row["process"]), []).append(row["name"])
    found = []
    for (host, process), names in by_process.items():
        more = f" and {len(names) - 3} more" * (len(names) > 3)
        found.append(f"process {process} on {host} ({', '.join(names[:3])}{more})")
    return "; ".join(found) or "nobody"


def strip(domain: DomainStatus) -> list[dict[str, Any]]:
    """A bar for every cycle of the day: place and size in the drawing, class and words."""
    cycles = domain.timeline.cycles
    wide = STRIP_WIDTH / max(len(cycles), 1)
    return [
        {"x": round(n * wide, 2), "width": round(0.85 * wide, 2), "height": BARS[cycle.state][1], "cycle": cycle}
        | {"text": _cycle_text(cycle)}
        for n, cycle in enumerate(cycles)
    ]


def ticks(now: datetime) -> list[tuple[float, str]]:
    """Places and names of every third full hour of the last day."""
    start = now - DAY
    hours = times.slots(start, now, timedelta(hours=3))
    return [(round(STRIP_WIDTH * ((hour - start) / DAY), 1), f"{hour:%H}") for hour in hours]


def _cycle_text(cycle: Cycle) -> str:
    by = f" ({cycle.method})" if cycle.method else ""
    why = f": {cycle.reason}" if cycle.reason else ""
    return f"{cycle.reference_time:%H:%M} {BARS[cycle.state][0]}{by}{why}"
