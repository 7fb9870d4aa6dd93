"""Synthetic rain: moves, turns, grows and decays; a pure function of seed and time, so any frame can be made again.

A Gaussian field with a power-law spectrum is advected by phase shifts; every wave also rotates in phase at a random
rate that rises with its wavenumber, so that small scales live shorter than large ones. The field turns about the
centre of the domain. Rain stands where it exceeds a threshold that follows the life of the event; events of
``event_hours`` follow each other, dry at both ends, each with its own motion, texture, area and intensity. Each fetched
item is an ODIM_H5 composite, so that the reader is exercised too.
"""

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray
from pyproj import Transformer
from scipy.ndimage import map_coordinates

from pipeline import times
from pipeline.domain import Domain, ProjectedGrid
from pipeline.grids import Grid, centred_grid
from pipeline.source_settings import SyntheticRadarsSource, SyntheticSource
from pipeline.sources.contract import RainField, VolumeRef
from pipeline.sources.readers import odim_comp

log = logging.getLogger(__name__)

_MARGIN = 1.5  # the periodic field is this much larger than the domain, so that turning never shows its edge


@dataclass(frozen=True)
class Event:
    """What one rain event is like."""

    east_m_s: float
    north_m_s: float
    turn_rad_h: float
    slope: float  # of the amplitude spectrum
    wet_share: float  # at its largest
    mean_dbz: float  # where the field exceeds the threshold by one standard deviation
    lifetime_s: float  # of a wave 50 km long


class SyntheticRain:
    """Implements ``pipeline.sources.contract.Source``."""

    def __init__(self, config: SyntheticSource | SyntheticRadarsSource, domain: Domain) -> None:
        if not isinstance(domain.grid, ProjectedGrid):
            raise TypeError("synthetic rain needs a projected grid")
        self.config = config
        self.cadence = domain.cadence
        self.name = domain.name
        grid = domain.grid
        self.grid: Grid = centred_grid(grid.crs, grid.shape, grid.spacing_m, grid.centre)

    def list(self, start: datetime, end: datetime, warn: Callable[[str], None] = log.warning) -> list[VolumeRef]:
        """One item per instant of the axis; it arrives at its valid time."""
        return [
            VolumeRef(f"synthetic_{times.compact(t)}.h5", t, 0, f"seed{self.config.seed}", t)
            for t in times.slots(start, end, self.cadence)
        ]

    def fetch(self, ref: VolumeRef, folder: Path) -> Path:
        """Write the composite of that time into ``folder``."""
        path = folder / ref.key
        write_composite(path, self.rain_rate(ref.nominal_time), self.grid, ref.nominal_time)
        return path

    def decode(self, path: Path) -> RainField:
        """Read the composite back."""
        return odim_comp.read(path)

    def event(self, time: datetime) -> tuple[Event, int, timedelta]:
        """The event at ``time``, its number, and how far into it ``time`` lies."""
        length = timedelta(hours=self.config.event_hours)
        number = (time - times.EPOCH) // length
        rng = np.random.default_rng((self.config.seed, number))
        speed = self.config.max_speed_m_s * np.sqrt(rng.uniform(0.02, 1))
        bearing = rng.uniform(0, 2 * np.pi)
        event = Event(
            east_m_s=float(speed * np.sin(bearing)),
            north_m_s=float(speed * np.cos(bearing)),
            turn_rad_h=float(rng.normal(0, 0.1)),
            slope=float(rng.uniform(1.4, 2.0)),
            wet_share=float(rng.uniform(0.08, 0.5)),
            mean_dbz=float(rng.uniform(15, 27)),
            lifetime_s=float(rng.uniform(2400, 7200)),
        )
        return event, number, (time - times.EPOCH) % length

    def rain_rate(self, time: datetime) -> NDArray[np.float32]:
        """Rain rate (rows, columns) in mm/h at ``time``; 0 where it does not rain."""
        event, number, age = self.event(time)
        field = self._gaussian(event, number, age.total_seconds())
        life = np.sin(np.pi * (age / timedelta(hours=self.config.event_hours))) ** 0.5
        wet = event.wet_share * life
        if wet < 1e-3:
            return np.zeros(self.grid.shape, np.float32)
        # threshold of a standard normal field that leaves the share ``wet`` above it
        threshold = float(np.sqrt(2) * _erfinv(1 - 2 * wet))
        dbz = np.where(field > threshold, 7.0 + event.mean_dbz * (field - threshold), -32.0)
        rate = (10 ** (np.minimum(dbz, 55.0) / 10) / 200.0) ** (1 / 1.6)
        return np.where(field > threshold, rate, 0.0).astype(np.float32)

    def _gaussian(self, event: Event, number: int, age: float) -> NDArray[np.float64]:
        """Unit-variance field on the domain, ``age`` seconds into the event."""
        rows, columns = self.grid.shape
        size = int(2 ** np.ceil(np.log2(_MARGIN * max(rows, columns))))
        spacing = self.grid.dx
        ky = np.fft.fftfreq(size)[:, None] / spacing  # cycles per metre, positive southward (along rows)
        kx = np.fft.rfftfreq(size)[None, :] / spacing
        k = np.hypot(ky, kx)
        rng = np.random.default_rng((self.config.seed, number, 1))
        phase = rng.uniform(0, 2 * np.pi, k.shape)
        spin = rng.normal(0, 1, k.shape)
        with np.errstate(divide="ignore"):
            # power law, flat beyond 150 km so that one wave never fills the domain
            amplitude = np.where(k > 0, np.maximum(k, 1 / 150e3) ** -event.slope, 0.0)
        turnover = (np.maximum(k, 1e-9) * 50e3) ** (2 / 3) / event.lifetime_s
        shift = 2 * np.pi * (kx * event.east_m_s - ky * event.north_m_s) * age
        field = np.fft.irfft2(amplitude * np.exp(1j * (phase + spin * turnover * age - shift)), s=(size, size))
        field /= np.sqrt(2 * np.mean(np.abs(amplitude) ** 2) / size**2)
        angle = event.turn_rad_h * age / 3600
        row, column = np.mgrid[0:rows, 0:columns].astype(np.float64)
        y, x = row - (rows - 1) / 2, column - (columns - 1) / 2
        centre = size / 2
        at = np.stack(
            (
                centre + np.cos(angle) * y - np.sin(angle) * x,
                centre + np.sin(angle) * y + np.cos(angle) * x,
            )
        )
        turned: NDArray[np.float64] = map_coordinates(field, at, order=1, mode="grid-wrap")
        return turned


