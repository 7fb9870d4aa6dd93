"""Settings and domains: read once at the edge, validated, frozen, and handed down in parts.

Precedence: option (``--set``) > environment (``NOWCAST_*``) > ``nowcast.toml`` > default.
"""

import math
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)
from pyproj import CRS
from pyproj.exceptions import CRSError

from pipeline.errors import SettingsError

CONFIG_NAME = "nowcast.toml"
SAMPLE_DATA_DEFAULT = "../shared/data"
DRIZZLE_FLOOR_MM_H = 0.1
# read elsewhere, not keys of the settings file
RESERVED_ENVIRONMENT = {"NOWCAST_CONFIG", "NOWCAST_SAMPLE_DATA"}

Cadence = Literal[5, 6, 10]
ReaderName = Literal["bom_rainfields", "knmi_hdf5", "mch_gif", "fmi_pgm", "odim_comp", "mrms_grib2"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ZR(_Frozen):
    """Z = a R**b with R in mm/h. Default: Marshall and Palmer 1948."""

    a: float = Field(200.0, gt=0, le=2000)
    b: float = Field(1.6, gt=0.5, le=3)


class Scale(_Frozen):
    """Reflectivity (dBZ) of pixel 0 and pixel 255."""

    dbz_min: float = Field(-10.0, ge=-40, le=20)
    dbz_max: float = Field(60.0, ge=30, le=100)


class Quality(_Frozen):
    """Checks of what was received; a number of 0, or false, switches a step off.

    ``min_rhohv``, ``min_fluctuation_db``, ``ground_echo`` and ``min_echo_gates`` are for volumes
    (``pipeline.radar.quality``). Reflectivity is held at ``hail_cap_dbz`` before it becomes rain, since hail is
    not. A cell above ``max_rate_mm_h`` is removed (the largest 5-minute rates on record stay below 500 mm/h); a
    frame whose observed share is below ``min_coverage`` is quarantined, since a silent radar must not read as a dry
    one.
    """

    max_rate_mm_h: float = Field(500.0, gt=0)
    min_coverage: float = Field(0.01, ge=0, le=1)
    min_rhohv: float = Field(0.8, ge=0, le=1)
    min_fluctuation_db: float = Field(2.5, ge=0, le=10)
    ground_echo: bool = True
    min_echo_gates: int = Field(10, ge=0, le=1000)
    hail_cap_dbz: float = Field(55.0, ge=40, le=100)


class NativeGrid(_Frozen):
    """The grid of a gridded source, or block means of it (in rain rate) over coarsen x coarsen cells."""

    native: Literal[True]
    coarsen: int = Field(1, ge=1, le=64)


class ProjectedGrid(_Frozen):
    """A grid of our own around ``centre`` (longitude, latitude)."""

    crs: str
    shape: tuple[Annotated[int, Field(ge=16, le=10000)], Annotated[int, Field(ge=16, le=10000)]]
    spacing_m: float = Field(gt=0, le=20000)
    centre: tuple[Annotated[float, Field(ge=-360, le=360)], Annotated[float, Field(ge=-90, le=90)]]

    @field_validator("crs")
    @classmethod
    def _projected(cls, crs: str) -> str:
        try:
            parsed = CRS.from_user_input(crs)
        except CRSError as err:
            raise ValueError(f"not a coordinate reference system that PROJ knows: {err}") from err
        if not parsed.is_projected or parsed.axis_info[0].unit_name != "metre":
            raise ValueError("must be a projected coordinate reference system in metres, since spacing_m is")
        return crs


class GriddedSource(_Frozen):
    """A folder of composites that a ``reader`` understands, whose names carry the time."""

    kind: Literal["gridded"]
    reader: ReaderName
    uri: str
    max_file_mb: float = Field(512.0, gt=0)


class SyntheticSource(_Frozen):
    """Evolving power-law rain; a pure function of seed and time (``pipeline.sources.synthetic``)."""

    kind: Literal["synthetic"]
    seed: int = Field(0, ge=0)
    event_hours: int = Field(6, ge=1, le=240)
    max_speed_m_s: float = Field(18.0, ge=0, le=60)


class RadarSite(_Frozen):
    """Position of an antenna for formats that carry none, and its height above sea level."""

    longitude: float = Field(ge=-360, le=360)
    latitude: float = Field(ge=-90, le=90)
    altitude_m: float = Field(ge=-500, le=9000)


class _Gridded(_Frozen):
    """How polar volumes become a field: see ``pipeline.radar.gridding`` and ``pipeline.radar.mosaic``.

    Attributes:
        level, altitude_m: what a frame shows.
        max_range_km: gates further away are not used.
        mosaic: how radars are combined.
        processes: that decode and grid at the same time.
    """

    level: Literal["cappi", "lowest", "column_max"] = "cappi"
    altitude_m: float = Field(2000.0, ge=0, le=20000)
    max_range_km: float = Field(240.0, ge=10, le=500)
    mosaic: Literal["weighted", "max"] = "weighted"
    processes: int = Field(1, ge=1, le=256)


class VolumesSource(_Gridded):
    """A folder of polar volumes of one or many radars, in any format that xradar reads.

    Attributes:
        pattern: regular expression of the whole file name. Its groups: ``time`` (read with ``time_format``; without it
            the header of ODIM files is read), ``radar`` (default: all files are of one radar), ``chunk`` (to join).
        join: ``none``: a file is a volume (or ``scans_per_file`` of them, ``scan_minutes`` apart). ``cycle``: files of
            a radar within ``cycle_minutes`` are one volume. ``chunks``: files of one time, in the order of their
            ``chunk``, are the pieces of one file.
        reliable_times: false where ray times are wrong; the time of the name then counts.
        sites: positions of radars whose format carries none.
    """

    kind: Literal["volumes"]
    uri: str
    pattern: str
    time_format: str = "%Y%m%d%H%M%S"
    join: Literal["none", "cycle", "chunks"] = "none"
    cycle_minutes: int = Field(5, ge=1, le=30)
    scans_per_file: int = Field(1, ge=1, le=20)
    scan_minutes: int = Field(5, ge=1, le=30)
    reliable_times: bool = True
    sites: dict[str, RadarSite] = {}
    max_file_mb: float = Field(512.0, gt=0)

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            groups = re.compile(pattern).groupindex
        except re.error as err:
            raise ValueError(f"not a regular expression: {err}") from err
        if unknown := set(groups) - {"time", "radar", "chunk"}:
            raise ValueError(f"unknown groups {', '.join(sorted(unknown))}; it may have time, radar and chunk")
        return pattern

    @model_validator(mode="after")
    def _joins_what_it_names(self) -> Self:
        groups = re.compile(self.pattern).groupindex
        if (self.join == "chunks") != ("chunk" in groups):
            raise ValueError("join = 'chunks' and a group 'chunk' in the pattern belong together")
        if self.join != "none" and ("time" not in groups or self.scans_per_file > 1):
            raise ValueError("join needs a group 'time' in the pattern, and scans_per_file = 1")
        return self


class SyntheticRadarsSource(_Gridded):
    """Synthetic rain as radars at ``radars`` would see it (``pipeline.sources.synthetic_radars``)."""

    kind: Literal["synthetic_radars"]
    radars: dict[str, RadarSite] = Field(min_length=1, max_length=500)
    seed: int = Field(0, ge=0)
    event_hours: int = Field(6, ge=1, le=240)
    max_speed_m_s: float = Field(18.0, ge=0, le=60)


PolarSource = VolumesSource | SyntheticRadarsSource


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _kind_of_grid(value: Any) -> str:
    native = "native" in value or "coarsen" in value if isinstance(value, dict) else isinstance(value, NativeGrid)
    return "native_grid" if native else "projected_grid"


class Domain(_Frozen):
    """A region with one grid, cadence, source and model. ``lead_frames`` defaults to two hours.

    ``institution`` and ``license`` go into every product: who runs the system, and the terms of the radar data.
    """

    cadence_minutes: Cadence
    grid: Annotated[
        Annotated[NativeGrid, Tag("native_grid")] | Annotated[ProjectedGrid, Tag("projected_grid")],
        Discriminator(_kind_of_grid),
    ]
    source: Annotated[
        GriddedSource | SyntheticSource | VolumesSource | SyntheticRadarsSource, Field(discriminator="kind")
    ]
    input_frames: int = Field(5, ge=2, le=30)
    lead_frames: int = Field(12, ge=1, le=72)  # _two_hours fits it to the cadence
    product: Literal["surface_rain"] = "surface_rain"
    zr: ZR = ZR()
    scale: Scale = Scale()
    quality: Quality = Quality()
    max_gap: int = Field(1, ge=0, le=6)
    thresholds_mm_h: Annotated[tuple[float, ...], BeforeValidator(_as_tuple)] = (0.5, 2.0, 5.0, 10.0, 30.0)
    model: str = "convlstm"
    institution: str = Field("not stated; the operator of this system is responsible for its use", max_length=500)
    license: str = Field("terms of the radar data's producer apply", max_length=2000)
    name: str = ""

    @model_validator(mode="before")
    @classmethod
    def _two_hours(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        cadence = data.get("cadence_minutes")
        # a wrong cadence is reported as such, not as missing lead_frames
        known = 10 if cadence is None or cadence not in get_args(Cadence) else cadence
        return {"lead_frames": 120 // known, **data}

    @property
    def cadence(self) -> timedelta:
        """Spacing of the frames."""
        return timedelta(minutes=self.cadence_minutes)

    @property
    def model_name(self) -> str:
        """The model's name, also where ``model`` is a path."""
        return self.model.rstrip("/").rsplit("/", 1)[-1]

    @property
    def horizon(self) -> timedelta:
        """The last lead time."""
        return self.lead_frames * self.cadence

    @field_validator("thresholds_mm_h")
    @classmethod
    def _rising(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if not values or any(v < DRIZZLE_FLOOR_MM_H for v in values) or list(values) != sorted(set(values)):
            raise ValueError("must rise strictly and start at 0.1 mm/h (the drizzle floor) or above")
        return values

    @model_validator(mode="after")
    def _grid_fits_source(self) -> Self:
        if isinstance(self.source, GriddedSource) != isinstance(self.grid, NativeGrid):
            raise ValueError(
                "grid: a gridded source keeps its own grid ({native = true, coarsen = N}); "
                "any other source needs {crs, shape, spacing_m, centre}"
            )
        return self

    @model_validator(mode="after")
    def _pixels_can_tell(self) -> Self:
        span = self.scale.dbz_max - self.scale.dbz_min
        if span < 26:
            raise ValueError("scale: dbz_max - dbz_min must be at least 26 dB, so that a pixel is more than 0.1 dB")
        for rate in (DRIZZLE_FLOOR_MM_H, *self.thresholds_mm_h):
            dbz = 10 * math.log10(self.zr.a) + 10 * self.zr.b * math.log10(rate)
            if not span / 255 <= dbz - self.scale.dbz_min <= span - span / 255:
                raise ValueError(
                    f"{rate:g} mm/h is not between the ends of the scale {self.scale.dbz_min:g} to "
                    f"{self.scale.dbz_max:g} dBZ with Z = {self.zr.a:g} R^{self.zr.b:g}"
                )
        return self


class Settings(_Frozen):
    """Everything that is configured, and where each value came from (``origins``, dotted key -> origin)."""

    root: Path
    catalog: str
    domains: dict[str, Domain]
    log_format: Literal["text", "json"] = "text"
    threads: int = Field(1, ge=1, le=256, description="CPU threads of one process for torch")
    prefect_api_url: str = "http://127.0.0.1:4200/api"
    config_path: Path | None = None
    origins: dict[str, str] = {}

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
    for name, text in environment.items():
        if name.startswith("NOWCAST_") and name not in RESERVED_ENVIRONMENT:
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
        raise SettingsError(f"root = {folder!r}: only a local folder so far, not an object store")
    tree["root"] = root = (base / folder).resolve()
    tree["catalog"] = _expand(str(tree.get("catalog", f"sqlite:///{root / 'catalog.sqlite'}")), "catalog", environment)
    if tree["catalog"].startswith("sqlite:///"):
        tree["catalog"] = f"sqlite:///{base / tree['catalog'].removeprefix('sqlite:///')}"
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
                source["uri"] = str((base / uri).resolve())
            if isinstance(domain.get("model"), str) and "/" in domain["model"]:
                domain["model"] = str((base / domain["model"]).resolve())
    tree.setdefault("domains", {})
    try:
        return Settings(**tree, config_path=path, origins={key: value.origin for key, value in values.items()})
    except ValidationError as err:
        raise SettingsError(_explain(err, values)) from err


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
    text = re.sub(r"(://[^:/@\s]*):[^@\s]+@", r"\1:***@", text)
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
            raise SettingsError(f"{prefix}{key} ({origin}): names are lower-case letters, digits, - and _")
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
        given = "" if item["type"] in {"missing", "extra_forbidden"} else f" = {item['input']!r}"
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
