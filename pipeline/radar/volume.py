"""What every format decodes to: the sweeps of one radar, with no echo and no measurement told apart."""

from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

# dBZ of a measured gate without echo; far below any rain
NO_ECHO_DBZ = -32.0


@dataclass(frozen=True)
class Site:
    """Position of an antenna: degrees, and metres above mean sea level."""

    longitude: float
    latitude: float
    altitude: float


@dataclass(frozen=True)
class Sweep:
    """One turn of the antenna at one elevation.

    Attributes:
        elevation: degrees, the median over the rays.
        azimuth: (rays,) degrees clockwise from north, rising.
        range_m: distance of the first gate's centre, metres.
        gate_m: gate spacing, metres.
        dbz: (rays, gates); NaN where nothing was measured, NO_ECHO_DBZ where there was no echo.
        rhohv: (rays, gates) co-polar correlation, NaN where unknown; None if the sweep has none.
        fluctuation: (rays, gates) variation of the echo from pulse to pulse, dB, NaN where unknown; None if not given.
        filtered: the moment is Doppler-filtered (DBZH), not raw (TH).
        surveillance: a NEXRAD cut made for reflectivity (long range, no range folding).
        time: mean time of the rays, UTC.
        blank: there is nothing but a code that means no echo and not measured alike.
        removed: (rays, gates) taken out by quality control (NaN in ``dbz``); None if nothing was.
    """

    elevation: float
    azimuth: Floats
    range_m: float
    gate_m: float
    dbz: Floats
    rhohv: Floats | None
    fluctuation: Floats | None
    filtered: bool
    surveillance: bool
    time: datetime
    blank: bool = False
    removed: NDArray[np.bool_] | None = None

    @property
    def reach_m(self) -> float:
        """Distance of the last gate's centre, metres."""
        return float(self.range_m + self.gate_m * (self.dbz.shape[1] - 1))


@dataclass(frozen=True)
class Volume:
    """What one radar measured in one scan.

    Attributes:
        radar: name of the radar in the domain.
        sweeps: those that can be used, in the order in which they were measured.
        defects: why it is only a part of what the radar scanned; empty if it is whole.
    """

    radar: str
    site: Site
    sweeps: tuple[Sweep, ...]
    defects: tuple[str, ...] = ()

    @property
    def is_silent(self) -> bool:
        """No gate of any sweep tells that the radar was at work."""
        return all(sweep.blank or bool(np.isnan(sweep.dbz).all()) for sweep in self.sweeps)
