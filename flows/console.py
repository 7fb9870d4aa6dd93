"""What a person sees: progress bars and messages on stderr, results on stdout, and the exit codes."""

import dataclasses
import json
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from pipeline.errors import NotForecast, NowcastError, SettingsError, StoreUnavailable, machine_fault

# where nobody watches, as in a log or a pipe, tables get room
out = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 200)
err = Console(stderr=True, soft_wrap=True)


class Exit(IntEnum):
    """Exit codes of every command."""

    DONE = 0
    BUG = 1
    USAGE = 2
    PARTLY = 3
    UNREACHABLE = 4
    INTERRUPTED = 130


@contextmanager
def errors_to_exit_codes() -> Iterator[None]:
    """Turn the errors that are not bugs into a message and an exit code."""
    try:
        yield
    except StoreUnavailable as error:
        _fail(error, Exit.UNREACHABLE)
    except (SettingsError, NotForecast) as error:
        _fail(error, Exit.USAGE)
    except NowcastError as error:
        _fail(error, Exit.PARTLY)
    except OSError as error:
        fault = "" if isinstance(error, BrokenPipeError) else machine_fault(error)
        if not fault:
            raise
        _fail(StoreUnavailable(f"{error.filename or 'the machine'}: {fault}"), Exit.UNREACHABLE)
    except KeyboardInterrupt:
        err.print("[red]interrupted:[/] what was finished stands; the same command goes on from there")
        raise typer.Exit(Exit.INTERRUPTED) from None


def _fail(error: Exception, code: Exit) -> None:
    err.print(f"[red]error:[/] {escape(str(error))}")
    raise typer.Exit(code)


@contextmanager
def progress_bars(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """One bar per stage on stderr; nothing with ``quiet``. On a log file rich prints no bars."""
    if quiet:
        yield lambda stage, done, total: None
        return
    with Progress(
        TextColumn("{task.description:8}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=True,
    ) as bars:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield show


def table(*columns: str, whole: Collection[str] = ()) -> Table:
    """A table that folds long values, never cuts them: they are there to be copied. ``whole`` columns stay unfolded."""
    made = Table(box=None, pad_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold", no_wrap=column in whole)
    return made


def print_json(data: Any) -> None:
    """One JSON document on stdout; NaN, which JSON does not know, becomes null."""
    sys.stdout.write(json.dumps(plain(data), indent=2, default=str) + "\n")


def plain(data: Any) -> Any:
    """Dataclasses, tuples, times and NaN as JSON values."""
    if dataclasses.is_dataclass(data) and not isinstance(data, type):
        return plain(dataclasses.asdict(data))
    if isinstance(data, dict):
        return {str(key): plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [plain(value) for value in data]
    if isinstance(data, float) and data != data:
        return None
    if isinstance(data, datetime):
        return data.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return data


def print_report(report: Any, as_json: bool) -> None:
    """A command's report; its problems decide the exit code."""
    if as_json:
        print_json(report)
    else:
        for line in report_lines(report):
            out.print(escape(line))
        for note in report.notes[:20]:
            out.print(f"[yellow]note:[/] {escape(note)}")
        if len(report.notes) > 20:
            out.print(f"... and {len(report.notes) - 20} more notes; --json has all")
        for problem in report.problems[:20]:
            err.print(f"[red]not done:[/] {escape(problem)}")
        if len(report.problems) > 20:
            err.print(f"... and {len(report.problems) - 20} more; --json has all")
    if report.problems:
        raise typer.Exit(Exit.PARTLY)


def report_lines(report: Any) -> list[str]:
    """What was done, a line per stage."""
    lines = []
    seconds = {stage: f" in {value:.1f} s" for stage, value in report.seconds.items()}
    if report.ingest is not None:
        i = report.ingest
        rest = f", {i.duplicates} duplicates" * bool(i.duplicates) + f", {i.off_axis} off the axis" * bool(i.off_axis)
        rest += f", {i.partial} partial volumes" * bool(i.partial)
        rest += f", {len(i.left_alone)} of other quantities" * bool(i.left_alone)
        lines.append(
            f"ingest   {i.framed} new frames, {i.unchanged} known, {len(i.quarantined)} unusable{rest}"
            + seconds.get("ingest", "")
        )
    if report.cycles:
        done = ", ".join(f"{count} {state}" for state, count in report.cycles.items())
        by = ", ".join(f"{count} by {method}" for method, count in report.methods.items())
        lines.append(f"nowcast  {done}" + f" ({by})" * bool(by) + seconds.get("nowcast", ""))
    if len(report.products) == 1:
        lines.append(f"product  {report.products[0]}")
    if report.verify is not None:
        v = report.verify
        lines.append(
            f"verify   {v.scored} forecasts scored, {v.unchanged} unchanged, {v.waiting} waiting for observations"
            + seconds.get("verify", "")
        )
    return lines


def print_clutter(learned: Any, as_json: bool) -> None:
    """What was learnt of each radar."""
    if as_json:
        print_json(learned)
        return
    shown = table("radar", "volumes", "dry", "clutter", "map")
    for one in learned:
        few = "too few dry volumes for a map"
        shown.add_row(one.radar, str(one.volumes), str(one.dry), f"{one.clutter:.2%}", escape(one.path) or few)
    out.print(shown)
    if not learned:
        err.print("the source holds no volume of this period")


def print_page(page: Any, as_json: bool) -> None:
    """Where page and scores lie, what they say, and the CSI of every method side by side."""
    if as_json:
        print_json({"page": page.page, "scores": page.scores, "summary": page.summary, "csi": page.rows})
        return
    out.print(f"page     {escape(str(page.page))}")
    out.print(f"scores   {escape(str(page.scores))}")
    for sentence in page.summary:
        out.print(f"- {escape(sentence)}", highlight=False)
    for key, text in list(page.headlines.items())[:1]:  # those of fallbacks are on the page
        out.print(
            f"\nCSI on the common pixels, forecasts of {escape(key)} (point estimates; intervals are on the page)"
        )
        out.print(escape(text), highlight=False)


def print_view(written: Any, as_json: bool) -> None:
    """Where the page lies and which forecast it shows."""
    if as_json:
        print_json(written)
        return
    out.print(f"map      {escape(str(written.page))}")
    out.print(f"shows    {written.kind} forecast of {written.reference_time}, {escape(written.method)}")


def print_training(result: Any, as_json: bool) -> None:
    """Where the checkpoint lies and how far the training came."""
    if as_json:
        print_json(result)
        return
    if not result.history:
        out.print(f"data     {escape(str(result.folder))}, {sum(result.windows.values())} windows")
        return
    last = result.history[-1]
    best = min(row["validation_loss"] for row in result.history)
    out.print(f"model    {escape(str(result.folder))}, from {sum(result.windows.values())} windows")
    out.print(f"         {last['step']:.0f} steps in {last['seconds'] / 60:.1f} min, validation loss {best:.5f}")
