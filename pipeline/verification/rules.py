"""The rules of a verification: what is an event, which windows, which lead times; kept with every file of sums."""

import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.domain import Domain
from pipeline.frames.frame_source import FrameSource
from pipeline.frames.grayscale import pixel_of_rate, pixel_of_reflectivity, rate_table
from pipeline.grids import Grid
from pipeline.verification.neighbourhood import LARGEST_WINDOW, Window
from pipeline.verification.pairs import BALANCED_WEIGHTS, FAINT_DBZ, PixelTables

# sums over neighbourhoods and wavelengths are kept for the lead times nearest to these, the same for every cadence
STRUCTURE_LEADS_MINUTES = (10, 20, 30, 45, 60, 90, 120)
# what sentences are about, minutes and mm/h
HEADLINE_LEADS = (30, 60)
HEADLINE_THRESHOLDS = (0.5, 5.0)
# of probabilities: bins around 0, 0.1, ..., 1
PROBABILITY_BINS = 11
# changes whenever sums come to mean something else
METHOD_VERSION = 1


@dataclass(frozen=True)
class Rules:
    """How a domain's forecasts are scored; equal rules give sums that may be added up.

    Attributes:
        thresholds_mm_h: an event is a pixel at or above the threshold's own.
        leads_minutes: every lead time.
        structure_leads: index of those with sums over neighbourhoods and wavelengths.
        windows: (rows, columns) of each scale of the fractions skill score.
        grid: of the frames.
        drizzle_floor_mm_h: rain below it is no rain, in forecast and observation.
        scale_dbz, z_r: what pixels and rates mean.
        ignore_faint_echo: HKO-7's rule, see ``pairs.FAINT_DBZ``.
    """

    thresholds_mm_h: tuple[float, ...]
    leads_minutes: tuple[int, ...]
    structure_leads: tuple[int, ...]
    windows: tuple[Window, ...]
    grid: Grid
    drizzle_floor_mm_h: float
    scale_dbz: tuple[float, float]
    z_r: tuple[float, float]
    ignore_faint_echo: bool

    @property
    def scales_km(self) -> list[float]:
        """Side of each window on the ground (of a square with the same area)."""
        rows_km, columns_km = self.grid.ground_spacing_km
        return [round(float(np.sqrt(high * rows_km * wide * columns_km)), 2) for high, wide in self.windows]

    def to_json(self) -> str:
        """For the attribute of a file of sums."""
        plain = {**vars(self), "grid": self.grid.to_json(), "method_version": METHOD_VERSION}
        return json.dumps(plain, sort_keys=True)


def rules_of(domain: Domain, source: FrameSource) -> Rules:
    """The rules that the settings give for the frames of the archive."""
    cadence, leads = domain.cadence_minutes, range(1, domain.lead_frames + 1)
    within = [minutes for minutes in STRUCTURE_LEADS_MINUTES if minutes <= cadence * len(leads)] or [cadence]
    floor = round(source.drizzle_floor_mm_h, 6)
    return Rules(
        thresholds_mm_h=domain.thresholds_mm_h,
        leads_minutes=tuple(n * cadence for n in leads),
        structure_leads=tuple(sorted({max(1, round(minutes / cadence)) - 1 for minutes in within})),
        windows=_windows(domain.verification.scales_km, source.grid),
        grid=source.grid,
        drizzle_floor_mm_h=floor,
        scale_dbz=(domain.scale.dbz_min, domain.scale.dbz_max),
        z_r=(domain.zr.a, domain.zr.b),
        ignore_faint_echo=domain.verification.ignore_faint_echo,
    )


def _windows(scales_km: tuple[float, ...], grid: Grid) -> tuple[Window, ...]:
    """Whole cells nearest to each scale; two scales of the same cells are one, those larger than the grid none."""
    rows_km, columns_km = grid.ground_spacing_km
    found = [(max(1, round(km / rows_km)), max(1, round(km / columns_km))) for km in scales_km]
    held = [w for w in found if w[0] <= grid.shape[0] and w[1] <= grid.shape[1] and w[0] * w[1] <= LARGEST_WINDOW]
    return tuple(dict.fromkeys(held or [(1, 1)]))


