"""Training engine: series of frames in, trained network and its history out."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.losses import Loss


@dataclass(frozen=True)
class FrameSeries:
    """Frames of one domain on its fixed time axis.

    Attributes:
        pixels: (time, channel, height, width) uint8.
        observed: (time, height, width) bool.
        train, validation: first frames of the windows of each set; windows of the two never share a frame.
    """

    pixels: NDArray[np.uint8]
    observed: NDArray[np.bool_]
    train: NDArray[np.int64]
    validation: NDArray[np.int64]


@dataclass(frozen=True)
class TrainingConfig:
    """How long and on what to train.

    ``crop`` is the side of the random square cut from each window; ``bf16`` runs convolutions in bfloat16, weights and
    loss stay in float32.
    """

    input_frames: int = 5
    lead_frames: int = 12
    crop: int = 96
    batch: int = 8
    steps: int = 1000
    learning_rate: float = 1e-3
    clip_norm: float = 1.0
    validate_every: int = 100
    patience: int = 10
    minutes: float = 1e9
    seed: int = 0
    bf16: bool = False


class _Trainable(Protocol):
    def roll_out(self, frames: Tensor, leads: int, teacher: Tensor | None = None) -> Tensor: ...


Progress = Callable[[int, dict[str, float]], None]


def train(
    network: nn.Module, series: list[FrameSeries], loss: Loss, config: TrainingConfig, progress: Progress
) -> list[dict[str, float]]:
    """Train in place, feeding the network its own output; keep the weights with the lowest validation loss.

    Adam with gradient clipping; the learning rate falls along a half cosine; stops early after ``patience``
    validations without gain, or after ``minutes``.

    Returns:
        One row per validation: step, train_loss, validation_loss, seconds.

    Raises:
        ValueError: no series has a training window.
    """
    if not any(len(s.train) for s in series):
        need = config.input_frames + config.lead_frames
        raise ValueError(
            f"no training window: need {need} consecutive frames of at least {config.crop} x {config.crop}"
        )
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    fixed = _validation_batches(series, config)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps, config.learning_rate / 20)
    history: list[dict[str, float]] = []
    best: dict[str, Any] = {"loss": float("inf"), "weights": None, "stale": 0}
    losses: list[float] = []
    start = time.monotonic()
    for step in range(1, config.steps + 1):
        network.train()
        value = _loss(network, draw(series, "train", rng, config), loss, config)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm)
        optimizer.step()
        schedule.step()
        losses.append(value.item())
        elapsed = time.monotonic() - start
        last = step == config.steps or elapsed > 60 * config.minutes
        if step % config.validate_every == 0 or last:
            network.eval()
            with torch.no_grad():
                validation = float(np.mean([_loss(network, b, loss, config).item() for b in fixed] or [np.nan]))
            row = {
                "step": float(step),
                "train_loss": float(np.mean(losses)),
                "validation_loss": validation,
                "seconds": elapsed,
            }
            history.append(row)
            losses.clear()
            if not validation >= best["loss"]:
                weights = {k: v.detach().clone() for k, v in network.state_dict().items()}
                best.update(loss=validation, weights=weights, stale=0)
            else:
                best["stale"] += 1
            progress(step, row)
            if last or best["stale"] >= config.patience:
                break
        else:
            progress(step, {"train_loss": losses[-1]})
    if best["weights"] is not None:
        network.load_state_dict(best["weights"])
    network.eval()
    return history


Batch = tuple[Tensor, Tensor]


def draw(series: list[FrameSeries], part: str, rng: np.random.Generator, config: TrainingConfig) -> Batch:
    """Random windows, crops, flips and quarter turns: pixels (B, T, C, h, w) in 0-1, observed (B, T, 1, h, w)."""
    counts = np.array([len(getattr(s, part)) for s in series], dtype=float)
    length = config.input_frames + config.lead_frames
    pixels: list[NDArray[np.uint8]] = []
    observed: list[NDArray[np.bool_]] = []
    for _ in range(config.batch):
        one = series[rng.choice(len(series), p=counts / counts.sum())]
        first = int(rng.choice(getattr(one, part)))
        height, width = one.pixels.shape[-2:]
        top, left = rng.integers(0, height - config.crop + 1), rng.integers(0, width - config.crop + 1)
        turns, flip = int(rng.integers(4)), bool(rng.integers(2))
        time, crop = slice(first, first + length), np.s_[..., top : top + config.crop, left : left + config.crop]
        pixels.append(_turned(one.pixels[time][crop], turns, flip))
        observed.append(_turned(one.observed[time][crop], turns, flip))
    x = torch.from_numpy(np.stack(pixels)).float() / 255
    return x, torch.from_numpy(np.stack(observed)).unsqueeze(2)


def _turned(window: NDArray[Any], turns: int, flip: bool) -> NDArray[Any]:
    """Quarter turns of (..., height, width), then perhaps a mirror image."""
    window = np.rot90(window, turns, axes=(-2, -1))
    return window[..., ::-1] if flip else window


def _validation_batches(series: list[FrameSeries], config: TrainingConfig, count: int = 8) -> list[Batch]:
    if not any(len(s.validation) for s in series):
        return []
    rng = np.random.default_rng(config.seed + 1)
    return [draw(series, "validation", rng, config) for _ in range(count)]


def _loss(network: Any, batch: Batch, loss: Loss, config: TrainingConfig) -> Tensor:
    x, observed = batch
    j = config.input_frames
    trainable: _Trainable = network
    with torch.autocast(x.device.type, torch.bfloat16, enabled=config.bf16):
        predicted = trainable.roll_out(x[:, :j], config.lead_frames)
    return loss(predicted.float(), x[:, j:], observed[:, j:])
