"""What a domain is: grid, cadence, scale, checks and model of one region, frozen and validated."""

import math
import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BeforeValidator, Discriminator, Field, PrivateAttr, Tag, field_validator, model_validator
from pyproj import CRS
from pyproj.exceptions import CRSError

from pipeline.place_settings import Rings, WarningRule, check_name, read_areas
from pipeline.source_settings import (
    Frozen,
    GriddedSource,
    PolarSource,
    SyntheticRadarsSource,
    SyntheticSource,
    VolumesSource,
)

DRIZZLE_FLOOR_MM_H = 0.1

# after the reference time, to which rain amounts are given
AMOUNT_MINUTES = (30, 60, 120)

SURFACE_RAIN = "surface_rain"

Cadence = Literal[5, 6, 10]


class ZR(Frozen):
    """Z = a R**b with R in mm/h. Default: Marshall and Palmer 1948."""

    a: float = Field(200.0, gt=0, le=2000)
    b: float = Field(1.6, gt=0.5, le=3)


class Scale(Frozen):
    """Reflectivity (dBZ) of pixel 0 and pixel 255."""

    dbz_min: float = Field(-10.0, ge=-40, le=20)
    dbz_max: float = Field(60.0, ge=30, le=100)


class Quality(Frozen):
    """Checks of what was received; 0, or false, switches a step off (the rate and the hail cap always act).

    ``min_rhohv``, ``min_fluctuation_db``, ``ground_echo``, ``min_echo_gates`` and ``clutter_frequency`` are for volumes
    (``pipeline.radar.quality``). A gate or cell above ``max_dbz`` is removed, and other reflectivity held at
    ``hail_cap_dbz`` before it becomes rain, since hail is not. A cell above ``max_rate_mm_h`` is removed (the largest
    5-minute rates on record stay below 500 mm/h). A frame is refused whose observed share is below ``min_coverage``,
    since a silent radar must not read as a dry one, whose echo area grows by more than ``max_echo_jump`` of the
    observed one in a cadence while the coverage stays, or that has one value throughout (``pipeline.frames.checks``).
    """

    max_rate_mm_h: float = Field(500.0, gt=0)
    min_coverage: float = Field(0.01, ge=0, le=1)
    min_rhohv: float = Field(0.8, ge=0, le=1)
    min_fluctuation_db: float = Field(2.5, ge=0, le=10)
    ground_echo: bool = True
    min_echo_gates: int = Field(10, ge=0, le=1000)
    clutter_frequency: float = Field(0.5, ge=0, le=1)
    max_dbz: float = Field(75.0, ge=0, le=100)
    hail_cap_dbz: float = Field(55.0, ge=40, le=100)
    max_echo_jump: float = Field(0.35, ge=0, le=1)


def as_tuple(value: Any) -> Any:
    """A list of a settings file as the tuple that a frozen model holds."""
    return tuple(value) if isinstance(value, list) else value


