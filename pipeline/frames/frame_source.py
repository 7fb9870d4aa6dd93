"""What all frames of a domain share, and whether what is new is like them."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pipeline.grid_checks import grid_difference
from pipeline.grids import Grid

# of the cadence: an accumulation may end a second early
SAME_INTERVAL = 0.1
# a step of the packing is a rain rate by the interval, which may differ by as much
_SAME_FLOOR = 0.12


@dataclass(frozen=True)
class FrameSource:
    """What all frames of a domain share because of where they come from.

    Attributes:
        grid: of the frames.
        drizzle_floor_mm_h: rain below it is no echo.
        interval_s: a frame is the mean over this many seconds that end at its time; 0 is instantaneous.
        quantity: which of several in the feed the frames are made from; empty if it has one, or if that was not kept.
    """

    grid: Grid
    drizzle_floor_mm_h: float
    interval_s: float
    quantity: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values, to a microsecond and a millionth of a millimetre."""
        floor, interval = round(self.drizzle_floor_mm_h, 6), round(self.interval_s, 6)
        kept = {"quantity": self.quantity} if self.quantity else {}
        return {"grid": self.grid.to_json(), "drizzle_floor_mm_h": floor, "interval_s": interval, **kept}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "FrameSource":
        """Inverse of ``to_json``."""
        grid, floor, interval = Grid.from_json(data["grid"]), data["drizzle_floor_mm_h"], data["interval_s"]
        return cls(grid, floor, interval, data.get("quantity", ""))

    def __str__(self) -> str:
        g = self.grid
        return f"{g.shape[0]} x {g.shape[1]} cells of {g.dx:.9g} x {g.dy:.9g} from ({g.west:.9g}, {g.north:.9g})"

    def difference(self, other: "FrameSource", cadence: timedelta) -> str:
        """In what frames of ``other`` are not like these; empty if they mean the same.

        A hundredth of a cell, and of the interval a tenth of the cadence, are forgiven.
        """
        parts = [grid_difference(self.grid, other.grid)]
        if abs(other.interval_s - self.interval_s) > SAME_INTERVAL * cadence.total_seconds():
            parts.append(f"means over {other.interval_s:g} s, not over {self.interval_s:g} s")
        elif abs(other.drizzle_floor_mm_h - self.drizzle_floor_mm_h) > _SAME_FLOOR * self.drizzle_floor_mm_h:
            parts.append(f"smallest rain {other.drizzle_floor_mm_h:g} mm/h, not {self.drizzle_floor_mm_h:g} mm/h")
        if self.quantity and other.quantity and other.quantity != self.quantity:
            parts.append(f"quantity {other.quantity}, not {self.quantity}")
        return "; ".join(part for part in parts if part)
