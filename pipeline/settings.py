"""Settings: read once at the edge, validated, frozen, and handed down in parts.

Precedence: option (``--set``) > environment (``NOWCAST_*``) > ``nowcast.toml`` > default.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationError

from pipeline.domain import Domain, ProjectedGrid
from pipeline.environment import own_variables
from pipeline.errors import SettingsError
from pipeline.retrain.settings import Retrain
from pipeline.source_settings import Frozen, S3Access

CONFIG_NAME = "nowcast.toml"
SAMPLE_DATA_DEFAULT = "../shared/data"
# read elsewhere, not keys of the settings file
RESERVED_ENVIRONMENT = {"NOWCAST_CONFIG", "NOWCAST_SAMPLE_DATA"}


class Live(Frozen):
    """The resident process (``pipeline.live``).

    Attributes:
        poll_s: between two looks at a source.
        batch_wait_s: a due cycle waits at most so long for those of other domains, to go through the model together.
        ingest_processes: that take in data beside the forecasts; 0 takes it in in the process itself.
        stuck_after_s: a step (a look at all feeds, or a batch) that lasts longer ends the process, which is then
            started again.
    """

    poll_s: float = Field(2.0, ge=0.2, le=600)
    batch_wait_s: float = Field(5.0, ge=0, le=120)
    ingest_processes: int = Field(1, ge=0, le=64)
    stuck_after_s: float = Field(900.0, ge=60, le=86400)


class Alerts(Frozen):
    """What an operator is told (``pipeline.alerts``); 0 switches a rule off.

    Attributes:
        missed_cycles: without a forecast, in a row.
        fallback_cycles: forecast by a fallback, in a row.
        radar_silent_minutes: since a radar's last volume.
        csi_drop: fall of the critical success index of the last day below that of thirty days.
        free_gb: of the disk of the root.
        drift: rain or scores are unlike those of the training of the model in use.
        webhook: address, from the environment only.
    """

    missed_cycles: int = Field(2, ge=0, le=100)
    fallback_cycles: int = Field(3, ge=0, le=100)
    radar_silent_minutes: float = Field(30.0, ge=0, le=1440)
    csi_drop: float = Field(0.15, ge=0, le=1)
    free_gb: float = Field(5.0, ge=0, le=1e6)
    drift: bool = True
    webhook: SecretStr | None = None


class Retention(Frozen):
    """Days after which what we wrote may go, counted from when it was written; 0 keeps it for ever."""

    frames_days: float = Field(0.0, ge=0, le=36500)
    products_days: float = Field(0.0, ge=0, le=36500)
    scores_days: float = Field(0.0, ge=0, le=36500)
    quarantine_days: float = Field(0.0, ge=0, le=36500)
    catalog_days: float = Field(0.0, ge=0, le=36500, description="rows of volumes and alerts")


class Settings(Frozen):
    """Everything that is configured, and where each value came from (``origins``, dotted key -> origin).

    Attributes:
        store: ``s3://bucket/prefix`` of archive, products and all else that is kept; empty is the root itself.
        s3: how that bucket is reached.
        cache_mb: of copies from the bucket, below the root.
    """

    root: Path
    store: str = ""
    s3: S3Access = S3Access()
    cache_mb: int = Field(2048, ge=1)
    catalog: str
    domains: dict[str, Domain]
    log_format: Literal["text", "json"] = "text"
    threads: int = Field(1, ge=1, le=256, description="CPU threads of one process for torch")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="of networks; auto is a GPU where there is one")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="of convolutions in forecasts")
    memory_mb: int = Field(4096, ge=64, description="memory of one pass of a network; larger grids go in tiles")
    prefect_api_url: str = Field("http://127.0.0.1:4200/api", pattern=r"^https?://[^\s/]+(/\S*)?$")
    live: Live = Live()
    alerts: Alerts = Alerts()
    retention: Retention = Retention()
    retrain: Retrain = Retrain()
    config_path: Path | None = None
    origins: dict[str, str] = Field(default_factory=dict)

    def domain(self, name: str) -> Domain:
        """The domain ``name``.

        Raises:
            SettingsError: there is none; the message lists those there are.
        """
        if name not in self.domains:
            known = ", ".join(sorted(self.domains)) or "none"
            raise SettingsError(f"no domain {name!r} in {self.config_path or 'the settings'}; it has: {known}")
        return self.domains[name]


@dataclass(frozen=True)
class _Value:
    value: Any
    origin: str


def load(
    config: Path | None = None,
    options: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """Read, merge and validate the settings.

    Args:
        config: the TOML file; None takes ``NOWCAST_CONFIG``, then ``nowcast.toml`` in the working directory, then
            defaults alone.
        options: dotted key -> text, from the command line.
        environment: defaults to the process environment.

    Raises:
        SettingsError: names the key, the value and what is allowed.
    """
    environment = os.environ if environment is None else environment
    path = _config_path(config, environment)
    values: dict[str, _Value] = {}
    if path is not None:
        _flatten(_read_toml(path), str(path.name), "", values)
    for name, text in own_variables(environment).items():
        if name not in RESERVED_ENVIRONMENT:
            key = name.removeprefix("NOWCAST_").replace("__", ".").lower()
            values[key] = _Value(_parse_text(text), f"environment {name}")
    for key, text in (options or {}).items():
        values[key] = _Value(_parse_text(text), "option")
    base = (path.parent if path is not None else Path.cwd()).resolve()
    tree = _unflatten(values)
    root_value = tree.pop("root", "nowcast-data")
    folder = _expand(str(root_value), "root", environment)
    if not folder or not isinstance(root_value, str):
        raise SettingsError(f"root = {root_value!r}: expected a folder")
    if "://" in folder:
        raise SettingsError(f"root = {folder!r}: a local folder; a bucket is named by store = {folder!r}")
    tree["root"] = root = (base / folder).resolve()
    tree["catalog"] = _expand(str(tree.get("catalog", f"sqlite:///{root / 'catalog.sqlite'}")), "catalog", environment)
    if tree["catalog"].startswith("sqlite:///"):
        tree["catalog"] = f"sqlite:///{base / tree['catalog'].removeprefix('sqlite:///')}"
    elif not re.match(r"postgres(ql(\+psycopg)?)?://", tree["catalog"]):
        raise SettingsError(
            f"catalog = {hide_secrets(tree['catalog'])!r}: expected sqlite:///FILE or postgresql://USER@HOST/DATABASE"
        )
    for name, domain in (tree.get("domains") or {}).items():
        if not re.fullmatch(r"[a-z][a-z0-9_-]{0,39}", name):
            raise SettingsError(
                f"domains.{name}: a domain's name is lower-case letters, digits, - and _ (at most 40), "
                "since it names folders and files"
            )
        if isinstance(domain, dict):
            domain["name"] = name
            source = domain.get("source")
            if isinstance(source, dict) and isinstance(source.get("uri"), str):
                uri = _expand(source["uri"], f"domains.{name}.source.uri", environment)
                source["uri"] = uri if "://" in uri else str((base / uri).resolve())
            if isinstance(domain.get("areas"), str) and domain["areas"]:
                domain["areas"] = str((base / _expand(domain["areas"], f"domains.{name}.areas", environment)).resolve())
            if isinstance(domain.get("warnings"), list):
                domain["warnings"] = [
                    _with_webhook(rule, f"domains.{name}.warnings.{n}", environment)
                    for n, rule in enumerate(domain["warnings"])
                ]
            if isinstance(domain.get("model"), str) and "/" in domain["model"]:
                domain["model"] = str((base / domain["model"]).resolve())
    if isinstance(tree.get("alerts"), dict):
        tree["alerts"] = _with_webhook(tree["alerts"], "alerts", environment)
    if tree.get("store"):
        tree["store"] = _expand(str(tree["store"]), "store", environment)
        _check_uri(tree["store"])
    tree.setdefault("domains", {})
    try:
        settings = Settings(**tree, config_path=path, origins={key: value.origin for key, value in values.items()})
    except ValidationError as err:
        raise SettingsError(_explain(err, values)) from err
    _check_places(settings)
    return settings


def _with_webhook(rule: Any, key: str, environment: Mapping[str, str]) -> Any:
    """A warning whose webhook was read from the environment, where alone it may stand."""
    if not isinstance(rule, dict) or "webhook" not in rule:
        return rule
    text = rule["webhook"]
    if not isinstance(text, str) or not re.fullmatch(r"\$\{\w+\}", text):
        raise SettingsError(
            f'{key}.webhook: whoever knows the address can use it, so write "${{NAME}}" and set the environment '
            "variable NAME"
        )
    return {**rule, "webhook": SecretStr(_expand(text, f"{key}.webhook", environment))}


def _check_uri(uri: str) -> None:
    from pipeline.objects import split_uri

    try:
        split_uri(uri)
    except SettingsError as err:
        raise SettingsError(f"store = {err}") from err


def _check_places(settings: Settings) -> None:
    """Places of domains whose grid is known from the settings must lie on it; others are checked with the first frame.

    Raises:
        SettingsError: one does not.
    """
    for domain in settings.domains.values():
        if isinstance(domain.grid, ProjectedGrid) and (domain.points or domain.rings_of_areas):
            from pipeline.grids import centred_grid
            from pipeline.warnings.places import places_of

            grid = domain.grid
            places_of(domain, centred_grid(grid.crs, grid.shape, grid.spacing_m, grid.centre))


def flat(settings: Settings) -> list[tuple[str, str, str]]:
    """(key, value, origin) of every setting, secrets hidden, for people to read."""
    leaves: dict[str, _Value] = {}
    data = settings.model_dump(mode="json", exclude={"config_path", "origins"})
    for domain in data["domains"].values():
        del domain["name"]
    _flatten(data, "default", "", leaves)
    rows = []
    for key, leaf in sorted(leaves.items(), key=lambda item: ("." in item[0], item[0])):
        origin = next((o for k, o in settings.origins.items() if k == key or key.startswith(k + ".")), "default")
        rows.append((key, hide_secrets(str(leaf.value)), origin))
    return rows


def hide_secrets(text: str) -> str:
    """Replace the password of a URL, before the host or in its query, by ***."""
    text = re.sub(r"(://[^:/@\s]*):\S+@", r"\1:***@", text)
    return re.sub(r"([?&][^=&\s]*(?:pass|secret|token|key)[^=&\s]*=)[^&\s]+", r"\1***", text, flags=re.IGNORECASE)


def _config_path(config: Path | None, environment: Mapping[str, str]) -> Path | None:
    if config is None and environment.get("NOWCAST_CONFIG"):
        config = Path(environment["NOWCAST_CONFIG"])
    if config is None:
        here = Path.cwd() / CONFIG_NAME
        return here if here.is_file() else None
    if config.is_dir():
        config = config / CONFIG_NAME
    if not config.is_file():
        raise SettingsError(f"no settings file at {config}; give one with --config or NOWCAST_CONFIG")
    return config.resolve()


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise SettingsError(f"{path} is not valid TOML: {err}") from err


def _flatten(tree: Mapping[str, Any], origin: str, prefix: str, into: dict[str, _Value]) -> None:
    for key, value in tree.items():
        if "." in key:
            raise SettingsError(f"{prefix}{key!r} ({origin}): names are lower-case letters, digits, - and _")
        if isinstance(value, dict) and value:
            _flatten(value, origin, f"{prefix}{key}.", into)
        else:
            into[f"{prefix}{key}"] = _Value(value, origin)


def _unflatten(values: Mapping[str, _Value]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, leaf in values.items():
        *parents, last = key.split(".")
        node = tree
        for parent in parents:
            child = node.setdefault(parent, {})
            if not isinstance(child, dict):
                raise SettingsError(f"{key}: {parent} is a value, not a table ({leaf.origin})")
            node = child
        node[last] = leaf.value
    return tree


def _parse_text(text: str) -> Any:
    """A TOML value where the text is one (numbers, true, lists), else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _expand(text: str, key: str, environment: Mapping[str, str]) -> str:
    def value_of(match: re.Match[str]) -> str:
        name = match.group(1)
        if name in environment:
            value = environment[name]
            return str(Path(value).expanduser().resolve()) if name == "NOWCAST_SAMPLE_DATA" else value
        if name == "NOWCAST_SAMPLE_DATA":
            return str((Path(__file__).parents[1] / SAMPLE_DATA_DEFAULT).resolve())
        raise SettingsError(f"{key}: the environment variable {name} is not set")

    return re.sub(r"\$\{(\w+)\}", value_of, text)


def _explain(err: ValidationError, values: Mapping[str, _Value]) -> str:
    lines = []
    for item in err.errors():
        # a union puts the branch it took into the path; people know only the keys of their file
        branches = {"native_grid", "projected_grid", "gridded", "synthetic", "volumes", "synthetic_radars"}
        key = ".".join(str(part) for part in item["loc"] if part not in branches)
        origin = _origin_of(key, values)
        given = "" if item["type"] in {"missing", "extra_forbidden"} else f" = {hide_secrets(repr(item['input']))}"
        what = "unknown key" if item["type"] == "extra_forbidden" else item["msg"].removeprefix("Value error, ")
        if isinstance(item["input"], dict):
            given = ""
        lines.append(f"{key}{given}{origin}: {what}")
    return "\n".join(dict.fromkeys(lines))


def _origin_of(key: str, values: Mapping[str, _Value]) -> str:
    """Where a key comes from, or the nearest keys around it: those below it, else those of the table it belongs in."""
    while key:
        origins = {v.origin for k, v in values.items() if k == key or k.startswith(key + ".")}
        if origins:
            return f" ({', '.join(sorted(origins))})"
        key = key.rpartition(".")[0]
    return ""
