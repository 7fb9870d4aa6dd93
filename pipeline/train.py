"""Training on the archive of one or several domains; writes a checkpoint with its card."""

import csv
import functools
import logging
import time as clock
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import times
from pipeline.domain import Domain
from pipeline.errors import NowcastError, SettingsError
from pipeline.frames.archive import Archive
from pipeline.frames.correlation import TRAINING_LIMIT, correlation
from pipeline.frames.grayscale import pixel_of_rate
from pipeline.storage import Store
from pipeline.version import software_version

if TYPE_CHECKING:
    from models.training import FrameSeries, TrainingConfig

log = logging.getLogger(__name__)

VALIDATION_SHARE = 0.15  # the newest frames of each domain
WET_SHARE = 0.02  # a window with less rain teaches only that dry stays dry


@dataclass(frozen=True)
class TrainResult:
    """Where the checkpoint lies and how it was made."""

    folder: Path
    windows: dict[str, int]
    history: list[dict[str, float]]
    checksum: str


def train(
    domains: list[Domain],
    store: Store,
    network_name: str,
    config: "TrainingConfig",
    out: Path,
    name: str,
    command: str,
    threads: int,
    now: datetime,
    progress: Callable[[int, dict[str, float]], None] = lambda step, row: None,
) -> TrainResult:
    """Train a network of the zoo on everything the archive holds of ``domains``.

    Raises:
        NowcastError: the domains do not share one scale and Z-R, or hold no window to train on.
    """
    import torch

    from models import checkpoint, zoo
    from models.losses import balanced
    from models.training import train as fit

    if out.exists():
        raise SettingsError(f"a model {name!r} exists already in {out.parent}; choose another --name")
    first = domains[0]
    for domain in domains:
        if (domain.scale, domain.zr, domain.product) != (first.scale, first.zr, first.product):
            raise NowcastError(f"{domain.name} and {first.name} differ in scale, zr or product; train on equals")
    torch.set_num_threads(threads)
    series, windows, spacings, periods = [], {}, [], {}
    for domain in domains:
        archive = Archive(store, domain)
        held, source = archive.times(), archive.source()
        if not held or source is None:
            raise NowcastError(f"the archive has no frames of {domain.name}; run `nowcast ingest {domain.name}` first")
        one = _series(archive, held, domain, config)
        series.append(one)
        windows[domain.name] = len(one.train) + len(one.validation)
        spacings.append(source.grid.spacing_m)
        periods[domain.name] = f"{times.iso(held[0])}/{times.iso(held[-1])}"
    if not any(len(one.validation) for one in series):
        raise NowcastError(
            f"no window of {config.input_frames + config.lead_frames} wet frames lies in the last "
            f"{VALIDATION_SHARE:.0%} of the archive, so nothing could tell a good model; ingest a longer period"
        )
    torch.manual_seed(config.seed)
    channels = {"channels": len(first.products)} if len(first.products) > 1 else {}
    network = zoo.build(network_name, channels)
    levels = [pixel_of_rate(r, first.zr, first.scale) / 255 for r in (2.0, 5.0, 10.0, 30.0)]
    started = clock.monotonic()
    try:
        history = fit(network, series, functools.partial(balanced, levels=levels), config, progress)
    except ValueError as err:
        raise NowcastError(str(err)) from err
    measured = [row for row in history if np.isfinite(row["validation_loss"])]
    best = min(measured, key=lambda row: row["validation_loss"]) if measured else None
    card = checkpoint.Card(
        name=name,
        network=network_name,
        network_config=channels,
        dbz_min=first.scale.dbz_min,
        dbz_max=first.scale.dbz_max,
        cadences_minutes=sorted({d.cadence_minutes for d in domains}),
        spacing_m=[round(min(spacings), 1), round(max(spacings), 1)],
        product=first.product if isinstance(first.product, str) else list(first.product),
        training={
            "command": command,
            "software_version": software_version(),
            "trained_at": times.iso(now),
            "duration_minutes": round((clock.monotonic() - started) / 60, 1),
            "seed": config.seed,
            "input_frames": config.input_frames,
            "lead_frames": config.lead_frames,
            "crop": config.crop,
            "batch": config.batch,
            "steps": int(history[-1]["step"]),
            "best": best,
            "loss": "B-MSE + B-MAE (Shi et al. 2017), own output fed back",
            "data": {d.name: _describe_source(d) for d in domains},
            "periods": periods,
            "windows": windows,
        },
    )
    try:
        card = checkpoint.save(out, network, card)
    except checkpoint.CheckpointError as err:
        raise NowcastError(str(err)) from err
    with (out / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(history[0]))
        writer.writeheader()
        writer.writerows(history)
    return TrainResult(out, windows, history, card.checksum)


def _describe_source(domain: Domain) -> dict[str, Any]:
    """What the data were, without the folder they lay in."""
    return domain.source.model_dump(mode="json", exclude={"uri", "max_file_mb"})


def _series(archive: Archive, held: list[datetime], domain: Domain, config: "TrainingConfig") -> "FrameSeries":
    """The frames held, and the windows of training and validation, split by time without a shared frame."""
    from models.training import FrameSeries

    frames = {time: frame for time in held if (frame := archive.read(time)) is not None}
    held = sorted(frames)
    channels, *shape = frames[held[0]].pixels.shape
    if min(shape) < config.crop:
        raise NowcastError(f"{domain.name} is {shape[0]} x {shape[1]} cells, smaller than the crop of {config.crop}")
    pixels, observed = np.zeros((len(held), channels, *shape), np.uint8), np.zeros((len(held), *shape), bool)
    for n, time in enumerate(held):
        pixels[n], observed[n] = frames[time].pixels, frames[time].observed
    length = config.input_frames + config.lead_frames
    span = (length - 1) * domain.cadence
    starts = [n for n in range(len(held) - length + 1) if held[n + length - 1] - held[n] == span]
    wet = (pixels[:, 0] > 0).mean(axis=(1, 2))
    rain, last = pixels[:, 0], length - 1
    kept = [
        n
        for n in starts
        if wet[n : n + length].mean() >= WET_SHARE and correlation(rain[n], rain[n + last]) < TRAINING_LIMIT
    ]
    cut = round(len(held) * (1 - VALIDATION_SHARE))
    log.info("%s: %d of %d windows kept (wet, first and last frame differ)", domain.name, len(kept), len(starts))
    return FrameSeries(
        pixels,
        observed,
        train=np.array([n for n in kept if n + length <= cut], np.int64),
        validation=np.array([n for n in kept if n >= cut], np.int64),
    )
