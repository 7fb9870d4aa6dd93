"""Challenger and model in use forecast the same times, and are scored as published forecasts are."""

import hashlib
import itertools
import logging
import struct
import time as stopwatch
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from pipeline import nowcast, times
from pipeline.domain import Domain
from pipeline.errors import NotForecast, reading
from pipeline.frames.archive import Archive
from pipeline.frames.grayscale import NO_COVERAGE
from pipeline.frames.sequences import InputSequence, read_sequence
from pipeline.product import PROBABILITY_STEP
from pipeline.publish import Made
from pipeline.storage import Store, flush, writing
from pipeline.verification.compared import BASELINES
from pipeline.verification.files import ForecastSums, to_dataset
from pipeline.verification.period import Verified, of_sums
from pipeline.verification.rules import Rules, pixel_tables, rules_of
from pipeline.verification.scoring import Compared, Scorer

log = logging.getLogger(__name__)

# of the names of sums that the model in use has when it alone is in question
OTHER = "in_use_"


@dataclass(frozen=True)
class Evidence:
    """What the forecasts of the deciding period showed.

    Attributes:
        verified: sums; methods are the challenger, the model in use, then the baselines. None if no time was scored.
        in_use: sums of the model in use alone, with its probabilities; None if it gives none.
        seconds: of each forecast of the challenger.
        failures: why it did not forecast some times.
        absences: why the model in use did not.
    """

    verified: Verified | None
    in_use: Verified | None
    seconds: list[float]
    failures: list[str]
    absences: list[str]


@dataclass(frozen=True)
class Rivals:
    """The two that are compared, loaded for a domain."""

    challenger: nowcast.Methods
    in_use: nowcast.Methods

    @property
    def names(self) -> tuple[str, ...]:
        """Methods of the comparison, each once."""
        return tuple(dict.fromkeys((self.challenger.model_name, self.in_use.model_name, *BASELINES)))


def evaluate(
    domain: Domain,
    store: Store,
    rivals: Rivals,
    period: tuple[datetime, datetime],
    most: int,
    folder: Path,
    progress: Callable[[str, int, int], None],
) -> Evidence | None:
    """Forecast and score the wet times of a period, at most ``most``, evenly spread.

    The sums of each time are kept in ``folder``, so that one that was killed goes on.

    Returns:
        None if no time could be scored.
    """
    archive = Archive(store, domain)
    source = archive.source()
    if source is None:
        return None
    rules = rules_of(domain, source)
    scorer = Scorer(rules, pixel_tables(domain, rules))
    # sums by other rules are no use to a run that goes on
    folder = folder / hashlib.sha256(f"{rules.to_json()} {rivals.names}".encode()).hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True)
    chosen = _spread([t for t in archive.times() if period[0] <= t <= period[1]], most)
    done: list[tuple[datetime, dict[str, NDArray[np.generic]]]] = []
    seconds, failures, absences = [], [], []
    for n, time in enumerate(chosen):
        path = folder / f"{times.compact(time)}.npz"
        sums = _kept(path)
        if sums is None:
            sequence = _usable(archive, domain, time)
            sums = {} if sequence is None else _sums(domain, archive, scorer, rivals, sequence)
            _keep(path, sums)
        if "failure" in sums:
            failures.append(f"{times.iso(time)}: {bytes(sums['failure']).decode()}")
        elif "absence" in sums:
            absences.append(f"{times.iso(time)}: {bytes(sums['absence']).decode()}")
        elif sums:
            seconds.append(float(sums.pop("seconds")))
            done.append((time, sums))
        progress("evaluate", n + 1, len(chosen))
    if not done and not failures and not absences:
        return None
    if not done:
        return Evidence(None, None, seconds, failures, absences)
    verified = _verified(domain, rules, rivals.names, done)
    in_use = _verified(domain, rules, rivals.names[1:2], done, OTHER)
    return Evidence(verified, in_use, seconds, failures, absences)


