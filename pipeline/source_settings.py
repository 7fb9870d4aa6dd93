"""Where radar data come from: one table ``source`` per domain, of the kinds below."""

import re
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pipeline.errors import SettingsError

ReaderName = Literal["bom_rainfields", "knmi_hdf5", "mch_gif", "fmi_pgm", "odim_comp", "mrms_grib2"]


class Frozen(BaseModel):
    """Settings are checked once, refuse unknown keys and never change."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class S3Access(Frozen):
    """How an S3 bucket is reached. Keys come from the environment or the files of AWS, never from these settings.

    Attributes:
        endpoint_url: of a server other than Amazon's.
        anonymous: requests are not signed, as public buckets allow.
        profile: of the AWS files; empty is the environment, then their default.
        timeout_s: to connect, and between two pieces of an answer.
        retries: after the first try, of what may pass: cut connections, stalls, 5xx, "slow down".
    """

    endpoint_url: str = ""
    region: str = "us-east-1"
    anonymous: bool = False
    profile: str = ""
    timeout_s: float = Field(10.0, gt=0, le=300)
    retries: int = Field(4, ge=0, le=20)

    @field_validator("endpoint_url")
    @classmethod
    def _is_an_address(cls, url: str) -> str:
        if url and not re.fullmatch(r"https?://[^/@?#\s]+(/[^@?#\s]*)?", url):
            raise ValueError("expected http(s)://host[:port], without a user, password or query")
        return url


class FilesSource(Frozen):
    """Where received files lie.

    Attributes:
        uri: a folder, or ``s3://bucket/prefix``.
        s3: how the bucket is reached.
        layout: of a bucket, how the keys below the prefix begin, with times as in strftime (%Y %m %d %j %H %y),
            ``{radar}``, and ``{number}`` for folders 1 to 999 that are used over and over. Only what a time window
            needs is listed; without a layout everything is.
        max_file_mb: nothing larger is read.
    """

    uri: str
    s3: S3Access | None = None
    layout: str = ""
    max_file_mb: float = Field(512.0, gt=0)

    @property
    def in_bucket(self) -> bool:
        """Whether the files are objects of a bucket."""
        return self.uri.startswith("s3://")

    @field_validator("uri")
    @classmethod
    def _is_a_place(cls, uri: str) -> str:
        from pipeline.objects import split_uri

        if "://" in uri:
            try:
                split_uri(uri)
            except SettingsError as err:
                raise ValueError(str(err)) from err
        return uri

    @field_validator("layout")
    @classmethod
    def _has_known_parts(cls, layout: str) -> str:
        plain = re.sub(r"%[YmdjHy]|\{radar\}|\{number\}/$", "", layout)
        if "%" in plain or "{" in plain or "}" in plain or ".." in plain or layout.startswith("/"):
            raise ValueError("it may have %Y %m %d %j %H %y, {radar}, and {number}/ at its end")
        return layout

    @model_validator(mode="after")
    def _fits_the_place(self) -> Self:
        if not self.in_bucket and (self.s3 is not None or self.layout):
            raise ValueError(f"s3 and layout are for a uri s3://bucket/prefix, found {self.uri}")
        return self


class GriddedSource(FilesSource):
    """Composites that a ``reader`` understands, whose names carry the time.

    Attributes:
        quantity: of several in the feed or in a file; the others are left alone. Without it the first of DBZH, RATE,
            ACRR and TH that the feed has is taken, and kept.
        dataset: group that holds the field, for example ``dataset2`` or ``dataset2/data1``, or ``image2`` of KNMI;
            without it the first that has the quantity.
        shared_code: what the cells are that may be dry or not observed, since the producer gives both one code or
            writes neither down: ``dry``, or ``no_data``. ``refuse`` takes no file in which there are such cells.
    """

    kind: Literal["gridded"]
    reader: ReaderName
    quantity: Literal["", "DBZH", "RATE", "ACRR", "TH"] = ""
    dataset: str = Field("", pattern=r"^[A-Za-z0-9_/]{0,60}$")
    shared_code: Literal["refuse", "dry", "no_data"] = "refuse"

    @model_validator(mode="after")
    def _reader_leaves_it_open(self) -> Self:
        if self.quantity and self.reader != "odim_comp":
            raise ValueError(f"quantity: the files of {self.reader} have one only; it is for odim_comp")
        if (self.dataset or self.shared_code != "refuse") and self.reader not in ("odim_comp", "knmi_hdf5"):
            raise ValueError(f"dataset and shared_code are for odim_comp and knmi_hdf5, not for {self.reader}")
        return self

    @model_validator(mode="after")
    def _has_no_radars(self) -> Self:
        if "{" in self.layout:
            raise ValueError("layout: composites have times only")
        return self


class SyntheticSource(Frozen):
    """Evolving power-law rain; a pure function of seed and time (``pipeline.sources.synthetic``)."""

    kind: Literal["synthetic"]
    seed: int = Field(0, ge=0)
    event_hours: int = Field(6, ge=1, le=240)
    max_speed_m_s: float = Field(18.0, ge=0, le=60)


class RadarSite(Frozen):
    """Position of an antenna for formats that carry none, and its height above sea level."""

    longitude: float = Field(ge=-360, le=360)
    latitude: float = Field(ge=-90, le=90)
    altitude_m: float = Field(ge=-500, le=9000)


class BlockedSector(Frozen):
    """A part of the horizon that is hidden below an elevation: degrees clockwise from north, which may pass it."""

    azimuths: tuple[Annotated[float, Field(ge=0, le=360)], Annotated[float, Field(ge=0, le=360)]]
    below_elevation: float = Field(gt=-2, le=90)
    beyond_km: float = Field(0.0, ge=0, le=500)

    @field_validator("azimuths")
    @classmethod
    def _has_width(cls, azimuths: tuple[float, float]) -> tuple[float, float]:
        if azimuths[0] == azimuths[1]:
            raise ValueError("the first and the last azimuth are the same; [0, 360] is all round")
        return azimuths


class _Gridded(Frozen):
    """How polar volumes become a field: see ``pipeline.radar.gridding`` and ``pipeline.radar.mosaic``.

    Attributes:
        blocked: by radar, sectors behind obstacles; their gates are not measured, so that the next beam is taken.
        max_range_km: gates further away are not used.
        mosaic: how radars are combined.
        processes: that decode and grid at the same time; with more than one, a volume that kills its decoder (want of
            memory, a fault of a library) costs nothing but itself.
    """

    max_range_km: float = Field(240.0, ge=10, le=500)
    blocked: dict[str, tuple[BlockedSector, ...]] = {}
    mosaic: Literal["weighted", "max"] = "weighted"
    processes: int = Field(1, ge=1, le=256)


class VolumesSource(_Gridded, FilesSource):
    """Polar volumes of one or many radars, in any format that xradar reads.

    Attributes:
        pattern: regular expression of the whole file name; one with a slash, of all that stands below the layout. Its
            groups: ``time`` (read with ``time_format``; without it the header of ODIM files is read), ``radar``
            (default: that of the layout, else all files are of one radar), ``chunk`` (to join), ``end`` (only the last
            chunk has it; once the others are there nothing more is waited for).
        radars: others are left alone; empty takes all. One alone is the name of a radar that nothing else names.
        join: ``none``: a file is a volume (or ``scans_per_file`` of them, ``scan_minutes`` apart). ``cycle``: files of
            a radar within ``cycle_minutes`` are one volume. ``chunks``: files of one time, in the order of their
            ``chunk``, are the pieces of one file.
        reliable_times: false where ray times are wrong; the time of the name then counts.
        sites: positions of radars whose format carries none.
        rstart_unit: of the distance of the first gate in ODIM_H5, where a file's version and what is plausible leave
            it open: ``m`` or ``km``.
    """

    kind: Literal["volumes"]
    pattern: str
    time_format: str = "%Y%m%d%H%M%S"
    join: Literal["none", "cycle", "chunks"] = "none"
    cycle_minutes: int = Field(5, ge=1, le=30)
    scans_per_file: int = Field(1, ge=1, le=20)
    scan_minutes: int = Field(5, ge=1, le=30)
    reliable_times: bool = True
    rstart_unit: Literal["", "m", "km"] = ""
    sites: dict[str, RadarSite] = {}
    radars: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,40}$")], ...] = ()

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            groups = re.compile(pattern).groupindex
        except re.error as err:
            raise ValueError(f"not a regular expression: {err}") from err
        if unknown := set(groups) - {"time", "radar", "chunk", "end"}:
            raise ValueError(f"unknown groups {', '.join(sorted(unknown))}; it may have time, radar, chunk and end")
        return pattern

    @model_validator(mode="after")
    def _joins_what_it_names(self) -> Self:
        groups = re.compile(self.pattern).groupindex
        if (self.join == "chunks") != ("chunk" in groups):
            raise ValueError("join = 'chunks' and a group 'chunk' in the pattern belong together")
        if "end" in groups and self.join != "chunks":
            raise ValueError("a group 'end' in the pattern is for join = 'chunks'")
        if self.in_bucket and "time" not in groups:
            raise ValueError("objects of a bucket need a group 'time' in the pattern; no header is read for it")
        if "{radar}" in self.layout and not self.radars:
            raise ValueError("a layout with {radar} needs radars = [...]")
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
