"""Reference forecasts of pysteps, made on request from the archive and kept beside the product.

``sprog`` fades what cannot be predicted, ``steps_mean`` is the mean of an ensemble: both show what smoothing alone
gains in squared error. ``anvil`` keeps growth and decay. pysteps is installed with the comparison packages.
"""

import contextlib
import io
import logging
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pipeline import catalog as tables
from pipeline import packing
from pipeline.catalog import Row
from pipeline.domain import Domain
from pipeline.errors import SettingsError
from pipeline.frames.archive import Archive
from pipeline.frames.grayscale import pixel_of_rate, pixel_of_reflectivity, rate_table, reflectivity_of_rate
from pipeline.frames.sequences import InputSequence, read_sequence
from pipeline.storage import Store
from pipeline.verification.scoring import Compared

log = logging.getLogger(__name__)

NAMES = ("anvil", "sprog", "steps_mean")
STEPS_MEMBERS = 12
FORMAT_VERSION = 1
# of the logarithm of rain rates; pysteps' convention: what is dry lies 1.5 dB below the smallest rain
DRY_BELOW_DB = 1.5


def reference(name: str, domain: Domain, store: Store, archive: Archive, row: Row) -> Compared:
    """One reference forecast of a published cycle; made at the first request, then read.

    Raises:
        SettingsError: pysteps is not installed.
        NotForecast: the frames it was made from have left the archive.
    """
    product = store.root / row["path"]
    path = product.with_name(f"{product.stem}.{name}.nc")
    try:
        data: xr.Dataset | None = packing.read_packed(store.get(path))
        if data is not None and data.attrs["inputs_digest"] != row["inputs_digest"]:
            data = None
    except FileNotFoundError:
        data = None
    except (OSError, ValueError, KeyError) as err:
        log.warning("the reference %s is damaged and is made again: %s", path.name, err)
        data = None
    if data is None:
        data = _make(name, domain, archive, row)
        with store.publish(path) as temporary:
            packing.write(data, temporary)
    if not data.attrs["reason"]:
        return Compared(name, data["pixel"].values, data["valid"].values.astype(bool))
    return Compared(name, data["pixel"].values, None)


def _make(name: str, domain: Domain, archive: Archive, row: Row) -> xr.Dataset:
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints where its settings lie
            import pysteps  # noqa: F401
    except ImportError as err:
        raise SettingsError(
            f"domains.{domain.name}.verification.references: {name} needs pysteps, which `make setup-dev` installs"
        ) from err
    sequence = read_sequence(archive, domain, tables.from_seconds(row["reference_time"]))
    reason = ""
    shape = (domain.lead_frames, *sequence.rain.shape[1:])
    pixels, valid = np.zeros(shape, np.uint8), np.zeros(shape, bool)
    if sequence.digest(domain) != row["inputs_digest"]:
        reason = "the frames that the forecast was made from are not those of the archive any more"
    elif sequence.missing_times:
        reason = "input frames are missing"
    elif sequence.is_dry:
        valid[:] = sequence.observed[-1]
    else:
        try:
            rates = _forecast(name, domain, sequence)
        except (ValueError, RuntimeError, IndexError, np.linalg.LinAlgError) as err:
            reason = f"pysteps failed: {err}"
            log.warning("%s of %s: %s", name, row["path"], reason)
        else:
            valid = ~np.isnan(rates) & sequence.observed[-1]
            floor = pixel_of_rate(sequence.source.drizzle_floor_mm_h, domain.zr, domain.scale)
            rain = np.where(valid, rates, 0).astype(np.float32)
            pixels = pixel_of_reflectivity(reflectivity_of_rate(rain, domain.zr), domain.scale)
            pixels[pixels < floor] = 0
    return xr.Dataset(
        {
            "pixel": xr.Variable(("lead", "y", "x"), pixels, {"long_name": "0-255 frame"}),
            "valid": xr.Variable(("lead", "y", "x"), valid.astype(np.int8)),
        },
        attrs={
            "format_version": FORMAT_VERSION,
            "method": name,
            "reason": reason,
            "inputs_digest": str(row["inputs_digest"]),
        },
    )


def _forecast(name: str, domain: Domain, sequence: InputSequence) -> NDArray[np.floating[Any]]:
    """Rain rates (lead, rows, columns), NaN where the motion leads outside; the newest three frames are used."""
    import warnings

    floor_mm_h = sequence.source.drizzle_floor_mm_h
    table = rate_table(domain.zr, domain.scale, floor_mm_h).astype(np.float64)
    rates = table[np.where(sequence.observed, sequence.rain, 0)]
    threshold_db = 10 * np.log10(floor_mm_h)
    with np.errstate(divide="ignore"):
        decibels = np.where(rates >= floor_mm_h, 10 * np.log10(rates), threshold_db - DRY_BELOW_DB)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        from pysteps import motion, nowcasts

        velocity = motion.get_method("LK")(decibels)
        leads, spacing_km = domain.lead_frames, sequence.source.grid.spacing_m / 1000
        if name == "anvil":
            made = nowcasts.get_method("anvil")(rates[-4:], velocity, leads, n_cascade_levels=6, ar_order=2)
            return np.asarray(made)
        if name == "sprog":
            made = nowcasts.get_method("sprog")(decibels[-3:], velocity, leads, precip_thr=threshold_db)
        else:
            made = nowcasts.get_method("steps")(
                decibels[-3:],
                velocity,
                leads,
                n_ens_members=STEPS_MEMBERS,
                n_cascade_levels=6,
                precip_thr=threshold_db,
                kmperpixel=spacing_km,
                timestep=domain.cadence_minutes,
                seed=0,
                num_workers=1,
            )
        made = np.asarray(made)
        rates_made = np.where(made >= threshold_db, 10 ** (made / 10), 0.0)
        rates_made[np.isnan(made)] = np.nan
        return np.asarray(np.mean(rates_made, axis=0) if name == "steps_mean" else rates_made)
