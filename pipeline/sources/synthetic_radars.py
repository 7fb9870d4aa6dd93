"""Synthetic rain as a network of radars sees it, written as ODIM_H5 volumes that any reader opens.

What a radar does to the rain: beams that rise with distance, less echo above the melting layer, noise, a smallest
echo that grows with distance, ground clutter (with the low correlation that tells it), and a scan that takes minutes,
during which the rain moves. Everything is a pure function of seed, radar and time.
"""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from pyproj import Geod, Transformer
from scipy.ndimage import map_coordinates

from pipeline import times
from pipeline.domain import Domain
from pipeline.grids import Grid
from pipeline.radar.decode import read_volume
from pipeline.radar.gridding import EFFECTIVE_EARTH_M
from pipeline.radar.volume import NO_ECHO_DBZ, Floats, Volume
from pipeline.source_settings import RadarSite, SyntheticRadarsSource
from pipeline.sources.contract import VolumeRef
from pipeline.sources.synthetic import SyntheticRain

log = logging.getLogger(__name__)

ELEVATIONS = (0.5, 0.9, 1.5, 2.4, 3.6, 5.5, 8.5)
RAYS, GATES, GATE_M = 360, 300, 500.0
SWEEP_S = 20.0
# the scan begins this long before its nominal time, each radar a little later than the one before
LEAD_S, STAGGER_S = 150.0, 15.0
MELTING_M, ICE_DB_PER_KM = 3000.0, 6.0
NOISE_DB = 1.0
FAINTEST_DBZ_AT_50KM = -8.0
CLUTTER_REACH_M, CLUTTER_HIGHEST = 40e3, 1.2


@dataclass(frozen=True)
class Scan:
    """One sweep as the radar writes it: (rays, gates)."""

    elevation: float
    start: datetime
    dbz: Floats
    rhohv: Floats


class RadarNetwork:
    """Implements ``pipeline.sources.contract.PolarFeed``."""

    def __init__(self, config: SyntheticRadarsSource, domain: Domain) -> None:
        self.config = config
        self.domain = domain
        self.rain = SyntheticRain(config, domain)

    def list(self, start: datetime, end: datetime, warn: Callable[[str], None] = log.warning) -> list[VolumeRef]:
        """A volume of every radar for each instant of the axis; it arrives when its last sweep has been made."""
        length = timedelta(seconds=SWEEP_S * len(ELEVATIONS))
        about = f"{self.config.seed} {self.config.radars} {self.config.event_hours} {self.config.max_speed_m_s}"
        etag = hashlib.sha256(about.encode()).hexdigest()[:16]
        return [
            VolumeRef(f"{radar}_{times.compact(time)}.h5", time, 0, etag, self.start(radar, time) + length, radar)
            for time in times.slots(start, end, self.domain.cadence)
            for radar in sorted(self.config.radars)
        ]

    def read(self, ref: VolumeRef, scratch: Path) -> Volume:
        """Write the volume and decode it again, as one that was received."""
        path = scratch / ref.key
        self.write(path, ref.radar, ref.nominal_time)
        return read_volume(path, ref.radar, ref.nominal_time)

    def files(self, ref: VolumeRef, scratch: Path) -> "tuple[Path, ...]":
        """None: what is made again needs no keeping."""
        return ()

    def write(self, path: Path, radar: str, nominal_time: datetime) -> None:
        """The volume of a radar as ODIM_H5."""
        write_volume(path, radar, self.config.radars[radar], nominal_time, self.scan(radar, nominal_time))

    def start(self, radar: str, nominal_time: datetime) -> datetime:
        """When the radar begins its scan."""
        number = sorted(self.config.radars).index(radar)
        return nominal_time + timedelta(seconds=STAGGER_S * (number % 5) - LEAD_S)

    def scan(self, radar: str, nominal_time: datetime) -> "tuple[Scan, ...]":
        """What the radar measures, sweep by sweep, from low to high."""
        site = self.config.radars[radar]
        number = sorted(self.config.radars).index(radar)
        clutter = _clutter(self.config.seed, number)
        made = []
        for n, elevation in enumerate(ELEVATIONS):
            start = self.start(radar, nominal_time) + timedelta(seconds=n * SWEEP_S)
            rng = np.random.default_rng((self.config.seed, number, times.seconds(nominal_time), n))
            rate = self.rain.rain_rate(start + timedelta(seconds=SWEEP_S / 2))
            rows, columns, height, slant = _gates(site, elevation, self.rain.grid)
            seen = map_coordinates(rate, np.stack((rows, columns)), order=1, cval=0.0)
            zr = self.domain.zr
            with np.errstate(divide="ignore"):
                dbz = 10 * np.log10(zr.a) + 10 * zr.b * np.log10(seen)
            dbz = dbz - ICE_DB_PER_KM * np.maximum(0.0, height - MELTING_M) / 1000
            dbz = dbz + rng.normal(0, NOISE_DB, dbz.shape)
            rhohv = rng.uniform(0.96, 0.995, dbz.shape)
            if elevation <= CLUTTER_HIGHEST:
                ground = clutter > dbz
                dbz = np.where(ground, clutter + rng.normal(0, NOISE_DB, dbz.shape), dbz)
                rhohv = np.where(ground, rng.uniform(0.3, 0.7, dbz.shape), rhohv)
            faintest = FAINTEST_DBZ_AT_50KM + 20 * np.log10(slant / 50e3)
            dbz = np.where(dbz > faintest, dbz, NO_ECHO_DBZ)
            made.append(Scan(elevation, start, dbz.astype(np.float32), rhohv.astype(np.float32)))
        return tuple(made)


