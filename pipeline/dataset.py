"""Training data from the archive: one folder that a machine with torch and numpy alone can train on.

Frames of several domains as they are, with the motion known at each time, and the times that may be learnt from:
those of the earlier part, that the correlation filter keeps. The newest part is for validation, after a gap.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from pipeline import times
from pipeline.advection import estimated_motion
from pipeline.domain import Domain
from pipeline.errors import DamagedFrame, NowcastError, SettingsError, StoreUnavailable
from pipeline.frames.archive import Archive
from pipeline.frames.correlation import TRAINING_LIMIT, correlation
from pipeline.frames.grayscale import Frame, Pixels, pixel_of_rate
from pipeline.storage import Store
from pipeline.version import software_version

if TYPE_CHECKING:
    from models.dataset import Series

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]


class DatasetRequest(BaseModel):
    """What goes into a dataset.

    Attributes:
        start, end: period; None is all the archive holds.
        validation_share: of the frames of each domain, the newest.
        gap_minutes: between the two parts, so that the weather of one is not that of the other.
        correlation_below: a time is learnt from if its first and last frame correlate less (un-centred; Wu 2019,
            chapter 4). One of them empty is initiation or decay, and stays; both empty is not learnt from.
        floor_mm_h: rain below it is no echo, in all domains; the highest floor of the sources, if that is higher.
        input_frames, lead_frames: of the sequences, steps of about ten minutes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    start: datetime | None = None
    end: datetime | None = None
    validation_share: float = Field(0.15, ge=0, le=0.5)
    gap_minutes: float = Field(60.0, ge=0, le=10080)
    correlation_below: float = Field(TRAINING_LIMIT, gt=0, le=1.01)
    floor_mm_h: float = Field(0.1, ge=0, le=10)
    input_frames: int = Field(3, ge=1, le=12)
    lead_frames: int = Field(12, ge=1, le=24)


@dataclass(frozen=True)
class DatasetResult:
    """What was written: per domain the frames, and the times to learn from and to validate with."""

    folder: Path
    megabytes: float
    frames: dict[str, int] = field(default_factory=dict)
    train: dict[str, int] = field(default_factory=dict)
    validation: dict[str, int] = field(default_factory=dict)
    kept: dict[str, float] = field(default_factory=dict)


def build(
    domains: list[Domain],
    store: Store,
    out: Path,
    request: DatasetRequest,
    command: str,
    now: datetime,
    progress: Progress = lambda stage, done, total: None,
) -> DatasetResult:
    """Write the dataset of some domains.

    Raises:
        SettingsError: the folder exists, or the domains have not one product and scale.
        NowcastError: there is nothing to learn from.
        StoreUnavailable: it cannot be written.
    """
    from models import dataset

    if out.exists():
        raise SettingsError(f"{out} exists already; choose another folder")
    _check_alike(domains)
    with store.scratch() as scratch:
        series = collect(domains, store, request, scratch, progress)
        about = {
            "made_at": times.iso(now),
            "command": command,
            "software_version": software_version(),
            **request.model_dump(mode="json", exclude={"start", "end"}),
        }
        half = out.with_name(f".{out.name}.half")
        try:
            dataset.save(half, series, about)
            half.rename(out)
        except FileExistsError as err:
            raise NowcastError(f"{half} is there from a run that was killed; remove it") from err
        except OSError as err:
            raise StoreUnavailable(f"{err.filename or out}: cannot be written: {err.strerror}") from err
    size = sum(path.stat().st_size for path in out.iterdir())
    return DatasetResult(
        out,
        round(size / 1e6, 1),
        {name: len(one.pixels) for name, one in series.items()},
        {name: len(one.train) for name, one in series.items()},
        {name: len(one.validation) for name, one in series.items()},
        {name: one.facts.about["share_kept"] for name, one in series.items()},
    )


