"""What a product said of its places, beside what came there: the raw material of warnings verified as events."""

import json
import logging
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.advection import amounts_along_motion, estimated_motion
from pipeline.domain import DRIZZLE_FLOOR_MM_H, Domain
from pipeline.frames.frame_source import FrameSource
from pipeline.frames.grayscale import Frame, rate_table
from pipeline.product import amount_steps
from pipeline.storage import Store
from pipeline.warnings.forecasts import spell
from pipeline.warnings.places import places_of, values

log = logging.getLogger(__name__)

MOST_BYTES = 20_000_000
# frames before an instant that tell the motion to it
MOTION_FRAMES = 3


class ObservedPlaces:
    """Rain rates and amounts at the places of a domain, as observed; worked out once for neighbouring forecasts.

    Args:
        read: gives the frame of an instant, or None.
    """

    def __init__(self, domain: Domain, source: FrameSource, read: Callable[[datetime], Frame | None]) -> None:
        self.domain, self.source, self._read = domain, source, read
        self.places = {place.name: place for place in places_of(domain, source.grid)}
        self._rates = rate_table(domain.zr, domain.scale, source.drizzle_floor_mm_h)
        self._at: dict[datetime, NDArray[np.float64]] = {}
        self._steps: dict[datetime, NDArray[np.float64]] = {}

    def records(self, store: Store, product: Path, reference_time: datetime) -> dict[str, Any]:
        """Per place of the product's file of places the amounts and onsets, [forecast, observed]; empty if none.

        Amounts are mm by minutes, onsets minutes after the reference time; None is not known, or no onset. Both are
        None where it rained already, or where an observation or a forecast is missing.
        """
        document = _document(store, store.place_forecasts(product))
        if document is None:
            return {}
        leads = [reference_time + (n + 1) * self.domain.cadence for n in range(self.domain.lead_frames)]
        order = {name: n for n, name in enumerate(self.places)}
        rates = np.stack([self._rates_at(time) for time in (reference_time, *leads)])
        steps = np.stack([self._amounts_to(time) for time in leads])
        found: dict[str, Any] = {}
        for said in document:
            name = said.get("name")
            if name not in order:
                continue
            n = order[name]
            series = rates[:, n]
            known = not np.isnan(series).any()
            shown = np.round(series, 2)
            onset, _ = spell(shown.tolist()) if known else (0, 0)
            forecast = _minutes(said.get("onset"), reference_time)
            covered = None not in said.get("rate_mm_h", [None])
            dry_now = known and covered and shown[0] < DRIZZLE_FLOOR_MM_H
            amounts = {}
            for count in amount_steps(self.domain):
                minutes = f"{count * self.domain.cadence_minutes}"
                total = steps[:count, n].sum()
                amounts[minutes] = [said.get("amount_mm", {}).get(minutes), _plain(total)]
            found[name] = {
                "amount_mm": amounts,
                "onset": [forecast, onset * self.domain.cadence_minutes if onset else None] if dry_now else None,
            }
        return found

    def _rates_at(self, time: datetime) -> NDArray[np.float64]:
        if time not in self._at:
            self._at[time] = self._of_places(self._field(self._read(time)))
        return self._at[time]

    def _amounts_to(self, time: datetime) -> NDArray[np.float64]:
        """Amount at each place in the cadence that ends at ``time``, mm; NaN if a frame is missing."""
        if time not in self._steps:
            cadence_h = self.domain.cadence_minutes / 60
            if self.source.interval_s:
                self._steps[time] = self._rates_at(time) * cadence_h
            else:
                frames = [self._read(time - n * self.domain.cadence) for n in range(MOTION_FRAMES, -1, -1)]
                self._steps[time] = self._along_motion(frames, cadence_h)
        return self._steps[time]

    def _along_motion(self, frames: list[Frame | None], cadence_h: float) -> NDArray[np.float64]:
        before, now = frames[-2:]
        if before is None or now is None:
            return np.full(len(self.places), np.nan)
        newest = [before, now]
        for frame in reversed(frames[:-2]):
            if frame is None:
                break
            newest.insert(0, frame)
        motion = estimated_motion(np.stack([f.rain for f in newest]), np.stack([f.observed for f in newest]))
        (amount,) = amounts_along_motion(np.stack([self._field(before), self._field(now)]), motion, cadence_h)
        return self._of_places(amount)

    def _field(self, frame: Frame | None) -> NDArray[np.floating[Any]]:
        if frame is None:
            return np.full(self.source.grid.shape, np.nan, np.float32)
        return np.where(frame.observed, self._rates[frame.rain], np.float32(np.nan))

    def _of_places(self, field: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        return np.array([float(values(place, field)) for place in self.places.values()])


def _document(store: Store, path: Path) -> list[dict[str, Any]] | None:
    try:
        if (store.size(path) or 0) > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES} bytes")
        places = json.loads(store.read(path))["places"]
        return [place for place in places if isinstance(place, dict)]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as err:
        log.warning("%s is damaged; its places are not verified: %s", path, err)
        return None


def _minutes(time: str | None, reference_time: datetime) -> float | None:
    if time is None:
        return None
    return (datetime.fromisoformat(time) - reference_time).total_seconds() / 60


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 3)