def write_volume(path: Path, radar: str, site: RadarSite, nominal_time: datetime, scans: "tuple[Scan, ...]") -> None:
    """Write an ODIM_H5 polar volume (object PVOL) with DBZH and RHOHV, both 8 bits."""
    day, clock = _stamp(nominal_time)
    with h5py.File(path, "w") as file:
        file.attrs["Conventions"] = "ODIM_H5/V2_3"
        what = {"object": "PVOL", "version": "H5rad 2.3", "date": day, "time": clock, "source": f"NOD:{radar}"}
        _group(file, "what", what)
        _group(file, "where", {"lon": site.longitude, "lat": site.latitude, "height": site.altitude_m})
        _group(file, "how", {"scan_count": len(scans)})
        for n, scan in enumerate(scans, start=1):
            rays, gates = scan.dbz.shape
            dataset = file.create_group(f"dataset{n}")
            end = scan.start + timedelta(seconds=SWEEP_S)
            (startdate, starttime), (enddate, endtime) = _stamp(scan.start), _stamp(end)
            span = {"startdate": startdate, "starttime": starttime, "enddate": enddate, "endtime": endtime}
            _group(dataset, "what", {"product": "SCAN", **span})
            where = {"elangle": scan.elevation, "a1gate": 0, "nbins": gates, "nrays": rays}
            _group(dataset, "where", {**where, "rstart": 0.0, "rscale": GATE_M})
            dbz = np.clip(np.rint((scan.dbz + 32) / 0.5), 1, 254)
            dbz = np.where(scan.dbz <= NO_ECHO_DBZ, 0, np.where(np.isnan(scan.dbz), 255, dbz))
            _data(dataset, 1, "DBZH", dbz, 0.5, -32.0)
            _data(dataset, 2, "RHOHV", np.clip(np.rint(scan.rhohv * 250), 1, 254), 0.004, 0.0)


def _data(dataset: h5py.Group, number: int, quantity: str, coded: NDArray[Any], gain: float, offset: float) -> None:
    group = dataset.create_group(f"data{number}")
    group.create_dataset("data", data=coded.astype(np.uint8), compression="gzip", compression_opts=1)
    _group(group, "what", {"quantity": quantity, "gain": gain, "offset": offset, "nodata": 255.0, "undetect": 0.0})


def _group(parent: h5py.Group, name: str, attributes: dict[str, Any]) -> None:
    parent.create_group(name).attrs.update(
        {key: np.bytes_(value) if isinstance(value, str) else value for key, value in attributes.items()}
    )


def _stamp(time: datetime) -> tuple[str, str]:
    day, clock = time.astimezone(UTC).strftime("%Y%m%d %H%M%S").split()
    return day, clock


@lru_cache(maxsize=64)
def _gates(
    site: RadarSite, elevation: float, grid: Grid
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Row and column on the grid, height above sea level and slant range of every gate."""
    slant = GATE_M * (np.arange(GATES) + 0.5)
    slope = np.deg2rad(elevation)
    antenna = EFFECTIVE_EARTH_M + site.altitude_m
    radius = np.sqrt(slant**2 + antenna**2 + 2 * slant * antenna * np.sin(slope))
    ground = EFFECTIVE_EARTH_M * np.arcsin(slant * np.cos(slope) / radius)
    azimuth = (np.arange(RAYS) + 0.5) * 360 / RAYS
    azimuths, distances = np.meshgrid(azimuth, ground, indexing="ij")
    here = np.full(azimuths.shape, site.longitude), np.full(azimuths.shape, site.latitude)
    lon, lat, _ = Geod(ellps="WGS84").fwd(*here, azimuths, distances)
    x, y = Transformer.from_crs("EPSG:4326", grid.projection, always_xy=True).transform(lon, lat)
    height = np.broadcast_to(radius - EFFECTIVE_EARTH_M, azimuths.shape)
    return (grid.north - y) / grid.dy, (x - grid.west) / grid.dx, height, np.broadcast_to(slant, azimuths.shape)


@lru_cache(maxsize=64)
def _clutter(seed: int, number: int) -> Floats:
    """Echo of the ground around a radar, dBZ; NO_ECHO_DBZ where there is none."""
    rng = np.random.default_rng((seed, number, 7))
    slant = GATE_M * (np.arange(GATES) + 0.5)
    chance = np.where(slant < CLUTTER_REACH_M, 0.15 * np.exp(-slant / 15e3), 0.0)
    where = rng.random((RAYS, GATES)) < chance
    return np.where(where, rng.uniform(20, 50, where.shape), NO_ECHO_DBZ).astype(np.float32)
