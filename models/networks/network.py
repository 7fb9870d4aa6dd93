"""What all networks share: input checks, padding to the grid they need, heads, and the contract's ``forward``."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.contract import Prediction, check_input
from models.heads import Head


class Network(nn.Module):
    """Base of the networks; a subclass writes ``unroll``.

    Attributes:
        channels: of pixels, in and out.
        output: meaning of the raw outputs.
        multiple: height and width are padded with "no echo" to multiples of it, and cropped again.
        min_frames: input frames it needs; more are welcome.
        min_side: smallest height and width.
        takes_teacher: feeds on its last output, so that true frames can be fed in its place during training.
        sees_coverage: looks at where its frames were observed.
        picks_leads: can make some of its leads only, which is cheaper in training.
    """

    min_frames = 1
    min_side = 1
    multiple = 1
    takes_teacher = False
    sees_coverage = False
    picks_leads = False

    def __init__(self, channels: int, head: Head) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"a network needs at least one channel, got {channels}")
        self.channels, self.output = channels, head

    @property
    def levels(self) -> tuple[float, ...]:
        """Pixel values (0-1) whose exceedance it gives."""
        return self.output.levels

    def influence(self, frames: int, leads: int) -> int | None:
        """How far a pixel can matter for a forecast, in pixels, so that large grids can be done in parts.

        None if that is the whole grid, or not bounded in a way that helps.
        """
        return None

    def peak_bytes(self, batch: int, frames: int, leads: int, height: int, width: int) -> int:
        """See ``models.contract.Measured``."""
        from models.memory import peak_bytes

        return peak_bytes(self, batch, frames, leads, height, width)

    def forward(self, frames: Tensor, observed: Tensor, leads: int) -> Prediction:
        """See ``models.contract.Method``. Cells not observed enter as no echo; nothing is flagged as inflow.

        Raises:
            TypeError, ValueError: see ``models.contract.check_input``.
        """
        sizes = {"channels": self.channels, "min_frames": self.min_frames, "min_side": self.min_side}
        check_input(frames, observed, leads, **sizes)
        return self.output.prediction(self.roll_out(frames * observed, leads, observed=observed))

    def roll_out(
        self,
        frames: Tensor,
        leads: int,
        teacher: Tensor | None = None,
        taught: Tensor | None = None,
        observed: Tensor | None = None,
        picked: Sequence[int] | None = None,
    ) -> Tensor:
        """Raw outputs, for the loss.

        Args:
            frames: (batch, time, channel, height, width), 0-1.
            leads: frames to forecast.
            teacher: (batch, leads, channel, height, width) true frames fed instead of the own output (Wu's
                training); None feeds the own, clipped output (Wu's inference).
            taught: (batch, leads) bool: where the true frame is fed (scheduled sampling); None is everywhere.
            observed: (batch, time, 1, height, width) bool, for networks that look at it; None is all.
            picked: rising numbers of the only leads to make, from 0; None is all.

        Returns:
            (batch, leads, outputs of the head, height, width).

        Raises:
            ValueError: a teacher for a network that does not feed on its output, or of another shape.
        """
        if teacher is not None and not self.takes_teacher:
            raise ValueError(f"{type(self).__name__} does not feed on its last output, so no teacher can help it")
        height, width = frames.shape[-2:]
        wanted = (frames.shape[0], leads, self.channels, height, width)
        if teacher is not None and tuple(teacher.shape) != wanted:
            raise ValueError(f"the teacher must be {wanted}, got {tuple(teacher.shape)}")
        padding = (0, -width % self.multiple, 0, -height % self.multiple)
        if picked is not None and not self.picks_leads:
            raise ValueError(f"{type(self).__name__} makes all its leads, or none")
        covered = None
        if self.sees_coverage and observed is not None:
            covered = F.pad(observed.to(frames.dtype), padding)
        feed = Feed(teacher, taught, (height, width), padding, covered, picked)
        return self.unroll(F.pad(frames, padding), leads, feed)[..., :height, :width]

    def unroll(self, frames: Tensor, leads: int, feed: "Feed") -> Tensor:
        """``roll_out`` on a grid that fits ``multiple``."""
        raise NotImplementedError


@dataclass(frozen=True)
class Feed:
    """What enters after each lead, on the padded grid: the own output, the true frame, or as ``taught`` says.

    The padding stays "no echo", whatever a network makes there, so that it does not flow back into the picture.

    Attributes:
        observed: (batch, time, 1, height, width), 1 where a cell was observed, 0 elsewhere; None is all.
        picked: the only leads to make; None is all.
    """

    teacher: Tensor | None
    taught: Tensor | None
    size: tuple[int, int]
    padding: tuple[int, int, int, int]
    observed: Tensor | None = None
    picked: Sequence[int] | None = None

    @property
    def known(self) -> Tensor | None:
        """All frames that will be fed, (batch, leads, channel, height, width), if none depends on the output."""
        return None if self.teacher is None or self.taught is not None else F.pad(self.teacher, self.padding)

    def __call__(self, own: Tensor, lead: int) -> Tensor:
        """The frame that enters after ``lead``; ``own`` is (batch, channel, height, width), 0-1."""
        own = own[..., : self.size[0], : self.size[1]]
        if self.teacher is not None:
            true = self.teacher[:, lead]
            own = true if self.taught is None else torch.where(self.taught[:, lead, None, None, None], true, own)
        return F.pad(own, self.padding)
