"""The moments of a sweep: under which names reflectivity and its quality are found, and what their codes mean.

What each format writes for "no echo" and for "not measured" differs and is mostly not decoded by xradar; here every
format ends with NaN and NO_ECHO_DBZ.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from pipeline.radar.volume import NO_ECHO_DBZ, Floats, Sweep

HIGHEST_DBZ = 80.0  # nothing in the atmosphere is higher; codes for "not scanned" are
# elevations of one sweep and its repeat for another moment differ by less, degrees
SAME_SWEEP = 0.1

# names of the reflectivity moment, the most filtered first
FILTERED = (
    "DBZH", "DBZ", "dBZ", "DBZHC", "corrected_reflectivity", "reflectivity", "reflectivity_horizontal", "REF", "Z",
)  # fmt: skip
RAW = ("TH", "DBTH", "dBuZ", "total_power")
REFLECTIVITY = FILTERED + RAW
RHOHV = ("RHOHV", "uncorrected_cross_correlation_ratio", "cross_correlation_ratio", "copol_correlation_coeff")
# standard deviation of reflectivity from pulse to pulse (Meteo-France)
FLUCTUATION = "SIGMA"
_STANDARD_NAMES = {
    "equivalent_reflectivity_factor",
    "equivalent_reflectivity_factor_h",
    "radar_equivalent_reflectivity_factor_h",
}


def reflectivity_moment(data: Any) -> str | None:
    """The most filtered reflectivity of a sweep: by its name, else by its standard name, else a raw one; or None."""
    by_name = next((name for name in FILTERED if name in data), None)
    named = (str(n) for n, v in data.data_vars.items() if v.attrs.get("standard_name") in _STANDARD_NAMES)
    by_standard_name = next((name for name in named if name not in RAW), None)
    return by_name or by_standard_name or next((name for name in RAW if name in data), None)


def filtered_where_both(sweeps: Iterable[Sweep]) -> list[Sweep]:
    """Without raw sweeps of an elevation of which there is as whole a filtered one: clutter would come with them."""
    sweeps = list(sweeps)
    filtered = [sweep for sweep in sweeps if sweep.filtered]
    return [
        sweep
        for sweep in sweeps
        if sweep.filtered
        or not any(
            abs(other.elevation - sweep.elevation) <= SAME_SWEEP
            and len(other.azimuth) >= 0.9 * len(sweep.azimuth)
            and other.reach_m >= 0.9 * sweep.reach_m
            for other in filtered
        )
    ]


def decoded(field: Any, kind: str) -> tuple[Floats, bool]:
    """DBZ with NaN where not measured and NO_ECHO_DBZ where no echo.

    - nexrad: code 0 is below the noise (no echo), code 1 is range-folded (not measured).
    - odim: ``undetect`` is no echo, ``nodata`` (NaN) not measured; where both have one code the file cannot tell them
      apart, and inside its range "nothing" is read as no echo.
    - iris: code 0 (-32 dBZ, also written as -327.68) is no echo; rainbow: code 0, the bottom of its scale.
    - gamic, cfradial: one fill value for both, read as no echo; so is the bottom of a packed scale.

    Returns:
        The values, and whether one code means both and the sweep has nothing else: dry, or the radar is silent.
    """
    values = np.asarray(field.values, np.float32)
    missing = np.isnan(values)
    no_echo = values <= NO_ECHO_DBZ
    one_code = kind in {"iris", "rainbow"}
    if kind == "nexrad":
        code = np.rint((values - field.encoding["add_offset"]) / field.encoding["scale_factor"])
        no_echo, missing = code == 0, missing | (code == 1)
    elif kind == "odim" or (kind.startswith("cfradial") and "_Undetect" in field.attrs):
        undetect, nodata = field.attrs.get("_Undetect"), field.encoding.get("_FillValue")
        if undetect is not None:
            scale, offset = field.encoding.get("scale_factor", 1.0), field.encoding.get("add_offset", 0.0)
            no_echo |= np.isclose(values, undetect * scale + offset, atol=abs(scale) / 4)
        if undetect is not None and nodata is not None and undetect == nodata:
            no_echo, missing, one_code = no_echo | missing, np.zeros_like(missing), True
    elif kind in {"gamic", "cfradial1", "cfradial2"}:
        offset = float(field.encoding.get("add_offset") or NO_ECHO_DBZ)
        # only where no code lies below it; a signed packing has its offset in the middle
        bottom = offset if not (values < offset - 1e-3).any() else NO_ECHO_DBZ
        no_echo, missing = no_echo | missing | (values <= min(bottom, 0.0)), np.zeros_like(missing)
        one_code = True
    elif kind == "rainbow":
        step = field.encoding.get("scale_factor", 0.0)
        no_echo |= values <= field.encoding.get("add_offset", NO_ECHO_DBZ) + step / 2
    missing |= values > HIGHEST_DBZ
    out = np.maximum(values, np.float32(NO_ECHO_DBZ))
    out[no_echo] = NO_ECHO_DBZ
    out[missing] = np.nan
    return out, one_code and not (out > NO_ECHO_DBZ).any()


def correlation(field: Any, kind: str) -> Floats:
    """Correlation with NaN where unknown; codes 0 and 1 of NEXRAD are no values."""
    values = np.asarray(field.values, np.float32)
    if kind == "nexrad":
        code = np.rint((values - field.encoding.get("add_offset", 0)) / field.encoding.get("scale_factor", 1))
        values = np.where(code <= 1, np.nan, values)
    return np.where((values > 0) & (values <= 1.1), values, np.nan).astype(np.float32)
