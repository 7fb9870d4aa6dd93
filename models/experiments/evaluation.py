"""Errors per forecast step on a 0-255 scale, and pictures of sequences, as in Wu 2019, chapter 4."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.contract import Method
from models.training import load_batch
from models.windows import Samples


@torch.inference_mode()
def errors_per_step(
    method: Method, samples: Samples, part: str, count: int, input_frames: int, batch: int = 8, bf16: bool = False
) -> dict[str, list[float]]:
    """MSE, MAE (pixels, 0-255) and un-centred correlation of each step, over observed pixels of all sequences.

    Correlation: sum PQ / sqrt(sum P^2 sum Q^2 + 1e-9), for each frame, mean over frames with something in them.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows: list[Any] = []
    for n in range(0, count, batch):
        pixels, observed = load_batch(samples, part, range(n, min(n + batch, count)), device)
        frames = pixels.float() / 255
        leads = frames.shape[1] - input_frames
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            made = method(frames[:, :input_frames], observed[:, :input_frames], leads).values.float()
        seen = observed[:, input_frames:].expand_as(made)
        p, q = made * 255 * seen, pixels[:, input_frames:].float() * seen
        cells = seen.sum(dim=(2, 3, 4)).double()
        squares, absolutes = ((p - q) ** 2).sum(dim=(2, 3, 4)), (p - q).abs().sum(dim=(2, 3, 4))
        power = (p**2).sum(dim=(2, 3, 4)) * (q**2).sum(dim=(2, 3, 4))
        correlation = (p * q).sum(dim=(2, 3, 4)) / torch.sqrt(power + 1e-9)
        some = (q > 0).flatten(2).any(dim=2)
        rows.append(torch.stack((squares, absolutes, cells, correlation * some, some), dim=2).double().cpu().numpy())
    sums = np.concatenate(rows).sum(axis=0)
    return {
        "mse": (sums[:, 0] / sums[:, 2]).tolist(),
        "mae": (sums[:, 1] / sums[:, 2]).tolist(),
        "correlation": (sums[:, 3] / np.maximum(sums[:, 4], 1)).tolist(),
    }


def picture(path: Path, rows: Sequence[tuple[str, NDArray[Any]]], offset: int, title: str) -> None:
    """Sequences (time, height, width), 0-255, below each other; the last frame of each row is the last of all.

    Args:
        offset: number of the first input frame after which forecasts begin, for the column titles.
    """
    from matplotlib.figure import Figure

    longest = max(len(frames) for _, frames in rows)
    figure = Figure(figsize=(0.9 * longest + 1.4, 0.95 * len(rows) + 0.6), layout="constrained")
    axes = figure.subplots(len(rows), longest, squeeze=False)
    for line, (name, frames) in zip(axes, rows, strict=True):
        for column, axis in enumerate(line):
            axis.set(xticks=[], yticks=[])
            frame = column - (longest - len(frames))
            if frame < 0:
                axis.axis("off")
                continue
            axis.imshow(frames[frame], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        first = line[longest - len(frames)]
        first.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    for column, axis in enumerate(axes[0]):
        step = column - offset + 1
        axis.set_title(f"{step:+d}" if step > 0 else str(step), fontsize=8)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=110)
