"""The command ``nowcast status``: how every domain does, on the console, as JSON or as a page."""

from typing import Annotated, Any

import typer
from rich.markup import escape

from flows import console
from flows.cli_options import AsJson, Changes, Config, load_settings, now
from flows.console import errors_to_exit_codes, out

COLOURS = {"good": "green", "warn": "yellow", "bad": "red", "off": "dim"}


def status(
    config: Config = None,
    changes: Changes = None,
    as_json: AsJson = False,
    page: Annotated[bool, typer.Option("--page", help="Write the status page below the root instead.")] = False,
) -> None:
    """How every domain does: freshness, radars, gaps, latency, alerts. Reads only, except with --page."""
    with errors_to_exit_codes():
        from pipeline.catalog import Catalog
        from pipeline.holdings import holdings
        from pipeline.status import read_status
        from pipeline.storage import open_store

        settings = load_settings(config, changes)
        store, catalog = open_store(settings, reading=not page), Catalog(settings.catalog, reading=True)
        if page:
            from pipeline import status_page

            written = status_page.write(settings, store, catalog, now())
            if as_json:
                console.print_json({"page": written})
            else:
                out.print(f"page     {escape(str(written))}")
            return
        found = read_status(settings, store, catalog, now())
        held = holdings(catalog, sorted(settings.domains))
        if as_json:
            console.print_json({**vars(found), "holdings": held})
        else:
            _print(found, held, store)


def _print(found: Any, held: Any, store: Any) -> None:
    from pipeline.status import WORDS
    from pipeline.status_page import disk_text, latency_text, latest, minutes, who

    if not found.domains:
        out.print("no domain is configured; give a settings file with --config")
        return
    out.print(f"[{COLOURS[found.level]}]{WORDS[found.level]}[/]  {escape(found.headline)}", highlight=False)
    table = console.table("domain", "state", "frame", "forecast", "by", "24 h: model/fallback/none", "published after")
    for one in found.domains:
        counts = one.timeline.counts
        gone = counts.get("skipped", 0) + counts.get("unaccounted", 0)
        table.add_row(
            one.name,
            f"[{COLOURS[one.level]}]{WORDS[one.level]}[/]",
            minutes(one.frame_age_minutes),
            minutes(one.forecast_age_minutes),
            escape(one.timeline.newest.method if one.timeline.newest else "-"),
            f"{counts.get('model', 0)} / {counts.get('fallback', 0)} / {gone}",
            latency_text(one),
        )
    out.print(table)
    for one, holds in zip(found.domains, held, strict=True):
        for line in _lines(one, holds, latest):
            out.print(f"[bold]{one.name}:[/] {escape(line)}", highlight=False)
        if not holds.frames and store.archive(one.name).is_dir():
            out.print(f"[yellow]{one.name}:[/] its archive is not in the catalog; run `nowcast catalog rebuild`")
    stands = [alert for alert in found.alerts if alert["ended_at"] is None]
    named = ((a["domain"] or "system", a["kind"], a["subject"], f"({minutes(a['age_minutes'])})") for a in stands)
    out.print(f"alerts: {escape(', '.join(' '.join(filter(None, one)) for one in named)) or 'none'}", highlight=False)
    if found.unnamed:
        also = ", ".join(found.unnamed)
        out.print(f"[yellow]note:[/] the root also holds {escape(also)}, which these settings do not name")
    out.print(f"disk: {disk_text(found.disk)}; at work: {escape(who(found.leases))}", highlight=False)


def _lines(one: Any, held: Any, latest: Any) -> list[str]:
    """What is worth a line: problems, gaps, fallbacks, radars, and what the domain has."""
    lines = list(one.problems)
    lines += [f"gap {gap.text}" for gap in one.timeline.gaps[-3:]]
    if len(one.timeline.gaps) > 3:
        lines.append(f"{len(one.timeline.gaps) - 3} more gaps in the last 24 hours; --json has all")
    lines += [f"{count} x {reason}" for reason, count in list(one.timeline.fallbacks.items())[:3]]
    if one.timeline.since is not None and one.feed.radars:
        radars = sorted(one.feed.radars, key=lambda radar: -radar.age_minutes)
        told = ", ".join(f"{radar.name} {radar.state} ({latest(radar)})" for radar in radars[:4])
        more = f" and {len(radars) - 4} more that were heard later" * (len(radars) > 4)
        polled = f"; last poll {one.feed.polled_at:%H:%M:%S}" if one.feed.polled_at else ""
        lines.append(f"radars: {told}{more}{polled}")
    forecasts = ", ".join(f"{n} {method}" for method, n in held.forecasts.items()) or "none"
    waiting = f"; {one.verification_waiting} wait for verification" * bool(one.verification_waiting)
    lines.append(f"{held.frames} frames; forecasts: {forecasts}{waiting}")
    if held.newest_problem:
        lines.append(f"{held.unusable} unusable files, newest: {held.newest_problem}")
    return lines