def _spread(held: list[datetime], most: int) -> list[datetime]:
    step = -(-len(held) // most) if held else 1
    return held[::step]


def _kept(path: Path) -> dict[str, NDArray[np.generic]] | None:
    """Sums that an earlier run has made; None if there are none, or they were cut off and must be made again."""
    try:
        with reading(path), np.load(path, allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError, KeyError, BadZipFile, zlib.error, struct.error) as err:
        log.warning("the sums %s are damaged and are made again: %s", path.name, err)
        return None


def _keep(path: Path, sums: dict[str, NDArray[np.generic]]) -> None:
    """Work that goes on here after a kill, and no part of the store."""
    half = path.with_suffix(".half")
    with writing(path):
        with half.open("wb") as file:
            np.savez_compressed(file, **sums)  # type: ignore[arg-type]
        flush(half)
        half.rename(path)


def _usable(archive: Archive, domain: Domain, time: datetime) -> InputSequence | None:
    """The input of a time, if it is whole and wet."""
    try:
        sequence = read_sequence(archive, domain, time)
    except NotForecast:
        return None
    return None if sequence.is_dry or sequence.missing_times else sequence


def _sums(
    domain: Domain, archive: Archive, scorer: Scorer, rivals: Rivals, sequence: InputSequence
) -> dict[str, NDArray[np.generic]]:
    started = stopwatch.perf_counter()
    made = nowcast.forecast((domain, sequence), rivals.challenger)
    seconds = stopwatch.perf_counter() - started
    if made.frames.method != rivals.challenger.model_name:
        return {"failure": np.frombuffer(made.frames.fallback.encode(), np.uint8)}
    other = nowcast.forecast((domain, sequence), rivals.in_use)
    if other.frames.method != rivals.in_use.model_name:  # a fallback under its name would be an easy rival
        return {"absence": np.frombuffer(other.frames.fallback.encode(), np.uint8)}
    challenger, in_use = _compared(made, domain), _compared(other, domain)
    covered = in_use.valid
    compared = [challenger]
    for name in rivals.names[1:]:
        if name == in_use.name:
            compared.append(in_use)
            continue
        frames = other.baselines[name]
        compared.append(Compared(name, in_use.pixels, None) if frames is None else Compared(name, frames, covered))
    observed = [archive.read(sequence.reference_time + (n + 1) * domain.cadence) for n in range(domain.lead_frames)]
    found = scorer.sums(compared, observed)
    if in_use.exceedance is not None:
        alone = scorer.sums([in_use], observed)
        found |= {OTHER + name: values for name, values in alone.items()}
    return {**found, "seconds": np.array(seconds)}


def _compared(made: Made, domain: Domain) -> Compared:
    frames = made.frames
    exceedance: NDArray[np.float32] | None = None
    if set(domain.thresholds_mm_h) <= set(frames.exceedance):
        planes = [frames.exceedance[rate] for rate in domain.thresholds_mm_h]
        # as the product holds them
        exceedance = np.float32(PROBABILITY_STEP) * np.rint(np.stack(planes) / np.float32(255 * PROBABILITY_STEP))
    return Compared(frames.method, frames.rain, frames.state != NO_COVERAGE, exceedance)


def _verified(
    domain: Domain,
    rules: Rules,
    methods: Sequence[str],
    done: list[tuple[datetime, dict[str, NDArray[np.generic]]]],
    whose: str = "",
) -> Verified | None:
    """Sums of all times; None if there are none that begin with ``whose``."""
    rows = []
    for time, sums in done:
        own = {
            name.removeprefix(OTHER): values for name, values in sums.items() if name.startswith(OTHER) == bool(whose)
        }
        if own:
            rows.append(ForecastSums(times.seconds(time), "00" * 32, own))
    if not rows:
        return None
    found = of_sums(domain, "hindcast", to_dataset(rows, list(methods), rules))
    every = min((b - a for (a, _), (b, _) in itertools.pairwise(done)), default=domain.cadence)
    return replace(found, cadence_s=int(every.total_seconds()))
