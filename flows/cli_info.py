"""The commands that show and mend: networks, models, catalog, config."""

from typing import Any

import typer
from rich.markup import escape

from flows import console
from flows.cli_options import AsJson, Changes, Config, UnusedConfig, load_settings
from flows.console import errors_to_exit_codes, out

networks_app = typer.Typer(help="Architectures of the zoo.", no_args_is_help=True)
models_app = typer.Typer(help="Trained checkpoints.", no_args_is_help=True)
catalog_app = typer.Typer(help="The catalog of frames, forecasts and scores.", no_args_is_help=True)
config_app = typer.Typer(help="The settings.", no_args_is_help=True)


@networks_app.command("list")
def networks_list(config: UnusedConfig = None, as_json: AsJson = False) -> None:
    """Every network of the zoo: parameters, input and output (batch, time, channel, height, width)."""
    from models.zoo import BASELINES, ZOO, describe

    rows = [describe(name) for name in (*ZOO, *BASELINES)]
    if as_json:
        console.print_json(rows)
        return
    table = console.table("name", "parameters", "input", "output", "source")
    for row in rows:
        shapes = (" x ".join(map(str, row[key][1:])) if row[key] else "any" for key in ("input_shape", "output_shape"))
        table.add_row(row["name"], f"{row['parameters']:,}", *shapes, row["source"])
    out.print(table)
    out.print(
        "shapes are time x channel x height x width, of the source's task; docs/networks.md says what each can take"
    )


@models_app.command("list")
def models_list(config: Config = None, changes: Changes = None, as_json: AsJson = False) -> None:
    """Shipped models and those trained in this root."""
    with errors_to_exit_codes():
        from models import checkpoint
        from pipeline.storage import open_store

        store = open_store(load_settings(config, changes))
        places = {
            "shipped": sorted(checkpoint.PRETRAINED.glob("*/card.json")),
            "trained here": [store.get(path) for path in store.glob(store.models(), "*/card.json")],
        }
        rows: list[dict[str, Any]] = []
        for where, cards in places.items():
            for path in cards:
                try:
                    card = checkpoint.read_card(path.parent)
                except checkpoint.CheckpointError as err:
                    console.err.print(f"[red]damaged:[/] {escape(str(err))}")
                    continue
                rows.append(
                    {
                        "name": path.parent.name,
                        "where": where,
                        "network": card.network,
                        "cadences_minutes": card.cadences_minutes,
                        "spacing_m": card.spacing_m,
                        "checksum": card.checksum[:8],
                    }
                )
        if as_json:
            console.print_json(rows)
            return
        table = console.table("name", "where", "network", "cadences (min)", "spacing (m)", "checksum")
        for row in rows:
            cadences = ", ".join(map(str, row["cadences_minutes"]))
            spacing = " to ".join(f"{s:g}" for s in row["spacing_m"])
            table.add_row(row["name"], row["where"], row["network"], cadences, spacing, row["checksum"])
        out.print(table)


@models_app.command("show")
def models_show(name: str, config: Config = None, changes: Changes = None, as_json: AsJson = False) -> None:
    """The card of a model (JSON in any case): data, command, seed, loss, what it may be used for."""
    with errors_to_exit_codes():
        import dataclasses

        from models import checkpoint
        from pipeline.errors import SettingsError
        from pipeline.storage import open_store

        store = open_store(load_settings(config, changes))
        try:
            card = checkpoint.read_card(checkpoint.find(name, (store.models(name),)))
        except checkpoint.CheckpointError as err:
            raise SettingsError(str(err)) from err
        console.print_json(dataclasses.asdict(card))


@catalog_app.command("upgrade")
def catalog_upgrade(config: Config = None, changes: Changes = None, as_json: AsJson = False) -> None:
    """Bring the catalog's schema to this version."""
    with errors_to_exit_codes():
        from pipeline.catalog import upgrade

        settings = load_settings(config, changes)
        version = upgrade(settings.catalog)
        if as_json:
            console.print_json({"schema": version})
        else:
            out.print(f"the catalog has schema {version}")


@catalog_app.command("rebuild")
def catalog_rebuild(config: Config = None, changes: Changes = None, as_json: AsJson = False) -> None:
    """Make the catalog again from the stores and the journal; what it still knows rightly stays."""
    with errors_to_exit_codes():
        from pipeline.catalog import set_aside_damaged
        from pipeline.operations import open_root
        from pipeline.rebuild import rebuild

        settings = load_settings(config, changes)
        for kept in set_aside_damaged(settings.catalog):
            console.err.print(f"[yellow]note:[/] the catalog was damaged; kept as {escape(str(kept))}")
        store, catalog = open_root(settings)
        with console.progress_bars(as_json) as progress:
            result = rebuild(list(settings.domains.values()), store, catalog, progress)
        if as_json:
            console.print_json(result)
        else:
            out.print(
                f"found {result.frames} frames, {result.forecasts} forecasts, {result.scores} score files, "
                f"{result.skipped} skipped cycles, {result.quarantined} quarantined files; "
                "arrival times, latencies and alerts that the catalog did not know are lost; `nowcast verify` fills in "
                "the verified states"
            )
            for path, reason in result.damaged:
                console.err.print(f"[red]damaged:[/] {escape(path)}: {escape(reason)}")
            for name in result.unknown:
                console.err.print(
                    f"[red]not rebuilt:[/] {escape(name)} has data in {escape(str(settings.root))}, but these settings "
                    "do not name it; rebuild with the settings that do"
                )
        if result.damaged or result.unknown:
            raise typer.Exit(console.Exit.PARTLY)


@config_app.command("show")
def config_show(config: Config = None, changes: Changes = None, as_json: AsJson = False) -> None:
    """Each value and where it comes from; secrets are hidden."""
    with errors_to_exit_codes():
        from pipeline.settings import flat

        rows = flat(load_settings(config, changes))
        if as_json:
            console.print_json([{"key": k, "value": v, "origin": o} for k, v, o in rows])
            return
        table = console.table("key", "value", "origin")
        for row in rows:
            table.add_row(*map(escape, row))
        out.print(table)
