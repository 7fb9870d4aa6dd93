"""One cycle: read the input sequence, forecast with the model and the baselines, publish, record.

The only place where frames become tensors and back, and where the fallback chain is decided:
model -> optical flow -> last frame.
"""

import json
import logging
import time as stopwatch
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from pipeline import catalog as tables
from pipeline import product, publish, times
from pipeline.catalog import Catalog, Lease
from pipeline.domain import Domain
from pipeline.errors import LeaseLost, ModelRefused, NotForecast
from pipeline.frames.archive import Archive
from pipeline.frames.grayscale import Pixels, pixel_of_rate
from pipeline.frames.sequences import InputSequence, read_sequence
from pipeline.ingest import forget_damaged
from pipeline.logs import log_context
from pipeline.storage import Store
from pipeline.verification.compared import model_key
from pipeline.verification.quality import known_quality
from pipeline.warnings.places import places_of

if TYPE_CHECKING:
    from models.forecaster import Forecaster
    from pipeline.settings import Settings

log = logging.getLogger(__name__)

OPTICAL_FLOW, LAST_FRAME = "optical_flow", product.LAST_FRAME
ROVER = {"rover_linear": False, "rover_nonlinear": True}  # does it stretch the range of rain


@dataclass(frozen=True)
class Methods:
    """What a domain forecasts with, loaded once per process.

    Attributes:
        model: None if it was refused.
        refused: why.
    """

    model: "Forecaster | None"
    model_name: str
    model_checksum: str
    model_limits: str
    refused: str
    optical_flow: "Forecaster"
    last_frame: "Forecaster"


def load_methods(domain: Domain, store: Store, settings: "Settings", grid_spacing_m: float) -> Methods:
    """Load the domain's model, checking that it was trained for such frames, and its fallbacks."""
    from models.baselines.last_frame import LastFrame
    from models.baselines.optical_flow import OpticalFlow
    from models.baselines.rover import Rover
    from models.forecaster import Forecaster

    threads = settings.threads
    model: Forecaster | None = None
    checksum, limits, refused = "", "", ""
    try:
        if domain.model in ROVER:
            scale = domain.scale
            rover = Rover(nonlinear=ROVER[domain.model], dbz_min=scale.dbz_min, dbz_max=scale.dbz_max)
            model = Forecaster(rover, threads=threads)
        elif domain.model not in {OPTICAL_FLOW, LAST_FRAME}:
            network, checksum, limits = _load_model(domain, store, grid_spacing_m)
            model = Forecaster(
                network,
                device=settings.device,
                precision=settings.precision,
                memory_mb=settings.memory_mb,
                threads=threads,
            )
    except (ModelRefused, ValueError) as err:
        refused = str(err)
        log.warning("model refused, optical flow serves: %s", refused)
    return Methods(
        model=model,
        model_name=domain.model_name,
        model_checksum=checksum,
        model_limits=limits,
        refused=refused,
        optical_flow=Forecaster(OpticalFlow(), threads=threads),
        last_frame=Forecaster(LastFrame(), threads=threads),
    )


def _load_model(domain: Domain, store: Store, spacing_m: float) -> tuple[Any, str, str]:
    from models import checkpoint
    from models.recipe import too_short_reach

    try:
        network, card = checkpoint.load(checkpoint.find(domain.model, (store.models(),)))
    except checkpoint.CheckpointError as err:
        raise ModelRefused(str(err)) from err
    refusal = card.refusal(
        dbz_min=domain.scale.dbz_min,
        dbz_max=domain.scale.dbz_max,
        cadence_minutes=domain.cadence_minutes,
        spacing_m=spacing_m,
        products=domain.products,
    ) or too_short_reach(network, domain.cadence_minutes, spacing_m)
    if not refusal and network.min_frames > domain.input_frames:
        refusal = f"model {card.name} needs {network.min_frames} input frames, the domain has {domain.input_frames}"
    if refusal:
        raise ModelRefused(refusal)
    return network, card.checksum, card.limits