def collect(
    domains: list[Domain], store: Store, request: DatasetRequest, scratch: Path, progress: Progress
) -> "dict[str, Series]":
    """Series of every domain; the pixels lie in ``scratch``.

    Raises:
        NowcastError: an archive is empty, its frames differ, or no time is left to learn from.
    """
    sources = {domain.name: Archive(store, domain).source() for domain in domains}
    floor = max([request.floor_mm_h, *(one.drizzle_floor_mm_h for one in sources.values() if one is not None)])
    series = {domain.name: _series(domain, store, request, floor, scratch, progress) for domain in domains}
    if not any(len(one.train) for one in series.values()):
        told = "; ".join(f"{name}: {_why_none(one, request)}" for name, one in series.items())
        raise NowcastError(f"there is no time to learn from ({told})")
    return series


def _check_alike(domains: list[Domain]) -> None:
    first = domains[0]
    for domain in domains:
        if (domain.scale, domain.products) != (first.scale, first.products):
            raise SettingsError(f"{domain.name} and {first.name} differ in scale or product; train on equals")
    if len(first.products) > 1:
        raise SettingsError(f"{first.name} has {len(first.products)} products; networks of the moving frame take one")


def _series(
    domain: Domain, store: Store, request: DatasetRequest, floor_mm_h: float, scratch: Path, progress: Progress
) -> "Series":
    from models.dataset import Series, SeriesFacts, packed_masks
    from models.moving_windows import weights_of

    archive = Archive(store, domain)
    held, source = _held(archive, request), archive.source()
    if not held or source is None:
        raise NowcastError(f"the archive has no frames of {domain.name} in that period; run `nowcast ingest` first")
    pixels, observed, held = _read(archive, held, domain, floor_mm_h, scratch, progress)
    slots = np.array([round((time - held[0]) / domain.cadence) for time in held], np.int64)
    masks, mask_of = packed_masks(observed)
    nothing = np.zeros(0, np.int64)
    facts = SeriesFacts(
        domain.cadence_minutes,
        round(source.grid.spacing_m, 1),
        domain.zr.a,
        domain.zr.b,
        domain.scale.dbz_min,
        domain.scale.dbz_max,
        {
            "source": domain.source.model_dump(mode="json", exclude={"uri", "max_file_mb"}),
            "license": domain.license,
            "period": f"{times.iso(held[0])}/{times.iso(held[-1])}",
            "floor_mm_h": floor_mm_h,
            "echo_share": echo_share(pixels, observed),
        },
    )
    part = _parts(slots, domain, request)
    motion = _motion(pixels, observed, slots, progress)
    one = Series(facts, pixels, masks, mask_of, motion, slots, part, nothing, nothing, weights_of(pixels, observed))
    return _with_times(one, request)


def echo_share(pixels: Pixels, observed: NDArray[np.bool_]) -> list[float]:
    """Share of the observed cells with echo: what 1, 50 and 99 % of the frames stay below."""
    wet = [(frame > 0).sum() / max(int(seen.sum()), 1) for frame, seen in zip(pixels, observed, strict=True)]
    return [round(float(v), 4) for v in np.quantile(wet, (0.01, 0.5, 0.99))]


def _held(archive: Archive, request: DatasetRequest) -> list[datetime]:
    first, last = request.start, request.end
    return [t for t in archive.times() if (first is None or t >= first) and (last is None or t <= last)]


def _read(
    archive: Archive, held: list[datetime], domain: Domain, floor_mm_h: float, scratch: Path, progress: Progress
) -> tuple[Pixels, NDArray[np.bool_], list[datetime]]:
    """Pixels (time, height, width) in a file, where they were observed, and the times of those that can be read."""
    floor = pixel_of_rate(floor_mm_h, domain.zr, domain.scale)
    pixels: Any = None
    seen: list[NDArray[np.bool_]] = []
    found: list[datetime] = []
    for n, time in enumerate(held):
        frame = _readable(archive, time)
        if frame is not None:
            if pixels is None:
                shape = (len(held), *frame.rain.shape)
                pixels = np.lib.format.open_memmap(scratch / f"{domain.name}.npy", "w+", np.uint8, shape)
            if frame.rain.shape != pixels.shape[1:]:
                raise NowcastError(f"the frame {times.iso(time)} of {domain.name} is {frame.rain.shape}, others not")
            pixels[len(found)] = np.where(frame.observed & (frame.rain >= floor), frame.rain, 0)
            seen.append(frame.observed)
            found.append(time)
        progress("read", n + 1, len(held))
    if pixels is None:
        raise NowcastError(f"no frame of {domain.name} can be read")
    return pixels[: len(found)], np.stack(seen), found