def pixel_tables(domain: Domain, rules: Rules) -> PixelTables:
    """The rules as tables over the 256 pixels."""
    level = np.arange(256)
    weights = np.ones(256)
    for rate, weight in BALANCED_WEIGHTS:
        weights[pixel_of_rate(rate, domain.zr, domain.scale) :] = weight
    faintest = int(pixel_of_reflectivity(np.array(FAINT_DBZ, np.float32), domain.scale))
    return PixelTables(
        thresholds=tuple(pixel_of_rate(t, domain.zr, domain.scale) for t in rules.thresholds_mm_h),
        rates=rate_table(domain.zr, domain.scale, rules.drizzle_floor_mm_h).astype(np.float64),
        weights=weights,
        faint=(level > 0) & (level < faintest) & rules.ignore_faint_echo,
    )


def nearest(values: NDArray[np.number], wanted: tuple[float, ...]) -> list[int]:  # type: ignore[type-arg]
    """Index of the value nearest to each wanted one, each once, in order."""
    return sorted({int(np.abs(np.asarray(values, np.float64) - one).argmin()) for one in wanted})


def rules_text(domain: Domain, rules: Rules, seed: int) -> list[str]:
    """The rules of the verification, for the page."""
    windows = ", ".join(
        f"{high} x {wide} cells ({km:.3g} km)" for (high, wide), km in zip(rules.windows, rules.scales_km, strict=True)
    )
    rows_km, columns_km = rules.grid.ground_spacing_km
    faint = (
        f"Pairs whose observation shows echo below {FAINT_DBZ:.1f} dBZ, but not none, take no part (rule of HKO-7)."
        if rules.ignore_faint_echo
        else "Faint observed echo counts like any other (the rule of HKO-7, which leaves it out, is off)."
    )
    return [
        "An event is a pixel at or above the threshold's own pixel, by the same function for forecast and observation.",
        "Common pixels: the observation and every compared method have a value. All observed pixels: the observation "
        "has a value, and a missing forecast counts as dry. The methods compared are part of the name of the scores.",
        "Cells that were not measured, were filled by advection, or were removed by quality control are never "
        "observations.",
        "Hits, misses, false alarms, correct negatives, squared errors and components of the FSS are summed over all "
        "pixels and forecasts of a lead time; ratios are made last. A ratio with a zero denominator is not measured, "
        "never 0.",
        f"Rain below {rules.drizzle_floor_mm_h:g} mm/h is no rain, in forecast and observation. {faint}",
        f"FSS: fractions of events among the valid cells of a window; a window counts if it lies on the grid and half "
        f"of its cells are valid. Windows: {windows}; cells are {rows_km:.2f} km from north to south and "
        f"{columns_km:.2f} km from west to east on the ground, at the middle of the grid.",
        "Spectra: of reflectivity (dB above the bottom of the scale) on the common pixels, no echo elsewhere, in bands "
        "of a third of an octave.",
        "MSE, MAE and correlation are of 0-255 pixels; the correlation is un-centred (Wu 2019). B-MSE and "
        "B-MAE are those of HKO-7: weights 2, 5, 10 and 30 from 2, 5, 10 and 30 mm/h observed, summed over a frame in "
        "units of 0-1. Rainfall errors are in mm/h.",
        "Intervals: 95 % percentile intervals of 1000 draws of blocks of hours in a row, the same for every method "
        f"(seed {seed}), widened as for a mean of as many values as there are blocks. A block is one to two times as "
        "long as forecasts resemble each other (see below), at least an hour; with fewer than 6 blocks there are none. "
        "Better or worse is said only where the interval of the difference leaves out 0.",
        "Effective forecasts: n (1 - r) / (1 + r), where r is the correlation, from one forecast to the next, of the "
        "difference in CSI between the first two methods at the lowest threshold (Wilks 2011).",
        "Warnings: an event is a spell of cycles with the amount observed ahead; it is detected if a warning stood "
        "before all of it had fallen, and the time gained is from the warning to then, at most twice the minutes of "
        "the rule. A warning that never stood in such a cycle is false. Onsets are of forecasts made while it was dry; "
        "an error above 0 is too late.",
        f"Z = {domain.zr.a:g} R^{domain.zr.b:g}; pixels 0 to 255 are {rules.scale_dbz[0]:g} to "
        f"{rules.scale_dbz[1]:g} dBZ.",
    ]
