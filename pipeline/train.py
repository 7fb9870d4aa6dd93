"""Training on the archive of one or several domains: which frames, which windows, and the card's account of them."""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
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
    from models.recipe import About, Recipe
    from models.windows import FrameSeries

log = logging.getLogger(__name__)

VALIDATION_SHARE = 0.15  # the newest frames of each domain
WET_SHARE = 0.02  # a window with less rain teaches only that dry stays dry


@dataclass(frozen=True)
class TrainResult:
    """Where the checkpoint, or the exported data, lies and how it was made."""

    folder: Path
    windows: dict[str, int]
    history: list[dict[str, float]]
    checksum: str


def train(
    domains: list[Domain],
    store: Store,
    recipe: "Recipe",
    out: Path,
    command: str,
    threads: int,
    device: str,
    now: datetime,
    progress: Callable[[int, dict[str, float]], None] = lambda step, row: None,
) -> TrainResult:
    """Train a network of the zoo on everything the archive holds of ``domains``.

    Raises:
        NowcastError: the domains do not share one scale and Z-R, or hold no window to train on.
        SettingsError: the network, its loss and the data do not fit each other.
    """
    import torch

    from models import checkpoint
    from models.forecaster import resolved_device
    from models.recipe import make

    if out.exists():
        raise SettingsError(f"a model {out.name!r} exists already in {out.parent}; choose another --name")
    torch.set_num_threads(threads)
    series, about = collect(domains, store, recipe, command, now)
    if not any(len(one.validation) for one in series.values()):
        length = recipe.training.input_frames + recipe.training.lead_frames
        raise NowcastError(
            f"no window of {length} wet frames lies in the last {VALIDATION_SHARE:.0%} of the archive, so nothing "
            "could tell a good model; ingest a longer period"
        )
    try:
        where = str(resolved_device(device))
        made = make(recipe, list(series.values()), about, out, out.name, progress, where)
    except checkpoint.CheckpointError as err:
        raise NowcastError(str(err)) from err
    except (KeyError, TypeError, ValueError) as err:
        raise SettingsError(str(err.args[0] if isinstance(err, KeyError) else err)) from err
    except OSError as err:
        raise NowcastError(f"{err.filename or out}: cannot be written: {err.strerror}") from err
    store.send(out)
    return TrainResult(out, about.notes["windows"], made.history, made.card.checksum)


def export(
    domains: list[Domain], store: Store, recipe: "Recipe", out: Path, command: str, now: datetime
) -> TrainResult:
    """Write what ``train`` would train on, for ``python -m models.training`` on a machine that has only ``models``."""
    from models.windows import save_series

    if out.exists():
        raise SettingsError(f"{out} exists already; choose another folder")
    series, about = collect(domains, store, recipe, command, now)
    try:
        save_series(out, series, asdict(about))
    except OSError as err:
        raise NowcastError(f"{err.filename or out}: cannot be written: {err.strerror}") from err
    if not any(len(one.validation) for one in series.values()):
        log.warning("no validation windows: `python -m models.training` needs some, the radar experiment does not")
    return TrainResult(out, about.notes["windows"], [], "")


def collect(
    domains: list[Domain], store: Store, recipe: "Recipe", command: str, now: datetime
) -> tuple[dict[str, "FrameSeries"], "About"]:
    """Frames and windows of every domain, and what the card says of them."""
    from models.recipe import About

    first = domains[0]
    for domain in domains:
        if (domain.scale, domain.zr, domain.product) != (first.scale, first.zr, first.product):
            raise NowcastError(f"{domain.name} and {first.name} differ in scale, zr or product; train on equals")
    length = recipe.training.input_frames + recipe.training.lead_frames
    series, windows, spacings, periods = {}, {}, [], {}
    for domain in domains:
        archive = Archive(store, domain)
        held, source = archive.times(), archive.source()
        if not held or source is None:
            raise NowcastError(f"the archive has no frames of {domain.name}; run `nowcast ingest {domain.name}` first")
        one = _series(archive, held, domain, length, recipe.crop)
        series[domain.name] = one
        windows[domain.name] = len(one.train) + len(one.validation)
        spacings.append(source.grid.spacing_m)
        periods[domain.name] = f"{times.iso(held[0])}/{times.iso(held[-1])}"
    if not any(len(one.train) for one in series.values()):
        raise NowcastError(f"no window of {length} consecutive wet frames to train on in {', '.join(series)}")
    about = About(
        dbz_min=first.scale.dbz_min,
        dbz_max=first.scale.dbz_max,
        cadences_minutes=sorted({d.cadence_minutes for d in domains}),
        spacing_m=[round(min(spacings), 1), round(max(spacings), 1)],
        product=first.product if isinstance(first.product, str) else list(first.product),
        classes=[pixel_of_rate(r, first.zr, first.scale) / 255 for r in (0.5, 2.0, 5.0, 10.0, 30.0)],
        window=[recipe.training.input_frames, recipe.training.lead_frames],
        notes={
            "command": command,
            "software_version": software_version(),
            "trained_at": times.iso(now),
            "data": {d.name: _describe_source(d) for d in domains},
            "periods": periods,
            "windows": windows,
        },
    )
    return series, about


def _describe_source(domain: Domain) -> dict[str, Any]:
    """What the data were, without the folder they lay in."""
    return domain.source.model_dump(mode="json", exclude={"uri", "max_file_mb"})


def _series(archive: Archive, held: list[datetime], domain: Domain, length: int, crop: int) -> "FrameSeries":
    """The frames held, and the windows of training and validation, split by time without a shared frame."""
    from models.windows import FrameSeries

    frames = {time: frame for time in held if (frame := archive.read(time)) is not None}
    held = sorted(frames)
    channels, *shape = frames[held[0]].pixels.shape
    if min(shape) < crop:
        raise NowcastError(f"{domain.name} is {shape[0]} x {shape[1]} cells, smaller than the crop of {crop}")
    pixels, observed = np.zeros((len(held), channels, *shape), np.uint8), np.zeros((len(held), *shape), bool)
    for n, time in enumerate(held):
        pixels[n], observed[n] = frames[time].pixels, frames[time].observed
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
