"""The commands ``nowcast dataset``: training data as a folder."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from flows import console
from flows.cli_options import AsJson, Changes, Config, From, To, UnusedConfig, Verbose, load_settings, now, own_command
from flows.console import errors_to_exit_codes, out

dataset_app = typer.Typer(help="Training data from the archive.", no_args_is_help=True)


@dataset_app.command("build")
def build(
    folder: Annotated[Path, typer.Argument(help="Where to write it; must not exist.")],
    domains: Annotated[list[str], typer.Argument(metavar="DOMAIN...", help="Domains whose archive goes into it.")],
    start: From = None,
    end: To = None,
    validation_share: Annotated[float, typer.Option(help="The newest share of each domain, to validate with.")] = 0.15,
    gap_minutes: Annotated[float, typer.Option(help="Between what is learnt from and what is validated with.")] = 60.0,
    correlation_below: Annotated[
        float, typer.Option(help="Learn from sequences whose first and last frame correlate less; 1.01 takes all.")
    ] = 0.75,
    floor: Annotated[
        float, typer.Option(help="Rain below it is none, mm/h; the sources' own if that is higher.")
    ] = 0.1,
    config: Config = None,
    changes: Changes = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Write frames, motion and the times to learn from into a folder that needs only torch and numpy."""
    with errors_to_exit_codes():
        settings = load_settings(config, changes, verbose)
        from pydantic import ValidationError

        from pipeline import dataset
        from pipeline.errors import SettingsError
        from pipeline.storage import open_store

        chosen = [settings.domain(name) for name in dict.fromkeys(domains)]
        try:
            request = dataset.DatasetRequest(
                start=start, end=end, validation_share=validation_share, gap_minutes=gap_minutes,
                correlation_below=correlation_below, floor_mm_h=floor,
            )  # fmt: skip
        except ValidationError as err:
            raise SettingsError("; ".join(f"{e['loc'][0]} {e['input']}: {e['msg']}" for e in err.errors())) from err
        with console.progress_bars(as_json) as progress:
            built = dataset.build(chosen, open_store(settings), folder, request, own_command(), now(), progress)
        if as_json:
            console.print_json(built)
            return
        table = console.table("domain", "frames", "to learn from", "kept by the filter", "to validate with")
        for name, count in built.frames.items():
            table.add_row(
                name, str(count), str(built.train[name]), f"{built.kept[name]:.0%}", str(built.validation[name])
            )
        out.print(table)
        out.print(f"dataset  {escape(str(built.folder))}, {built.megabytes:g} MB")


@dataset_app.command("show")
def show(folder: Path, config: UnusedConfig = None, as_json: AsJson = False) -> None:
    """What a dataset holds, and where it comes from."""
    with errors_to_exit_codes():
        from models import dataset
        from pipeline.errors import SettingsError

        try:
            series, card = dataset.load(folder)
        except ValueError as err:
            raise SettingsError(str(err)) from err
        if as_json:
            console.print_json(card)
            return
        table = console.table("domain", "frames", "cadence", "spacing", "learn", "validate", "period", "terms")
        for name, one in series.items():
            about = one.facts.about
            table.add_row(
                name, str(len(one.pixels)), f"{one.facts.cadence_minutes} min", f"{one.facts.spacing_m:g} m",
                str(len(one.train)), str(len(one.validation)), escape(str(about.get("period", ""))),
                escape(str(about.get("license", ""))),
            )  # fmt: skip
        out.print(table)
