"""A network of the moving frame as a forecasting method: rain is carried along its motion, and corrected on the way.

The motion is that of optical flow. Past frames are taken from where the rain was, so that rain which only moves stands
still; the network forecasts there, on the common grid of ``models.moving_windows``; each lead is carried to where the
rain will be. So one network serves cadences of 5, 6 and 10 minutes and cells of one and two kilometres.
"""

import contextlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.baselines.motion import estimate_motion
from models.baselines.optical_flow import carried, departures
from models.calibration import Calibration
from models.composition import Composition, composed, nearest
from models.contract import Prediction, check_input
from models.memory import PLENTY
from models.moving_windows import Rain, every, thinned
from models.networks.network import Network
from models.tiles import tiles_within, within
from models.zoo import RAIN_CLASSES

# how surely a level is reached now that the newest frame reaches; per pixel value (0-1) above it
SURE = 60.0
# the same of a network that gives values, at all lead times; it says nothing of how the area grows
STEEP, NO_GROWTH = 20.0, (0.0, 0.0, 0.0, 0.0, 0.0)
# how place and texture are weighed at long lead times, for each level of an ordinal head; chosen by looking at Finland
# and Brisbane (docs/networks.md). In the first minutes motion alone is nearly right: there the moved frame counts more
LATE = Composition(texture=(0.0, 5.0, 50.0, 100.0, 500.0), growth=(0.3, 0.0, 0.0, 0.0, 0.0), mean_share=0.2)
# fields of one number a cell that live at once: while the motion is estimated, and for each lead (positions, flags,
# values); counted on real passes (tests/models/test_moving_frame.py)
FLOW_PLANES, LEAD_PLANES = 60, 5
EARLY_TEXTURE, EARLY_MINUTES, SMOOTH_MINUTES = 20.0, 10.0, 20.0