def _readable(archive: Archive, time: datetime) -> Frame | None:
    try:
        return archive.read(time)
    except DamagedFrame as err:
        log.warning("left out: %s", err)
        return None


def _parts(slots: NDArray[np.int64], domain: Domain, request: DatasetRequest) -> NDArray[np.uint8]:
    """The newest share is for validation, what lies less than the gap before it is for nothing."""
    from models.dataset import LEARN, NOWHERE, VALIDATE

    part = np.full(len(slots), LEARN, np.uint8)
    count = round(len(slots) * request.validation_share)
    if count:
        cut = slots[-count]
        part[slots >= cut - request.gap_minutes / domain.cadence_minutes] = NOWHERE
        part[slots >= cut] = VALIDATE
    return part


def _motion(
    pixels: Pixels, observed: NDArray[np.bool_], slots: NDArray[np.int64], progress: Progress
) -> NDArray[np.float16]:
    """Motion known at each frame, from it and the three before it, as optical flow sees it."""
    from models.dataset import MOTION_CELLS
    from models.moving_windows import MOTION_FRAMES

    count, height, width = pixels.shape
    found = np.zeros((count, 2, -(-height // MOTION_CELLS), -(-width // MOTION_CELLS)), np.float16)
    before = MOTION_FRAMES - 1
    for n in range(before, count):
        if slots[n] - slots[n - before] == before:
            here = slice(n - before, n + 1)
            motion = estimated_motion(np.array(pixels[here]), observed[here])
            found[n] = _block_means(motion, MOTION_CELLS)
        progress("motion", n + 1, count)
    return found


def _block_means(fields: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Means of (fields, rows, columns) over squares; those at the edges may be smaller."""
    rows, columns = (np.arange(0, length, side) for length in fields.shape[1:])
    sums = np.add.reduceat(np.add.reduceat(fields, rows, axis=1), columns, axis=2)
    sizes = [
        np.diff(np.append(starts, length)) for starts, length in zip((rows, columns), fields.shape[1:], strict=True)
    ]
    return (sums / np.multiply.outer(*sizes)).astype(np.float32)


def _with_times(one: "Series", request: DatasetRequest) -> "Series":
    """The series with the times to learn from and to validate with, and what the filter kept."""
    from dataclasses import replace

    from models.dataset import LEARN, VALIDATE
    from models.moving_windows import every, reference_times

    step = every(one.facts.cadence_minutes)
    all_times = reference_times(one, LEARN, request.input_frames)
    kept = [int(t) for t in all_times if _differs(one, int(t), step, request)]
    share = round(len(kept) / len(all_times), 3) if len(all_times) else 0.0
    about = {**one.facts.about, "times": len(all_times), "share_kept": share}
    return replace(
        one,
        facts=replace(one.facts, about=about),
        train=np.array(kept, np.int64),
        validation=reference_times(one, VALIDATE, request.input_frames),
    )


def _differs(one: "Series", time: int, step: int, request: DatasetRequest) -> bool:
    first = time - step * (request.input_frames - 1)
    last = max(n for n in range(1, request.lead_frames + 1) if one.together(time, time + n * step)) * step + time
    p, q = one.pixels[first], one.pixels[last]
    if not p.any() and not q.any():
        return False
    return correlation(p, q) < request.correlation_below


def _why_none(one: "Series", request: DatasetRequest) -> str:
    found = one.facts.about["times"]
    if found:
        return f"{found} times, all of sequences that hardly change, or without rain"
    wanted = (request.input_frames - 1) * 10 + 10
    return f"{len(one.pixels)} frames, never {wanted} minutes of them without a gap before the part for validation"
