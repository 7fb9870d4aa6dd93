"""Options that the commands share, and how they become settings."""

import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer


def own_command() -> str:
    """The command line for a card; absolute paths say nothing to others and are cut to their last part."""
    return "nowcast " + shlex.join(Path(word).name if word.startswith("/") else word for word in sys.argv[1:])


def parse_time(text: str) -> datetime:
    """A time on the command line."""
    from pipeline import times

    try:
        return times.parse_time(text)
    except ValueError as err:
        raise typer.BadParameter(str(err)) from err


DomainName = Annotated[str, typer.Argument(metavar="DOMAIN", help="Name of a domain of the settings.")]
Config = Annotated[
    Path | None,
    typer.Option("--config", help="Settings file; else NOWCAST_CONFIG, else nowcast.toml here.", show_default=False),
]
UnusedConfig = Annotated[
    Path | None, typer.Option("--config", help="Accepted after every command; this one needs no settings.", hidden=True)
]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, e.g. --set root=/data.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log every step on stderr.")]
UsePrefect = Annotated[
    bool, typer.Option("--prefect", help="Run as a Prefect flow even if no server answers (starts one, about 8 s).")
]
From = Annotated[
    datetime | None, typer.Option("--from", parser=parse_time, metavar="TIME", help="ISO 8601, UTC, inclusive.")
]
To = Annotated[
    datetime | None, typer.Option("--to", parser=parse_time, metavar="TIME", help="ISO 8601, UTC, inclusive.")
]


def load_settings(config: Path | None, changes: list[str] | None, verbose: bool = False) -> Any:
    """Read the settings and send the log to stderr as they say."""
    from pipeline import logs, settings

    loaded = settings.load(config, options(changes))
    logs.configure(loaded.log_format, verbose)
    return loaded


def options(changes: list[str] | None) -> dict[str, str]:
    """KEY=VALUE words as a dictionary."""
    from pipeline.errors import SettingsError

    found = {}
    for change in changes or []:
        key, equals, value = change.partition("=")
        if not equals:
            raise SettingsError(f"--set {change}: expected KEY=VALUE")
        found[key.strip()] = value
    return found


def now() -> datetime:
    """The wall clock; only the edge reads it."""
    return datetime.now(UTC)
