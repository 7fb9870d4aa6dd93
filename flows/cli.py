"""The command ``nowcast``. Every command reads the settings, runs one operation and prints what was done.

Heavy modules (torch, xarray, Prefect) are imported inside the commands that need them.
"""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from flows import cli_dataset, cli_info, cli_keep, cli_models, cli_serve, cli_status, console
from flows.cli_options import (
    AsJson,
    Changes,
    Config,
    DomainName,
    From,
    To,
    UnusedConfig,
    UsePrefect,
    Verbose,
    load_settings,
    now,
    options,
    own_command,
    parse_time,
)
from flows.console import errors_to_exit_codes, out

app = typer.Typer(
    help="Precipitation nowcasts from radar: frames, forecasts, CF NetCDF, honest verification.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(cli_models.retrain)
app.command()(cli_serve.up)
app.command()(cli_serve.live)
app.command()(cli_status.status)
app.add_typer(cli_dataset.dataset_app, name="dataset")
app.add_typer(cli_info.networks_app, name="networks")
app.add_typer(cli_info.models_app, name="models")
app.add_typer(cli_info.catalog_app, name="catalog")
app.add_typer(cli_info.config_app, name="config")
app.add_typer(cli_keep.quarantine_app, name="quarantine")
app.command()(cli_keep.housekeeping)
app.command()(cli_keep.compact)
app.command()(cli_keep.explain)


def main() -> None:
    """Entry point of the command."""
    app()


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Version and commit.")] = False) -> None:
    if version:
        from pipeline.version import software_version

        out.print(f"nowcast {software_version()}", highlight=False)
        raise typer.Exit


def _operate(
    flow: str,
    settings: Any,
    domain: str,
    changes: list[str] | None,
    as_json: bool,
    use_prefect: bool,
    **arguments: Any,
) -> None:
    """Run an operation: through a Prefect server that answers, else bare; print its report."""
    from pipeline import logs, operations

    settings.domain(domain)  # a wrong name is said before anything starts
    start, end = arguments.get("start"), arguments.get("end")
    if start is not None and end is not None and end < start:
        raise typer.BadParameter(f"--to {end.isoformat()} lies before --from {start.isoformat()}")
    with logs.log_context(domain=domain):
        if _flows_wanted(settings, use_prefect):
            [report] = _run_flow(flow, settings, changes, domain=domain, **arguments)
        else:
            operation = operations.run if flow == "nowcast" else getattr(operations, flow)
            with console.progress_bars(as_json) as progress:
                report = operation(settings, domain, now=now(), progress=progress, **arguments)
    console.print_report(report, as_json)


@app.command()
def ingest(
    domain: DomainName,
    start: From = None,
    end: To = None,
    config: Config = None,
    changes: Changes = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
    use_prefect: UsePrefect = False,
) -> None:
    """Turn what the source received into frames. Without times: all the source holds."""
    with errors_to_exit_codes():
        settings = load_settings(config, changes, verbose)
        _operate("ingest", settings, domain, changes, as_json, use_prefect, start=start, end=end)


@app.command()
def clutter(
    domain: DomainName,
    start: From = None,
    end: To = None,
    config: Config = None,
    changes: Changes = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Learn where each radar sees the ground, from its dry volumes; later ingests remove echo there."""
    with errors_to_exit_codes():
        settings = load_settings(config, changes, verbose)
        from pipeline import operations

        with console.progress_bars(as_json) as progress:
            learned = operations.learn_clutter(settings, domain, start, end, now(), progress)
        console.print_clutter(learned, as_json)


@app.command()
def run(
    domain: DomainName,
    reference_time: Annotated[
        datetime | None,
        typer.Option("--reference-time", parser=parse_time, metavar="TIME", help="Default: the newest frame."),
    ] = None,
    config: Config = None,
    changes: Changes = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
    use_prefect: UsePrefect = False,
) -> None:
    """One forecast: ingest what it needs, forecast, publish."""
    with errors_to_exit_codes():
        settings = load_settings(config, changes, verbose)
        _operate("nowcast", settings, domain, changes, as_json, use_prefect, reference_time=reference_time)


@app.command()
def backfill(
    domain: DomainName,
    start: Annotated[datetime, typer.Option("--from", parser=parse_time, metavar="TIME", help="First reference time.")],
    end: Annotated[datetime, typer.Option("--to", parser=parse_time, metavar="TIME", help="Last reference time.")],
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes that forecast.")] = 1,
    dask: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS|local", help="They are those of a Dask cluster; `local` starts one here."),
    ] = None,
    config: Config = None,
    changes: Changes = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
    use_prefect: UsePrefect = False,
) -> None:
    """Hindcasts for a period: ingest what they need before and after, forecast, verify."""
    with errors_to_exit_codes():
        settings = load_settings(config, changes, verbose)
        arguments = {"start": start, "end": end, "workers": workers, "dask": dask}
        _operate("backfill", settings, domain, changes, as_json, use_prefect, **arguments)


@app.command()
def verify(
    domain: DomainName,
    start: From = None,
    end: To = None,
    external: Annotated[
        str | None,
        typer.Option(metavar="GLOB", help="Score these foreign CF nowcasts beside ours, on the same pixels."),
    ] = None,
    name: Annotated[str, typer.Option(help="What to call the foreign method.")] = "external",
    config: Config = None,
    changes: Changes = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
    use_prefect: UsePrefect = False,
) -> None:
    """Score forecasts against the observations that have arrived. Without times: all of them."""
    with errors_to_exit_codes():
        settings = load_settings(config, changes, verbose)
        arguments = {"start": start, "end": end, "external": external, "name": name}
        _operate("verify", settings, domain, changes, as_json, use_prefect, **arguments)


@app.command()
def report(
    domain: DomainName,
    start: From = None,
    end: To = None,
    period: Annotated[
        str | None, typer.Option(metavar="day|week|month", help="Instead of times: the last one that is over, UTC.")
    ] = None,
    pair: Annotated[
        tuple[str, str] | None, typer.Option(metavar="METHOD METHOD", help="Which two the summary compares.")
    ] = None,
    folder: Annotated[Path | None, typer.Option("--out", help="Folder; default: reports in the root.")] = None,
    config: Config = None,
    changes: Changes = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
    use_prefect: UsePrefect = False,
) -> None:
    """The verification page (HTML) and the scores (CSV). Without times: all the catalog knows."""
    with errors_to_exit_codes():
        settings = load_settings(config, changes, verbose)
        settings.domain(domain)
        if period not in (None, "day", "week", "month"):
            raise typer.BadParameter(f"--period {period}: expected day, week or month")
        arguments: dict[str, Any] = {"start": start, "end": end, "period": period, "pair": pair}
        if _flows_wanted(settings, use_prefect):
            out_folder = str(folder) if folder else None
            [page] = _run_flow("report", settings, changes, domain=domain, out=out_folder, **arguments)
        else:
            from pipeline import operations

            with console.err.status("writing the page"):
                page = operations.report(settings, domain, now=now(), out=folder, **arguments)
        console.print_page(page, as_json)


@app.command()
def view(
    domain: DomainName,
    reference_time: Annotated[
        datetime | None,
        typer.Option("--reference-time", parser=parse_time, metavar="TIME", help="Default: the newest forecast."),
    ] = None,
    folder: Annotated[Path | None, typer.Option("--out", help="Folder; default: view in the root.")] = None,
    config: Config = None,
    changes: Changes = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
    use_prefect: UsePrefect = False,
) -> None:
    """The page that shows a forecast on a map, past and future; open it from disk or from any web server."""
    with errors_to_exit_codes():
        settings = load_settings(config, changes, verbose)
        settings.domain(domain)
        if _flows_wanted(settings, use_prefect):
            arguments = {"reference_time": reference_time, "out": str(folder) if folder else None}
            [written] = _run_flow("view", settings, changes, domain=domain, **arguments)
        else:
            from pipeline import operations

            with console.err.status("writing the page"):
                written = operations.view(settings, domain, reference_time, folder)
        console.print_view(written, as_json)


@app.command()
def train(
    domains: Annotated[list[str], typer.Argument(metavar="DOMAIN...", help="Domains whose archive to train on.")],
    name: Annotated[str, typer.Option(help="Name of the model; also its folder below root/models.")] = "trained",
    network: Annotated[str, typer.Option(help="Architecture; see `nowcast networks list`.")] = "convlstm",
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 1000,
    minutes: Annotated[float, typer.Option(min=0.01, help="Stop after this time.")] = 60.0,
    crop: Annotated[int, typer.Option(min=16, help="Side of the random squares, cells.")] = 128,
    batch: Annotated[int, typer.Option(min=1, help="Squares in a step.")] = 4,
    lead_frames: Annotated[int, typer.Option(min=1, help="Frames to forecast.")] = 8,
    learning_rate: Annotated[float, typer.Option(help="Of Adam, at the start.")] = 1e-3,
    accumulate: Annotated[int, typer.Option(min=1, help="Passes of so many squares in a step.")] = 1,
    feed: Annotated[str, typer.Option(help="own: its own output; teacher: the truth; scheduled: in between.")] = "own",
    loss: Annotated[str, typer.Option(help="Default: what fits the network's head; see docs/networks.md.")] = "",
    gradient_weight: Annotated[float, typer.Option(min=0, help="Of a gradient difference term, against blur.")] = 0.0,
    adversarial: Annotated[float, typer.Option(min=0, help="Weight of an adversarial term, against blur.")] = 0.0,
    validate_every: Annotated[int, typer.Option(min=1, help="Steps; the state is saved as often.")] = 100,
    patience: Annotated[int, typer.Option(min=1, help="Validations without gain before it stops.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Of weights and samples.")] = 0,
    bf16: Annotated[bool, typer.Option("--bf16", help="Convolutions in bfloat16.")] = False,
    data_only: Annotated[
        Path | None, typer.Option(help="Write the data there, to train with `python -m models.training` elsewhere.")
    ] = None,
    config: Config = None,
    changes: Changes = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
    use_prefect: UsePrefect = False,
) -> None:
    """Train a network on the archive; writes weights, card and metrics. A killed run goes on where it was."""
    with errors_to_exit_codes():
        settings = load_settings(config, changes, verbose)
        for domain in domains:
            settings.domain(domain)
        from pydantic import ValidationError

        from pipeline import operations
        from pipeline.errors import SettingsError

        try:
            request = operations.TrainingRequest(
                name=name, network=network, steps=steps, minutes=minutes, crop=crop, batch=batch,
                lead_frames=lead_frames, learning_rate=learning_rate, accumulate=accumulate, feed=feed, loss=loss,
                gradient_weight=gradient_weight, adversarial=adversarial, validate_every=validate_every,
                patience=patience, seed=seed, bf16=bf16, data_only=data_only,
                command=own_command(),
            )  # fmt: skip
        except ValidationError as err:
            raise SettingsError("; ".join(f"--{e['loc'][0]} {e['input']}: {e['msg']}" for e in err.errors())) from err
        if _flows_wanted(settings, use_prefect):
            result = _run_flow("train", settings, changes, domains=domains, request=request)
            console.print_training(result, as_json)
            return
        with console.progress_bars(as_json) as progress:

            def show(step: int, row: dict[str, float]) -> None:
                progress("train", step, steps)

            result = operations.train(settings, domains, request, now(), show)
        console.print_training(result, as_json)


def _flows_wanted(settings: Any, use_prefect: bool) -> bool:
    from flows.prefect_link import server_answers

    return use_prefect or server_answers(settings.prefect_api_url)


def _run_flow(name: str, settings: Any, changes: list[str] | None, **arguments: Any) -> Any:
    """Call the flow of that name in this process, against the server that answers or an embedded one."""
    from importlib import import_module

    from flows import prefect_link
    from pipeline.errors import SettingsError
    from pipeline.settings import hide_secrets

    for change in changes or []:
        if hide_secrets(change) != change:
            raise SettingsError(
                f"--set {hide_secrets(change)}: Prefect would store the password with the run's parameters; "
                "give it in the environment, for example NOWCAST_CATALOG"
            )
    api_url = settings.prefect_api_url if prefect_link.server_answers(settings.prefect_api_url) else None
    with prefect_link.prefect_settings(settings.root, api_url):
        flow = getattr(import_module(f"flows.{name}"), name)
        config = str(settings.config_path) if settings.config_path else None
        state = flow(config=config, changes=options(changes), return_state=True, **arguments)
        result = state.result(raise_on_failure=False)  # of a run in which something was not done: what was done
    if isinstance(result, BaseException):
        raise result
    return result


@app.command()
def demo(
    root: Annotated[Path, typer.Option(help="Folder for everything the demo writes.")] = Path("nowcast-demo"),
    config: UnusedConfig = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """A small synthetic rain field through the whole chain: frames, forecasts, NetCDF, scores, report, map page."""
    with errors_to_exit_codes():
        from pipeline import demo as demonstration
        from pipeline import logs, operations
        from pipeline.errors import SettingsError

        settings = demonstration.settings(root)
        logs.configure(settings.log_format, verbose)
        with console.progress_bars(as_json) as progress:
            done = operations.backfill(
                settings, demonstration.DOMAIN, *demonstration.PERIOD, now=now(), progress=progress
            )
        page = operations.report(settings, demonstration.DOMAIN, None, None, None, now())
        try:
            shown = operations.view(settings, demonstration.DOMAIN, None, None)
        except SettingsError as error:
            shown, done.notes = None, [*done.notes, f"no map page: {error}"]
        if as_json:
            console.print_json({"report": done, "page": page, "view": shown})
            return
        console.print_report(done, as_json=False)
        first = settings.root / done.products[0]
        out.print(f"NetCDF   {escape(str(first))} and {len(done.products) - 1} more")
        if shown is not None:
            console.print_view(shown, as_json=False)
        console.print_page(page, as_json=False)


if __name__ == "__main__":
    main()
