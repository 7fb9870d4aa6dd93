"""The commands that keep house: housekeeping, compact, quarantine, explain, backup and restore of the catalog."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from flows import console
from flows.cli_info import catalog_app
from flows.cli_options import AsJson, Changes, Config, DomainName, load_settings, now, parse_time
from flows.console import errors_to_exit_codes, out

quarantine_app = typer.Typer(help="What could not be used: look at it, keep, drop or retry it.", no_args_is_help=True)

Keys = Annotated[list[str], typer.Argument(metavar="KEY...", help="DOMAIN/KEY as listed, or KEY if one domain has it.")]


def housekeeping(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Remove nothing; print what would go.")] = False,
    config: Config = None,
    changes: Changes = None,
    as_json: AsJson = False,
) -> None:
    """Remove what is older than `retention` says and no longer needed; print why the rest stays."""
    with errors_to_exit_codes():
        from pipeline.operations import open_root
        from pipeline.retention import housekeep

        settings = load_settings(config, changes)
        store, catalog = open_root(settings)
        with console.progress_bars(as_json) as progress:
            done = housekeep(settings, store, catalog, now(), dry_run, progress)
        catalog.close()
        stays = [
            {"part": part, "domain": domain, "reason": reason, "count": count, "for_example": example}
            for (part, domain, reason), (count, example) in sorted(done.stays.items())
        ]
        if as_json:
            gone = {"dry_run": dry_run, "gone": done.gone, "bytes": done.bytes, "problems": done.problems}
            console.print_json(gone | {"stays": stays})
        else:
            word = "would go" if dry_run else "gone"
            for one in done.gone:
                when = f", written {one.written_at}" if one.written_at else ""
                out.print(escape(f"{word}: {one.part} {one.domain} {one.name} ({one.objects} objects{when})"))
            out.print(f"{len(done.gone)} {word}, {done.bytes / 2**20:.1f} MiB")
            table = console.table("stays", "domain", "count", "why", "for example")
            for row in stays:
                table.add_row(*(escape(str(row[key])) for key in ("part", "domain", "count", "reason", "for_example")))
            out.print(table)
        _end(done.problems)


def compact(
    domains: Annotated[list[str] | None, typer.Argument(metavar="[DOMAIN]...", help="Default: all.")] = None,
    config: Config = None,
    changes: Changes = None,
    as_json: AsJson = False,
) -> None:
    """Put the frames of each closed day (older than two days) into one object."""
    with errors_to_exit_codes():
        from pipeline import compaction
        from pipeline.operations import open_root

        settings = load_settings(config, changes)
        chosen = [settings.domain(name) for name in domains or settings.domains]
        store, catalog = open_root(settings)
        with console.progress_bars(as_json) as progress:
            done = {d.name: compaction.compact(d, store, catalog, now(), progress) for d in chosen}
        catalog.close()
        if as_json:
            console.print_json(done)
        else:
            for name, one in done.items():
                out.print(f"{name}: {one.days} days, {one.objects_before} objects before, {one.objects_after} after")
        _end([problem for one in done.values() for problem in one.problems])


def explain(
    domain: DomainName,
    time: Annotated[datetime, typer.Argument(parser=parse_time, metavar="TIME", help="Reference time, ISO 8601, UTC.")],
    config: Config = None,
    changes: Changes = None,
    as_json: AsJson = False,
) -> None:
    """Why there is this forecast, or none: product, frames, volumes, decisions, model, verification."""
    with errors_to_exit_codes():
        from pipeline import explain as explaining
        from pipeline import explain_text
        from pipeline.catalog import Catalog
        from pipeline.storage import open_store

        settings = load_settings(config, changes)
        of = settings.domain(domain)
        store, catalog = open_store(settings, reading=True), Catalog(settings.catalog, reading=True)
        found = explaining.explain(of, store, catalog, time, now())
        catalog.close()
        if as_json:
            console.print_json({"verdict": explain_text.verdict(found, of), **vars(found)})
            return
        for line in explain_text.lines(found, of):
            out.print(escape(line), highlight=False)


@quarantine_app.command("list")
def quarantine_list(
    domain: Annotated[str | None, typer.Argument(metavar="[DOMAIN]", help="Default: all.")] = None,
    config: Config = None,
    changes: Changes = None,
    as_json: AsJson = False,
) -> None:
    """What is in quarantine, and whether somebody has looked at it."""
    with errors_to_exit_codes():
        settings, store, catalog = _root(config, changes)
        from pipeline import quarantine

        found = quarantine.items(store, catalog, [settings.domain(domain).name] if domain else settings.domains)
        catalog.close()
        if as_json:
            console.print_json([{"name": one.name, **vars(one)} for one in found])
            return
        table = console.table("key", "state", "time", "MiB kept", "reason")
        for one in found:
            size = f"{one.bytes / 2**20:.2f}" if one.files else "none"
            table.add_row(escape(one.name), one.state, one.nominal_time, size, escape(one.reason))
        out.print(table)
        out.print(f"{sum(not one.is_reviewed for one in found)} of {len(found)} not looked at")


@quarantine_app.command("show")
def quarantine_show(key: str, config: Config = None, changes: Changes = None, as_json: AsJson = False) -> None:
    """All that is known of one thing in quarantine, as JSON in any case."""
    with errors_to_exit_codes():
        settings, store, catalog = _root(config, changes)
        from pipeline import quarantine

        one = quarantine.find(quarantine.items(store, catalog, settings.domains), key)
        catalog.close()
        console.print_json({"name": one.name, **vars(one)})


@quarantine_app.command("keep")
def quarantine_keep(keys: Keys, config: Config = None, changes: Changes = None, as_json: AsJson = False) -> None:
    """Looked at: it stays until retention removes it."""
    _review("keep", keys, config, changes, as_json)


@quarantine_app.command("drop")
def quarantine_drop(keys: Keys, config: Config = None, changes: Changes = None, as_json: AsJson = False) -> None:
    """Looked at: remove the kept bytes; the reason stays in catalog and journal."""
    _review("drop", keys, config, changes, as_json)


@quarantine_app.command("retry")
def quarantine_retry(keys: Keys, config: Config = None, changes: Changes = None, as_json: AsJson = False) -> None:
    """Hand it to the next ingest, for example after the settings were mended."""
    _review("retry", keys, config, changes, as_json)


@catalog_app.command("backup")
def catalog_backup(file: Path, config: Config = None, changes: Changes = None, as_json: AsJson = False) -> None:
    """Copy the catalog to FILE while the work goes on."""
    with errors_to_exit_codes():
        from pipeline import backup
        from pipeline.storage import open_store

        settings = load_settings(config, changes)
        rows = backup.backup(settings.catalog, file.resolve(), open_store(settings))
        if as_json:
            console.print_json({"file": file, "rows": rows})
        else:
            out.print(f"{escape(str(file))}: {', '.join(f'{n} {name}' for name, n in rows.items())}")


@catalog_app.command("restore")
def catalog_restore(file: Path, config: Config = None, changes: Changes = None, as_json: AsJson = False) -> None:
    """Put the backup FILE in the place of the catalog, which is kept aside; stop what works on the root first."""
    with errors_to_exit_codes():
        from pipeline import backup
        from pipeline.storage import open_store

        settings = load_settings(config, changes)
        done = backup.restore(settings.catalog, file, open_store(settings))
        if as_json:
            console.print_json(done)
            return
        for kept in done.kept:
            out.print(f"the catalog that stood is kept as {escape(str(kept))}")
        out.print("restored; `nowcast catalog rebuild` finds what came after the backup")


def _root(config: Path | None, changes: list[str] | None) -> tuple[Any, Any, Any]:
    from pipeline.operations import open_root

    settings = load_settings(config, changes)
    return settings, *open_root(settings)


def _review(action: str, keys: list[str], config: Path | None, changes: list[str] | None, as_json: bool) -> None:
    with errors_to_exit_codes():
        settings, store, catalog = _root(config, changes)
        from pipeline import quarantine

        done = quarantine.review(action, keys, store, catalog, settings.domains, now())
        catalog.close()
        if as_json:
            console.print_json([one.name for one in done])
            return
        said = {"keep": "kept", "drop": "dropped", "retry": "handed to the next ingest"}[action]
        for one in done:
            out.print(f"{escape(one.name)}: {said}")


def _end(problems: list[str]) -> None:
    for problem in problems:
        console.err.print(f"[red]not done:[/] {escape(problem)}")
    if problems:
        raise typer.Exit(console.Exit.PARTLY)