def issue(
    domain: Domain,
    store: Store,
    catalog: Catalog,
    load: Callable[[float], Methods],
    reference_times: list[datetime],
    kind: str,
    clock: times.Clock,
) -> list[publish.Outcome]:
    """Forecast and publish a batch of cycles; each stands or falls by itself.

    Args:
        load: gives the methods for frames of that spacing in metres; called when there is something to forecast.
        kind: issued or hindcast; neither overwrites the other.
        clock: the wall clock, from the edge.

    Raises:
        SettingsError: a place of the domain lies outside its grid.
    """
    archive = Archive(store, domain)
    outcomes: dict[datetime, publish.Outcome] = {}
    with ExitStack() as held:
        sequences: dict[datetime, tuple[InputSequence, Lease, float]] = {}
        for time in reference_times:
            lease = held.enter_context(catalog.lease(f"cycle/{domain.name}/{kind}/{times.iso(time)}"))
            standing = publish.recorded(catalog, domain, kind, time)
            if standing is not None and standing["state"] == "published" and publish.is_there(store, standing):
                outcomes[time] = publish.announce(domain, store, catalog, standing, "unchanged")
                continue
            if lease is None:
                outcomes[time] = publish.Outcome(time, "held", reason="another process works on it")
                continue
            started = stopwatch.perf_counter()
            with log_context(domain=domain.name, reference_time=times.iso(time)):
                try:
                    sequence = read_sequence(archive, domain, time)
                    for damaged in sequence.damaged_times:
                        forget_damaged(archive, catalog, domain, damaged)
                    sequence = with_origin(sequence, catalog, domain)
                    adopted = publish.adopt(domain, store, catalog, lease, sequence, kind)
                except NotForecast as err:
                    outcomes[time] = publish.skip(domain, store, catalog, lease, time, kind, clock.now(), str(err))
                    continue
                except LeaseLost as err:
                    outcomes[time] = publish.Outcome(time, "held", reason=str(err))
                    continue
                if sequence.is_frozen:
                    log.warning("the feed is frozen: the oldest and the newest input frame are the same rain")
            if adopted is not None:
                outcomes[time] = adopted
                continue
            sequences[time] = (sequence, lease, stopwatch.perf_counter() - started)
        started = stopwatch.perf_counter()
        made_from = [sequence for sequence, _, _ in sequences.values()]
        places = places_of(domain, made_from[0].source.grid) if made_from else []
        forecasts = _forecast(domain, load(made_from[0].source.grid.spacing_m), made_from) if made_from else []
        share = (stopwatch.perf_counter() - started) / max(len(sequences), 1)
        for (time, (sequence, lease, reading)), made in zip(sequences.items(), forecasts, strict=True):
            stages = {"read": reading, "forecast": share}
            with log_context(domain=domain.name, reference_time=times.iso(time)):
                try:
                    model = model_key(made.frames.method, made.frames.model_checksum)
                    quality = known_quality(domain, store, catalog, model, time)
                    outcomes[time] = publish.publish(
                        domain, store, catalog, lease, sequence, made, kind, clock.now(), stages, places, quality
                    )
                except LeaseLost as err:
                    outcomes[time] = publish.Outcome(time, "held", reason=str(err))
                log.info("%s by %s", outcomes[time].state, outcomes[time].method)
    return [outcomes[time] for time in reference_times]


def with_origin(sequence: InputSequence, catalog: Catalog, domain: Domain) -> InputSequence:
    """The sequence with what the catalog knows of its frames: radars, and offsets from the instants."""
    f = tables.frames.c
    wanted = [times.seconds(time) for time in sequence.input_times]
    rows = catalog.read(
        sa.select(f.valid_time, f.offset_s, f.inputs).where(f.domain == domain.name, f.valid_time.in_(wanted))
    )
    known = {row["valid_time"]: row for row in rows}
    newest = known.get(times.seconds(sequence.reference_time))
    inputs = json.loads(newest["inputs"] or "[]") if newest else []
    offsets = tuple(round(float(known[time]["offset_s"]), 1) for time in wanted if time in known)
    own = tuple(one["radar"] for one in inputs if not one.get("carried"))
    carried = tuple(one["radar"] for one in inputs if one.get("carried"))
    return replace(sequence, radars=own, radars_carried_on=carried, offsets_s=offsets)


# frames (lead, channels, rows, columns) uint8, the cells that are extrapolated inflow, and by threshold the probability
# of reaching it (lead, rows, columns) uint8 in 1/255
_Run = tuple[Pixels, NDArray[np.bool_], dict[float, Pixels]]


def _forecast(domain: Domain, methods: Methods, sequences: list[InputSequence]) -> list[publish.Made]:
    reasons = [_why_not_model(methods, sequence) for sequence in sequences]
    ready = [n for n, reason in enumerate(reasons) if not reason]
    networks: dict[int, _Run] = {}
    if methods.model is not None:
        made, failures = _try(methods.model, domain, [sequences[n] for n in ready], methods.model_name)
        for n, network, failure in zip(ready, made, failures, strict=True):
            if network is None:
                reasons[n] = failure
            else:
                networks[n] = network
    return [_choose(domain, methods, sequence, networks.get(n), reasons[n]) for n, sequence in enumerate(sequences)]