class MovingFrame(nn.Module):
    """See ``models.contract.Method``; one channel.

    The network decides which cells reach a level, see ``composed``: one with an ordinal head by its logits, one that
    gives values by these, which fade, so that they could not reach the levels by themselves.

    Args:
        network: trained on ``MovingWindows``.
        cadence_minutes, spacing_m: of the frames it will get.
        rain: what their pixels mean.
        input_frames: common steps that it was trained to look at; 0 are as many as it needs.
        calibration: of its probabilities.
        memory_mb: a network that would take more works in tiles; the moving frame itself needs the whole grid.

    Raises:
        ValueError: a head that cannot be carried.
    """

    def __init__(
        self,
        network: Network,
        cadence_minutes: float,
        spacing_m: float,
        rain: Rain,
        input_frames: int = 0,
        calibration: Calibration | None = None,
        memory_mb: int = 4096,
    ) -> None:
        super().__init__()
        if network.output.logits and (network.output.kind, network.output.logits) != ("ordinal", len(LATE.texture)):
            raise ValueError(
                f"a head of values or of {len(LATE.texture)} ordinal levels is needed, got {network.output}"
            )
        if calibration is not None and len(calibration.slope[0]) != network.output.logits:
            raise ValueError(f"calibrated are {len(calibration.slope[0])} levels, there are {network.output.logits}")
        self.network, self.rain, self.calibration = network, rain, calibration
        self.minutes, self.memory_mb = cadence_minutes, memory_mb
        self._parts: dict[tuple[int, ...], list[tuple[slice, slice, slice, slice]]] = {}
        self.step, self.thin = every(cadence_minutes), thinned(spacing_m)
        self.input_frames = max(network.min_frames, input_frames)
        self.min_frames = max(4, self.step * (self.input_frames - 1) + 1)

    @property
    def levels(self) -> tuple[float, ...]:
        """Pixel values (0-1) of these frames whose exceedance is given; whole 255ths."""
        return self._own(self.network.output.levels)

    def _own(self, levels: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(float(v) for v in torch.floor(self.rain.own(torch.tensor(levels)) * 255 + 0.5) / 255)

    def peak_bytes(self, batch: int, frames: int, leads: int, height: int, width: int) -> int:
        """See ``models.contract.Measured``: positions and outputs of all leads, beside the network's own peak."""
        steps, rows, columns = -(-leads // self.step), -(-height // self.thin), -(-width // self.thin)
        own = self._field_bytes(frames, leads, height, width)
        network = self.network.peak_bytes(1, self.input_frames, steps, rows, columns)
        if len(self._tiles(self.input_frames, steps, rows, columns, own)) > 1:
            network = min(network, self.memory_mb * 2**20 - own)
        return batch * (own + network)

    def _field_bytes(self, frames: int, leads: int, height: int, width: int) -> int:
        """What a sample takes beside the network."""
        logits, steps = self.network.output.logits, -(-leads // self.step)
        fine = frames + FLOW_PLANES + leads * (LEAD_PLANES + logits)
        common = (self.input_frames + (steps + 1) * (logits + 1)) / self.thin**2
        return int(4 * (fine + common) * height * width)

    def _tiles(
        self, frames: int, leads: int, height: int, width: int, own: int
    ) -> list[tuple[slice, slice, slice, slice]]:
        """Parts of the common grid in which the network keeps within what the fields leave; one if it needs none.

        One too if it cannot work in parts: whether that fits is for the planner to say.
        """
        key = (frames, leads, height, width, own)
        if key not in self._parts:
            left = max(self.memory_mb * 2**20 - own, 0)
            self._parts[key] = []
            if height * width * PLENTY > left:
                with contextlib.suppress(MemoryError):
                    self._parts[key] = tiles_within(self.network, left, frames, leads, height, width)
        return self._parts[key]

    def forward(self, frames: Tensor, observed: Tensor, leads: int) -> Prediction:
        """See ``models.contract.Method``.

        Raises:
            TypeError, ValueError: see ``models.contract.check_input``.
        """
        check_input(frames, observed, leads, channels=1, min_frames=self.min_frames, min_side=16)
        with torch.autocast(frames.device.type, enabled=False):  # motion of a tenth of a cell is not for bfloat16
            motion = estimate_motion(frames[:, :, 0], observed[:, :, 0])
        own = self._field_bytes(frames.shape[1], leads, *frames.shape[-2:])
        count = self.input_frames
        seen_now, last = observed[:, -1], frames[:, -1] * observed[:, -1]
        way = list(departures(seen_now, motion, max(leads, self.step * (count - 1))))
        past, covered = [last], [seen_now]
        for n in range(self.step, self.step * count, self.step):
            there = way[n - 1][0]
            past.insert(0, carried(frames[:, -1 - n] * observed[:, -1 - n], observed[:, -1 - n], there))
            covered.insert(0, seen_now & ~way[n - 1][1])
        knots = self._knots(torch.stack(past, dim=1), torch.stack(covered, dim=1), -(-leads // self.step), own)
        values, flags, chances = [], [], []
        for n, (there, outside) in enumerate(way[:leads], start=1):
            early, share = divmod(n / self.step, 1.0)
            raw = (
                knots[:, int(early)] if not share else torch.lerp(knots[:, int(early)], knots[:, int(early) + 1], share)
            )
            raw = carried(self._fine(raw, last), torch.ones_like(seen_now), there)
            moved, mean = carried(last, seen_now, there), self.network.output.values(raw)
            fine = nearest(last, seen_now, there, moved)
            fine = torch.lerp(fine, moved, math.exp(-n * self.minutes / SMOOTH_MINUTES))
            how, logits = composition_at(n * self.minutes), raw[:, : self.network.output.logits]
            if not self.network.output.logits:
                how = Composition(how.texture, NO_GROWTH, how.mean_share)
                logits = STEEP * (mean - torch.tensor(RAIN_CLASSES, device=mean.device).view(-1, 1, 1))
            levels = self._own(self.network.output.levels or RAIN_CLASSES)
            values.append(composed(moved, fine, logits, self.rain.own(mean), seen_now, levels, how, self.rain.steep))
            if self.network.output.logits:
                if self.calibration is not None:
                    logits = self.calibration.applied(logits, n / self.step)
                chances.append(self.network.output.exceedance(logits))
            flags.append(outside)
        exceedance = torch.stack(chances, dim=1) if chances else None
        return Prediction(torch.stack(values, dim=1), torch.stack(flags, dim=1), exceedance)

    def _knots(self, past: Tensor, covered: Tensor, leads: int, own: int) -> Tensor:
        """Raw outputs at 0, 1, 2, ... common steps, on the common grid."""
        height, width = past.shape[-2:]
        seen = covered.to(past.dtype)
        fine = self.rain.common(past) * seen
        if self.thin > 1:
            padding = (0, -width % self.thin, 0, -height % self.thin)
            pooled = [F.avg_pool2d(F.pad(part.flatten(1, 2), padding), self.thin) for part in (fine, seen)]
            values, weight = (part.unsqueeze(2) for part in pooled)
            fine, covered = values / weight.clamp_min(0.25), weight > 0.5
        raw = self._rolled_out(fine * covered, covered, leads, own)
        now = fine[:, -1:]
        if self.network.output.logits:
            levels = torch.tensor(self.network.output.levels, device=now.device).view(-1, 1, 1)
            now = torch.cat((SURE * (now - levels), now), dim=2)
        return torch.cat((now, raw), dim=1).float()

    def _rolled_out(self, frames: Tensor, covered: Tensor, leads: int, own: int) -> Tensor:
        """The network's raw outputs, tile by tile where it would take more than its part of the budget."""
        _, count, _, height, width = frames.shape
        parts = self._tiles(count, leads, height, width, own)
        if len(parts) < 2:
            return self.network.roll_out(frames, leads, observed=covered)
        raw: Tensor | None = None
        for rows, columns, keep_rows, keep_columns in parts:
            part = self.network.roll_out(frames[..., rows, columns], leads, observed=covered[..., rows, columns])
            if raw is None:
                raw = part.new_empty((*part.shape[:3], height, width))
            raw[..., keep_rows, keep_columns] = part[..., within(rows, keep_rows), within(columns, keep_columns)]
        assert raw is not None
        return raw

    def _fine(self, raw: Tensor, frame: Tensor) -> Tensor:
        """Outputs of one lead on the grid of the frames; one at a time, which keeps the memory of large grids low."""
        if self.thin == 1:
            return raw
        height, width = frame.shape[-2:]
        fine = F.interpolate(raw, scale_factor=float(self.thin), mode="bilinear", align_corners=False)
        return fine[..., :height, :width]


def composition_at(minutes: float) -> Composition:
    """How place and texture are weighed so many minutes ahead."""
    early = math.exp(-minutes / EARLY_MINUTES)
    return Composition(
        tuple(weight + EARLY_TEXTURE * early for weight in LATE.texture),
        tuple(power * (1 - early) for power in LATE.growth),
        LATE.mean_share,
    )