class Verification(Frozen):
    """How forecasts are scored.

    ``scales_km`` are the sides of the windows of the fractions skill score. ``ignore_faint_echo`` is the rule of HKO-7:
    where the observation shows echo below 9.5 dBZ, but not none, nothing is scored. ``references`` of pysteps are
    forecast too and compared on the same pixels: ``sprog`` and ``steps_mean`` show what smoothing alone gains,
    ``anvil`` is its best deterministic method.
    """

    scales_km: Annotated[tuple[Annotated[float, Field(gt=0, le=1000)], ...], BeforeValidator(as_tuple)] = (
        1.0,
        2.0,
        5.0,
        10.0,
        20.0,
        50.0,
    )
    ignore_faint_echo: bool = False
    references: Annotated[tuple[Literal["sprog", "anvil", "steps_mean"], ...], BeforeValidator(as_tuple)] = ()

    @field_validator("scales_km")
    @classmethod
    def _rising(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if not values or list(values) != sorted(set(values)):
            raise ValueError("must rise strictly")
        return values

    @field_validator("references")
    @classmethod
    def _once(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted(set(values)))


class Lateness(Frozen):
    """When a live cycle starts, in seconds after its reference time.

    It starts when its frame is complete: every radar that has lately been on time is in it. At ``deadline_s`` it starts
    with what there is. Without a frame it waits until ``grace_s``, which is also how long a missed cycle is worth
    making up for; then the reason is recorded. With ``reissue`` a frame that grows better until then gives a further
    revision; without, the first product stands.
    """

    deadline_s: float = Field(300.0, ge=0, le=7200)
    grace_s: float = Field(1800.0, ge=0, le=21600)
    reissue: bool = False

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.grace_s < self.deadline_s:
            raise ValueError(f"grace_s = {self.grace_s:g} ends before deadline_s = {self.deadline_s:g}")
        return self


class NativeGrid(Frozen):
    """The grid of a gridded source, or block means of it (in rain rate) over coarsen x coarsen cells."""

    native: Literal[True]
    coarsen: int = Field(1, ge=1, le=64)


# longitude and latitude, degrees
Position = tuple[
    Annotated[float, Field(ge=-360, le=360, allow_inf_nan=False)],
    Annotated[float, Field(ge=-90, le=90, allow_inf_nan=False)],
]


class ProjectedGrid(Frozen):
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


def model_name(model: str) -> str:
    """Name of a model that is given by name or by path."""
    return model.rstrip("/").rsplit("/", 1)[-1]


def _as_product(value: Any) -> Any:
    """A list of one is the one."""
    return value[0] if isinstance(value, list | tuple) and len(value) == 1 else as_tuple(value)


def _kind_of_grid(value: Any) -> str:
    native = "native" in value or "coarsen" in value if isinstance(value, dict) else isinstance(value, NativeGrid)
    return "native_grid" if native else "projected_grid"


class Domain(Frozen):
    """A region with one grid, cadence, source and model. ``lead_frames`` defaults to two hours.

    ``product`` is what a frame shows: ``surface_rain`` (a composite as it is received, or the 2 km pseudo-CAPPI of
    volumes), and from volumes also ``cappi_<metres above sea level>``, ``lowest`` and ``column_max``. Several in a list
    are the channels of a frame; the first is the rain that is forecast, published as rain and verified.
    ``points`` (name -> longitude, latitude) and ``areas`` (a GeoJSON file) are places that get forecasts of their own,
    and ``warnings`` what is told of them.
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
    product: Annotated[str | tuple[str, ...], BeforeValidator(_as_product)] = SURFACE_RAIN
    zr: ZR = ZR()
    scale: Scale = Scale()
    quality: Quality = Quality()
    verification: Verification = Verification()
    max_gap: int = Field(1, ge=0, le=6)
    lateness: Lateness = Lateness()
    thresholds_mm_h: Annotated[tuple[float, ...], BeforeValidator(as_tuple)] = (0.5, 2.0, 5.0, 10.0, 30.0)
    model: str = Field("champion", min_length=1)
    points: dict[str, Position] = Field({}, max_length=1000)
    areas: str = ""
    warnings: Annotated[tuple[WarningRule, ...], BeforeValidator(as_tuple)] = Field((), max_length=1000)
    institution: str = Field("not stated; the operator of this system is responsible for its use", max_length=500)
    license: str = Field("terms of the radar data's producer apply", max_length=2000)
    name: str = ""
    _areas: dict[str, Rings] = PrivateAttr(default_factory=dict)

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
    def products(self) -> tuple[str, ...]:
        """The channels of a frame."""
        return (self.product,) if isinstance(self.product, str) else self.product

    @property
    def rings_of_areas(self) -> dict[str, Rings]:
        """Outlines of the areas as their file had them when the settings were read, longitude and latitude."""
        return self._areas

    @property
    def model_name(self) -> str:
        """The model's name, also where ``model`` is a path."""
        return model_name(self.model)

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
    def _source_can_show(self) -> Self:
        products = self.products
        if not products or len(products) > 8 or len(set(products)) < len(products):
            raise ValueError("product: expected one to eight different ones")
        for product in products:
            if product != SURFACE_RAIN and not isinstance(self.source, PolarSource):
                raise ValueError(f"product: {self.source.kind} fields are {SURFACE_RAIN}, found {product!r}")
            if not re.fullmatch(r"surface_rain|lowest|column_max|cappi_([1-9]\d{2,3}|1\d{4})", product):
                raise ValueError(
                    "product: expected surface_rain, lowest, column_max or cappi_<100 to 19999 metres>, "
                    f"found {product!r}"
                )
        return self

    @model_validator(mode="after")
    def _places_are_known(self) -> Self:
        for name in self.points:
            check_name(name)
        self._areas = read_areas(Path(self.areas)) if self.areas else {}
        if both := sorted(set(self.points) & set(self._areas)):
            raise ValueError(f"areas: {both[0]!r} is the name of a point too")
        known = ", ".join(sorted({*self.points, *self._areas})[:20]) or "none"
        for rule in self.warnings:
            if rule.place not in self.points and rule.place not in self._areas:
                raise ValueError(f"warnings: no place {rule.place[:60]!r}; there are: {known}")
            if timedelta(minutes=rule.minutes) > self.horizon:
                raise ValueError(
                    f"warnings: {rule.place}: {rule.minutes} minutes are more than the forecasts reach ({self.horizon})"
                )
        if len({rule.key for rule in self.warnings}) < len(self.warnings):
            raise ValueError("warnings: two have the same place, minutes and amount_mm")
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