def _try(
    forecaster: "Forecaster", domain: Domain, sequences: list[InputSequence], name: str, newest: int | None = None
) -> tuple[list["_Run | None"], list[str]]:
    """Run a method on a batch; if that fails, one by one, so that a bad cycle does not harm its company."""
    if not sequences:
        return [], []
    try:
        return list(_run(forecaster, domain, sequences, newest)), [""] * len(sequences)
    except (RuntimeError, MemoryError, ValueError) as err:
        log.exception("%s failed on %d cycles", name, len(sequences))
        if len(sequences) == 1:
            return [None], [f"{name} failed: {(str(err).splitlines() or [type(err).__name__])[0]}"]
    singly = [_try(forecaster, domain, [sequence], name, newest) for sequence in sequences]
    return [made[0] for made, _ in singly], [failures[0] for _, failures in singly]


def _why_not_model(methods: Methods, sequence: InputSequence) -> str:
    if methods.model is None:
        return methods.refused
    if sequence.missing_times:
        missing = ", ".join(times.iso(t) for t in sequence.missing_times)
        damaged = f" (damaged: {', '.join(map(times.iso, sequence.damaged_times))})" if sequence.damaged_times else ""
        return f"input frames are missing and not filled: {missing}{damaged}"
    return ""


def _choose(
    domain: Domain, methods: Methods, sequence: InputSequence, network: "_Run | None", reason: str
) -> publish.Made:
    """The fallback chain, the only place where it is decided."""
    present = [t not in sequence.missing_times for t in _instants(domain, sequence)]
    recent = next((n for n, there in enumerate(reversed(present)) if not there), len(present))
    flow: _Run | None = None
    flow_failure = "optical flow needs the two newest frames"
    if recent >= 2:
        (flow,), (flow_failure,) = _try(methods.optical_flow, domain, [sequence], OPTICAL_FLOW, recent)
    last = _run(methods.last_frame, domain, [sequence])[0]
    method, checksum, chosen = methods.model_name, methods.model_checksum, network
    if chosen is None:
        method, checksum, chosen = OPTICAL_FLOW, "", flow
    if chosen is None or domain.model == LAST_FRAME:
        method, checksum, chosen = LAST_FRAME, "", last
        asked = domain.model == LAST_FRAME
        reason = "" if asked else "; ".join(text for text in (reason, flow_failure) if text)
    pixels, extrapolated, exceedance = chosen
    state = product.lead_states(pixels[:, 0], sequence.observed[-1], extrapolated)
    limits = methods.model_limits if checksum else ""
    frames = product.ForecastFrames(pixels, state, method, checksum, reason, limits, exceedance)
    return publish.Made(frames, {OPTICAL_FLOW: None if flow is None else flow[0][:, 0], LAST_FRAME: last[0][:, 0]})


def _instants(domain: Domain, sequence: InputSequence) -> list[datetime]:
    count = domain.input_frames
    return [sequence.reference_time - (count - 1 - n) * domain.cadence for n in range(count)]


def _run(
    forecaster: "Forecaster", domain: Domain, sequences: list[InputSequence], newest: int | None = None
) -> list["_Run"]:
    """Forecast of each sequence from its ``newest`` frames.

    Dry input is a forecast of no rain, with certainty. Rain below the drizzle floor and outside the coverage is none.
    """
    count = newest or domain.input_frames
    pixels = np.stack([s.pixels[-count:] for s in sequences])
    observed = np.stack([s.observed[-count:] for s in sequences])
    wet = np.array([not s.is_dry for s in sequences])
    made = np.zeros((len(sequences), domain.lead_frames, *pixels.shape[2:]), np.uint8)
    flags = np.zeros((len(sequences), domain.lead_frames, *pixels.shape[3:]), bool)
    levels = _thresholds_of(forecaster, domain)
    chances = {rate: np.zeros_like(made[:, :, 0]) for rate in levels}
    if wet.any():
        forecast = forecaster.predict(pixels[wet], observed[wet], domain.lead_frames)
        made[wet], flags[wet] = forecast.pixels, forecast.extrapolated
        if forecast.exceedance is not None:
            for rate, level in levels.items():
                chances[rate][wet] = forecast.exceedance[:, :, level]
    for n, sequence in enumerate(sequences):
        floor = pixel_of_rate(sequence.source.drizzle_floor_mm_h, domain.zr, domain.scale)
        made[n][made[n] < floor] = 0
        made[n][:, :, ~sequence.observed[-1]] = 0
    return [(made[n], flags[n], {rate: chance[n] for rate, chance in chances.items()}) for n in range(len(sequences))]


def _thresholds_of(forecaster: "Forecaster", domain: Domain) -> dict[float, int]:
    """Thresholds of the domain that are levels of the network's head too, and which."""
    from models.networks.network import Network

    if not isinstance(forecaster.method, Network):
        return {}
    pixels = [round(255 * level) for level in forecaster.method.output.levels]
    wanted = {rate: pixel_of_rate(rate, domain.zr, domain.scale) for rate in domain.thresholds_mm_h}
    return {rate: pixels.index(pixel) for rate, pixel in wanted.items() if pixel in pixels}