def write_composite(path: Path, rate: NDArray[np.float32], grid: Grid, time: datetime) -> None:
    """Write an ODIM_H5 COMP of rain rate: uint16 steps of 0.01 mm/h, 0 undetect, 65535 nodata (NaN)."""
    coded = np.where(np.isnan(rate), 65535, np.clip(np.round(np.nan_to_num(rate) / 0.01), 0, 65534)).astype(np.uint16)
    rows, columns = grid.shape
    edges = {"LL": (grid.west - grid.dx / 2, grid.north - (rows - 0.5) * grid.dy)}
    edges["UR"] = (grid.west + (columns - 0.5) * grid.dx, grid.north + grid.dy / 2)
    to_degrees = Transformer.from_crs(grid.crs, "EPSG:4326", always_xy=True)
    day, clock = time.astimezone(UTC).strftime("%Y%m%d %H%M%S").split()
    with h5py.File(path, "w") as file:
        file.attrs["Conventions"] = "ODIM_H5/V2_3"
        what = file.create_group("what").attrs
        what.update({"object": "COMP", "version": "H5rad 2.3", "date": day, "time": clock, "source": "ORG:0"})
        where = file.create_group("where").attrs
        with warnings.catch_warnings():  # what a PROJ string cannot tell, a grid in metres does not need
            warnings.simplefilter("ignore", UserWarning)
            where.update({"projdef": grid.projection.to_proj4() if ":" in grid.crs else grid.crs})
        where.update({"xsize": columns, "ysize": rows, "xscale": grid.dx, "yscale": grid.dy})
        for corner, (x, y) in edges.items():
            where[f"{corner}_lon"], where[f"{corner}_lat"] = to_degrees.transform(x, y)
        dataset = file.create_group("dataset1")
        data = dataset.create_group("data1")
        data.create_dataset("data", data=coded, compression="gzip", compression_opts=1, shuffle=True)
        coding = {"quantity": "RATE", "gain": 0.01, "offset": 0.0, "nodata": 65535.0, "undetect": 0.0}
        data.create_group("what").attrs.update(coding)
        span = {"startdate": day, "starttime": clock, "enddate": day, "endtime": clock, "product": "SURF"}
        dataset.create_group("what").attrs.update(span)


def _erfinv(value: float) -> float:
    from scipy.special import erfinv

    return float(erfinv(value))
