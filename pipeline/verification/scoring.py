"""All sums of one reference time: every compared method against what was observed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.frames.grayscale import Frame, Pixels
from pipeline.verification import probability
from pipeline.verification.neighbourhood import COMPONENTS, FractionSums
from pipeline.verification.pairs import COUNTS, MOMENTS, PIXEL_SETS, PixelTables, pair_sums
from pipeline.verification.rules import Rules
from pipeline.verification.spectrum import band_power, bands, rings

Sums = dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Compared:
    """The forecast of one method for one reference time.

    Attributes:
        pixels: (lead, rows, columns) uint8.
        valid: same shape, where the method has a value; None if it could not run at all.
        exceedance: (threshold, lead, rows, columns) probability of the rules' thresholds, 0-1; None if it has none.
        members: (member, lead, rows, columns) pixels of an ensemble, valid where the method is; None if it is none.
    """

    name: str
    pixels: Pixels
    valid: NDArray[np.bool_] | None
    exceedance: NDArray[np.float32] | None = None
    members: Pixels | None = None


class Scorer:
    """Scores forecasts of one domain by the same rules."""

    def __init__(self, rules: Rules, tables: PixelTables) -> None:
        self.rules, self.tables = rules, tables
        self._fractions = FractionSums(rules.windows)
        self._rings = rings(rules.grid.shape, rules.grid.ground_spacing_km)
        self._bands = len(bands(self._rings)[1])

    def sums(self, compared: Sequence[Compared], observations: Sequence[Frame | None]) -> Sums:
        """Sums of every method, lead time and pixel set; the dimensions of each are in ``files.DIMENSIONS``.

        Args:
            compared: the first is the forecast in question, the others are what it is compared with.
            observations: of each lead time; None if it has not come.
        """
        rules, methods = self.rules, len(compared)
        leads, thresholds, sets = len(rules.leads_minutes), len(rules.thresholds_mm_h), len(PIXEL_SETS)
        structure = len(rules.structure_leads)
        counts = np.zeros((len(COUNTS), methods, leads, thresholds, sets), np.int64)
        moments = np.zeros((len(MOMENTS), methods, leads, sets))
        fractions = np.zeros((methods, structure, thresholds, len(rules.windows), len(COMPONENTS), sets), np.float32)
        power = np.zeros((methods, structure, self._bands), np.float32)
        observed_power = np.zeros((structure, self._bands), np.float32)
        uncertain = probability.empty(compared[0], rules, sets)
        for lead, frame in enumerate(observations):
            if frame is None:
                continue
            seen = frame.observed & ~self.tables.faint[frame.rain]
            valid = [np.zeros_like(seen) if c.valid is None else c.valid[lead] for c in compared]
            fields = [np.where(v, c.pixels[lead], 0).astype(np.uint8) for c, v in zip(compared, valid, strict=True)]
            common = seen & np.logical_and.reduce(valid)
            # the two pixel sets are mostly one, which then is looked at once: it is first and last of its list
            masks = [common] if np.array_equal(common, seen) else [common, seen]
            for m, field in enumerate(fields):
                pairs = [pair_sums(field, frame.rain, mask, self.tables) for mask in masks]
                for s, part in enumerate((pairs[0], pairs[-1])):
                    counts[:, m, lead, :, s], moments[:, m, lead, s] = part.counts, part.moments
            if lead not in rules.structure_leads:
                continue
            at = rules.structure_leads.index(lead)
            windows = [self._fractions(fields, frame.rain, mask, self.tables.thresholds) for mask in masks]
            fractions[:, at, ..., 0], fractions[:, at, ..., 1] = windows[0], windows[-1]
            power[:, at] = [self._power(field, common) for field in fields]
            observed_power[at] = self._power(frame.rain, common)
            for s, mask in enumerate((masks[0], masks[-1])):
                probability.add(uncertain, at, s, compared[0], lead, frame.rain, mask, self.tables)
        return {
            **dict(zip(COUNTS, counts.astype(np.int32), strict=True)),
            **dict(zip(MOMENTS, moments, strict=True)),
            **{f"fraction_{name}": fractions[..., n, :] for n, name in enumerate(COMPONENTS)},
            "power": power,
            "observed_power": observed_power,
            "observed": np.array([frame is not None for frame in observations], np.int8),
            **uncertain,
        }

    def _power(self, field: Pixels, mask: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Of reflectivity above the bottom of the scale, dB; nothing outside the mask, in forecast and truth alike."""
        bottom, top = self.rules.scale_dbz
        db = np.where(mask, field, 0).astype(np.float32) * np.float32((top - bottom) / 255)
        return band_power(db, self._rings)
