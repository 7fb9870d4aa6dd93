"""Reads a nowcast of somebody else from a CF NetCDF file, as pixels on our grid and at our lead times."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pyproj import CRS, Geod, Transformer
from pyproj.exceptions import CRSError

from pipeline import packing, product, times
from pipeline.domain import Domain
from pipeline.errors import BadInput, reading
from pipeline.frames.grayscale import NO_COVERAGE, Pixels, pixel_of_rate, pixel_of_reflectivity, reflectivity_of_rate
from pipeline.grids import Grid
from pipeline.product_axes import METRES
from pipeline.verification import compared
from pipeline.verification.rules import Rules, pixel_tables
from pipeline.verification.scoring import Compared

MOST_BYTES = 2**31
MOST_VALUES = 2**29
# more than fell in any minute on record is a fill value or another unit
MOST_MM_H = 2500.0
# what one unit of a rain rate is in mm/h; reflectivity has its own
RATE_UNITS = {
    "mm h-1": 1.0,
    "mm/h": 1.0,
    "mm hr-1": 1.0,
    "kg m-2 h-1": 1.0,
    "mm s-1": 3600.0,
    "kg m-2 s-1": 3600.0,
    "m s-1": 3.6e6,
}
RATES = ("rainfall_rate", "lwe_precipitation_rate", "rainfall_flux", "precipitation_flux")
REFLECTIVITY = "equivalent_reflectivity_factor"
MEMBERS = ("realization", "member", "ens_number", "number", "ensemble")


@dataclass(frozen=True)
class Foreign:
    """A foreign forecast: rain rates in mm/h (member, lead, rows, columns), NaN where it has none."""

    reference_time: datetime
    rates: NDArray[np.float32]


def read_external(path: Path, domain: Domain, rules: Rules, name: str) -> Compared:
    """A foreign forecast as pixels at our lead times; an ensemble is compared by its mean, and by its members.

    Raises:
        BadInput: no rain rate or reflectivity in known units, another grid, or none of our lead times.
    """
    own = _own_product(path, domain, rules.grid, name)
    if own is not None:
        return own
    foreign = _read(path, domain, rules)
    floor = pixel_of_rate(rules.drizzle_floor_mm_h, domain.zr, domain.scale)

    def pixels(rates: NDArray[np.float32]) -> Pixels:
        made = pixel_of_reflectivity(reflectivity_of_rate(np.nan_to_num(rates), domain.zr), domain.scale)
        made[made < floor] = 0
        return made

    valid = np.asarray(~np.isnan(foreign.rates).any(axis=0))
    if len(foreign.rates) == 1:
        return Compared(name, pixels(foreign.rates[0]), valid)
    members = pixels(foreign.rates)
    thresholds = pixel_tables(domain, rules).thresholds
    exceedance = np.stack([(members >= t).mean(axis=0, dtype=np.float32) for t in thresholds])
    mean = pixels(np.where(valid, np.nan_to_num(foreign.rates).mean(axis=0), 0).astype(np.float32))
    return Compared(name, mean, valid, exceedance, members)


def _own_product(path: Path, domain: Domain, grid: Grid, name: str) -> Compared | None:
    """A product of ours, of another root or model, comes back pixel by pixel; None if it is none or does not fit.

    Raises:
        ValueError: its content is not what its digest promises.
    """
    try:
        pixels, state, attrs = product.read_forecast(path, domain)
        whole = packing.read_packed(path)
        axes = [whole["latitude" if grid.is_geographic else "y"], whole["longitude" if grid.is_geographic else "x"]]
    except (OSError, ValueError, KeyError):
        return None
    packing.checked_digest(whole, path)
    same = attrs.get("domain") == domain.name and int(attrs.get("cadence_minutes", 0)) == domain.cadence_minutes
    for axis, wanted in zip(axes, (grid.y, grid.x), strict=True):
        same = same and axis.shape == wanted.shape and bool(np.allclose(axis.values, wanted))
    _same_projection(whole, grid, path)
    if not same or len(pixels) != domain.lead_frames:
        return None
    return Compared(name, pixels, state != NO_COVERAGE, compared.exceedance(path, domain))


def _open(path: Path) -> xr.Dataset:
    with reading(path):
        return _opened(path)


def _opened(path: Path) -> xr.Dataset:
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise BadInput(f"{path} has {size} bytes, more than {MOST_BYTES} are not read")
    with path.open("rb") as file:
        classic = file.read(3) == b"CDF"
    try:
        return xr.open_dataset(path, engine="scipy" if classic else "h5netcdf", decode_timedelta=True)
    except (OSError, ValueError, TypeError) as err:
        raise BadInput(f"{path} is not a NetCDF file that can be read: {err}") from err


def reference_time(path: Path) -> datetime:
    """The reference time that a file states.

    Raises:
        BadInput: none, more than one, or one of another calendar.
    """
    with _open(path) as data:
        for name, variable in data.variables.items():
            if variable.attrs.get("standard_name") == "forecast_reference_time" or name == "forecast_reference_time":
                if variable.size != 1:
                    raise BadInput(f"{path} holds {variable.size} reference times, expected one")
                found = np.asarray(variable.values).reshape(())
                if not np.issubdtype(found.dtype, np.datetime64) or np.isnat(found):
                    raise BadInput(f"{path}: its forecast_reference_time is no time of the standard calendar")
                stamp = found.astype("datetime64[s]").astype(np.int64).item()
                return times.EPOCH + np.timedelta64(stamp, "s").item()
    raise BadInput(f"{path} has no variable with the standard name forecast_reference_time")


def _read(path: Path, domain: Domain, rules: Rules) -> Foreign:
    reference = reference_time(path)
    with _open(path) as data:
        variable, factor = _rain_variable(data, path)
        member = next((d for d in variable.dims if str(d) in MEMBERS), None)
        leads = _lead_minutes(data, variable, reference, path)
        lead_dim = leads[0]
        axes = [d for d in variable.dims if d not in (member, lead_dim)]
        if len(axes) != 2:
            raise BadInput(
                f"{path}: {variable.name} has the axes {', '.join(map(str, variable.dims))}, which are not known"
            )
        y, x = axes
        shape = (variable.sizes[y], variable.sizes[x])
        if shape != rules.grid.shape:
            rows, columns = rules.grid.shape
            raise BadInput(
                f"{path} is on another grid: {shape[0]} x {shape[1]} cells, the frames have {rows} x {columns}"
            )
        if variable.size > MOST_VALUES:
            raise BadInput(f"{path}: {variable.name} has {variable.size} values, more than {MOST_VALUES} are not read")
        _same_projection(data, rules.grid, path)
        order = (*((member,) if member is not None else ()), lead_dim, y, x)
        values = np.asarray(variable.transpose(*order).values, np.float32)
        values = values if member is not None else values[None]
        values = _north_up(values, data, str(y), str(x), rules.grid, path)
    wanted = [leads[1].get(minutes) for minutes in rules.leads_minutes]
    if all(n is None for n in wanted):
        raise BadInput(f"{path} has none of our lead times ({rules.leads_minutes[0]}, ... minutes)")
    rates = np.full((len(values), len(wanted), *values.shape[2:]), np.nan, np.float32)
    for n, at in enumerate(wanted):
        if at is not None:
            rates[:, n] = values[:, at]
    if factor is None:  # reflectivity, by the domain's own relation
        with np.errstate(over="ignore"):
            rates = (10 ** ((rates - 10 * np.log10(domain.zr.a)) / (10 * domain.zr.b))).astype(np.float32)
    else:
        rates = rates * np.float32(factor)
        if (rates < 0).any():
            raise BadInput(f"{path} has negative rain rates, down to {np.nanmin(rates):g} mm/h")
    if (rates > MOST_MM_H).any():
        raise BadInput(f"{path} has rain rates up to {np.nanmax(rates):g} mm/h; more than {MOST_MM_H:g} is no rain")
    if np.isnan(rates).all():
        raise BadInput(f"{path} has no value at our lead times")
    return Foreign(reference, rates)


def _same_projection(data: xr.Dataset, grid: Grid, path: Path) -> None:
    """The projection that a file states must put the corners of the grid where ours does; none may be stated.

    Raises:
        BadInput: it does not, or is not understood.
    """
    mapping = next((v.attrs for v in data.variables.values() if "grid_mapping_name" in v.attrs), None)
    if mapping is None or grid.is_geographic:
        return
    try:
        theirs = CRS.from_cf(dict(mapping))
    except (CRSError, KeyError, ValueError, TypeError) as err:
        raise BadInput(f"{path}: its grid mapping is not understood: {err}") from err
    x, y = np.meshgrid(grid.x[[0, -1]], grid.y[[0, -1]])
    ours, there = (
        Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(x, y) for crs in (grid.projection, theirs)
    )
    _, _, apart = Geod(ellps="WGS84").inv(ours[0], ours[1], there[0], there[1])
    worst = float(np.max(apart)) / 1000
    if not worst <= max(grid.ground_spacing_km):
        raise BadInput(
            f"{path} is on another grid: by its projection a corner lies {worst:.1f} km from that of the frames"
        )


def _rain_variable(data: xr.Dataset, path: Path) -> tuple[xr.DataArray, float | None]:
    """The variable with the rain, and what its unit is in mm/h; None for dBZ."""
    found: list[tuple[int, xr.DataArray, float | None]] = []
    for name, variable in data.data_vars.items():
        standard, units = variable.attrs.get("standard_name"), str(variable.attrs.get("units", ""))
        if variable.ndim in (3, 4) and standard in (*RATES, REFLECTIVITY):
            if standard == REFLECTIVITY and units.lower() == "dbz":
                found.append((1, variable, None))
            elif units in RATE_UNITS:
                found.append((0, variable, RATE_UNITS[units]))
            else:
                expected = "dBZ" if standard == REFLECTIVITY else ", ".join(RATE_UNITS)
                raise BadInput(f"{path}: {name} is a {standard} in {units!r}, expected {expected}")
    if not found:
        raise BadInput(
            f"{path} has no variable over time and two axes with a standard name such as {RATES[0]} or {REFLECTIVITY}; "
            f"it has {', '.join(map(str, data.data_vars)) or 'none'}"
        )
    _, variable, factor = min(found, key=lambda one: one[0])
    return variable, factor


def _lead_minutes(
    data: xr.Dataset, variable: xr.DataArray, reference: datetime, path: Path
) -> tuple[Any, dict[int, int]]:
    """The dimension of lead times, and the index of each whole minute."""
    for dim in variable.dims:
        values = data[dim].values if dim in data.variables else None
        if values is None:
            continue
        if np.issubdtype(values.dtype, np.datetime64):
            seconds = values.astype("datetime64[s]").astype(np.int64) - times.seconds(reference)
        elif np.issubdtype(values.dtype, np.timedelta64):
            seconds = values.astype("timedelta64[s]").astype(np.int64)
        else:
            continue
        return dim, {int(s) // 60: n for n, s in enumerate(seconds) if s % 60 == 0}
    raise BadInput(f"{path}: {variable.name} has no axis of times; its axes are {', '.join(map(str, variable.dims))}")


def _units_of_grid(unit: Any, grid: Grid) -> float:
    """How many units of the grid's axes one unit of an axis in a file is; metres are meant where it is not known."""
    if grid.metres_per_unit is None:
        return 1.0
    return METRES.get(str(unit), 1.0) / grid.metres_per_unit


def _north_up(
    values: NDArray[np.float32], data: xr.Dataset, y: str, x: str, grid: Grid, path: Path
) -> NDArray[np.float32]:
    """Rows from north to south, columns from west to east, on the domain's own cells.

    Raises:
        BadInput: another grid; a tenth of a cell is forgiven.
    """
    for axis, name, wanted, step in ((-2, y, grid.y, grid.dy), (-1, x, grid.x, grid.dx)):
        if name not in data.variables or data[name].ndim != 1:
            raise BadInput(f"{path} has no coordinate variable {name}; without it the grid cannot be told")
        found = data[name].values.astype(np.float64) * _units_of_grid(data[name].attrs.get("units"), grid)
        if abs(found[0] - wanted[0]) > abs(found[-1] - wanted[0]):
            found, values = found[::-1], np.flip(values, axis)
        worst = float(np.abs(found - wanted).max())
        if not worst <= 0.1 * step:
            raise BadInput(
                f"{path} is on another grid: {name} runs from {found[0]:g} to {found[-1]:g}, "
                f"the frames from {wanted[0]:g} to {wanted[-1]:g}"
            )
    return values
