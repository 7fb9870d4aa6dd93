"""The commands that decide which model serves: ``nowcast retrain`` and ``nowcast models promote``, ``rollback``, ..."""

from contextlib import closing
from typing import Annotated, Any

import typer
from rich.markup import escape

from flows import console
from flows.cli_info import models_app
from flows.cli_options import (
    AsJson,
    Changes,
    Config,
    DomainName,
    From,
    To,
    UsePrefect,
    Verbose,
    load_settings,
    now,
)
from flows.console import errors_to_exit_codes, out

Reason = Annotated[str, typer.Option(help="Why, for the record.")]


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """A promotion with times as text; None while it stands."""
    from pipeline import times
    from pipeline.catalog import from_seconds

    shown = {key: times.iso(from_seconds(row[key]).replace(microsecond=0)) for key in ("since", "ended_at")}
    return {**row, **shown, "ended_at": shown["ended_at"] if row["ended_at"] else None}


def retrain(
    domain: DomainName,
    start: From = None,
    end: To = None,
    challenger: Annotated[
        str, typer.Option(metavar="NAME", help="Compare a model that is there already; train nothing.")
    ] = "",
    anew: Annotated[bool, typer.Option("--anew", help="Forget a retraining that was not finished.")] = False,
    config: Config = None,
    changes: Changes = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
    use_prefect: UsePrefect = False,
) -> None:
    """Train a challenger on the newest archive, compare it with the model in use, promote it if it is better.

    A killed run goes on where it was. Settings: retrain.*; without times the window is retrain.window_days.
    """
    with errors_to_exit_codes():
        from flows.cli import _flows_wanted, _run_flow

        settings = load_settings(config, changes, verbose)
        settings.domain(domain)
        arguments: dict[str, Any] = {"start": start, "end": end, "challenger": challenger, "anew": anew}
        if _flows_wanted(settings, use_prefect):
            [done] = _run_flow("retrain", settings, changes, domain=domain, **arguments)
        else:
            from pipeline import operations

            with console.progress_bars(as_json) as progress:
                done = operations.retrain(settings, domain, now(), **arguments, progress=progress)
        if as_json:
            console.print_json(done)
            return
        out.print(f"[bold]{escape(done.state)}[/]  {escape(done.reason)}")
        out.print(f"challenger {escape(done.challenger)}, in use when it began {escape(done.model)}")
        for check in done.checks:
            holds = {True: "yes", False: "no"}.get(check["holds"], "?")
            out.print(f"  {check['name']:15s} {holds:4s} {escape(check['text'])}")
        if done.page is not None:
            out.print(f"page     {escape(str(done.page))}", soft_wrap=True)


@models_app.command("promote")
def promote(
    name: Annotated[str, typer.Argument(help="A model of this root, or a shipped one; see `nowcast models list`.")],
    domain: DomainName,
    reason: Reason = "promoted by hand",
    config: Config = None,
    changes: Changes = None,
    as_json: AsJson = False,
) -> None:
    """Let a model serve a domain from its next cycle on, in place of the one that serves now."""
    with errors_to_exit_codes():
        from pipeline import operations, promotion

        settings = load_settings(config, changes)
        store, catalog = operations.open_root(settings)
        with closing(catalog):
            row = promotion.promote(store, catalog, settings.domain(domain), name, now(), reason)
        console.print_json(_plain(row)) if as_json else out.print(f"{escape(promotion.said(row))} serves {domain}")


@models_app.command("rollback")
def rollback(
    domain: DomainName,
    reason: Reason = "taken back by hand",
    config: Config = None,
    changes: Changes = None,
    as_json: AsJson = False,
) -> None:
    """Take the newest promotion of a domain back; what served before serves again from the next cycle on."""
    with errors_to_exit_codes():
        from pipeline import operations, promotion

        settings = load_settings(config, changes)
        store, catalog = operations.open_root(settings)
        with closing(catalog):
            row = promotion.demote(store, catalog, settings.domain(domain), now(), reason)
            serving = promotion.in_use(catalog, settings.domain(domain))
        if as_json:
            console.print_json({"ended": _plain(row), "serves": serving})
            return
        out.print(f"{escape(promotion.said(row))} no longer serves {domain}; {escape(serving)} does")


@models_app.command("history")
def history(domain: DomainName, config: Config = None, changes: Changes = None, as_json: AsJson = False) -> None:
    """Which models were promoted for a domain, when, why, and which serves."""
    with errors_to_exit_codes():
        from pipeline import promotion
        from pipeline.catalog import Catalog
        from pipeline.domain import model_name
        from pipeline.storage import open_store

        settings = load_settings(config, changes)
        with closing(Catalog(settings.catalog, reading=True)) as catalog:
            rows = [_plain(row) for row in promotion.history(catalog, settings.domain(domain))]
            asked = promotion.in_use(catalog, settings.domain(domain))
            one, _ = promotion.serving(open_store(settings, reading=True), catalog, settings.domain(domain))
        serving = model_name(one.name)
        if as_json:
            console.print_json({"serves": serving, "asked": asked, "promotions": rows})
            return
        table = console.table("model", "checksum", "role", "since", "until", "why", "shown by")
        for row in rows:
            until = row["ended_at"] or ""
            table.add_row(
                row["name"], row["checksum"][:8], row["role"], row["since"], until, row["reason"], row["evidence"]
            )  # fmt: skip
        out.print(table)
        lost = f"{escape(asked)} cannot be used, mend it or `nowcast models rollback {domain}`; " * (asked != serving)
        out.print(f"{lost}{escape(serving)} serves {domain}")
