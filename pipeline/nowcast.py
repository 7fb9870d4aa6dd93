"""Input sequences become forecasts: with the model, and with the baselines beside it.

The only place where frames become tensors and back, and where the fallback chain is decided:
model -> optical flow -> last frame.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline import product, publish, times
from pipeline.catalog import Catalog
from pipeline.domain import Domain, model_name
from pipeline.errors import ModelRefused, machine_fault, reason_of
from pipeline.frames.grayscale import Pixels, pixel_of_rate
from pipeline.frames.sequences import InputSequence
from pipeline.promotion import Candidate, candidates
from pipeline.storage import Store

if TYPE_CHECKING:
    from models.forecaster import Forecaster
    from pipeline.settings import Settings

log = logging.getLogger(__name__)

OPTICAL_FLOW, LAST_FRAME = "optical_flow", product.LAST_FRAME
AREA_MATCHED = "area_matched"
ROVER = {"rover_linear": False, "rover_nonlinear": True}  # does it stretch the range of rain
# methods that nobody trained
UNTRAINED = frozenset({OPTICAL_FLOW, LAST_FRAME, AREA_MATCHED, *ROVER})


@dataclass(frozen=True)
class Methods:
    """What a domain forecasts with, loaded once per process.

    Attributes:
        model: None if it was refused, or needs no network.
        model_name: of what forecasts.
        asked: of what should; another one if that cannot be used.
        refused: why there is no model, or another one.
        is_unreadable: the model is refused since the machine cannot read it now; it may be whole.
    """

    model: "Forecaster | None"
    model_name: str
    asked: str
    model_checksum: str
    model_limits: str
    refused: str
    optical_flow: "Forecaster"
    last_frame: "Forecaster"
    is_unreadable: bool = False


class Loader:
    """Loads what domains forecast with; those that ask for the same checkpoint share one network.

    Args:
        store: whose models are looked through before the shipped ones.
        catalog: that knows what was promoted.
    """

    def __init__(self, store: Store, settings: "Settings", catalog: Catalog) -> None:
        from models.baselines.last_frame import LastFrame
        from models.baselines.optical_flow import OpticalFlow
        from models.forecaster import Forecaster

        self.store, self.settings, self.catalog = store, settings, catalog
        self._optical_flow = Forecaster(OpticalFlow(), threads=settings.threads)
        self._last_frame = Forecaster(LastFrame(), threads=settings.threads)
        self._networks: dict[str, tuple[Any, Any]] = {}
        self._forecasters: dict[tuple[Any, ...], Forecaster] = {}
        self._methods: dict[tuple[str, float, Candidate], Methods] = {}

    def methods(self, domain: Domain, spacing_m: float) -> Methods:
        """The model that serves the domain now, if it was trained for such frames, and its fallbacks.

        A promoted model that cannot be used leaves its place to the one before it.
        """
        there = candidates(self.catalog, domain)
        refused: list[str] = []
        unreadable = False
        for one in there:
            loaded = self.of(domain, spacing_m, one)
            if not loaded.refused:
                break
            refused.append(loaded.refused)
            unreadable = unreadable or loaded.is_unreadable
        if not refused:
            return loaded
        asked = model_name(there[0].name)
        return replace(loaded, asked=asked, refused="; ".join(refused), is_unreadable=unreadable)

    def of(self, domain: Domain, spacing_m: float, one: Candidate) -> Methods:
        """One model for a domain, and its fallbacks."""
        key = (domain.name, spacing_m, one)
        if key not in self._methods:
            loaded = self._load(domain.model_copy(update={"model": one.name}), spacing_m, one.checksum)
            if loaded.refused:
                return loaded  # a checkpoint that is missing now may be there with the next cycle
            self._methods[key] = loaded
        return self._methods[key]

    def _load(self, domain: Domain, spacing_m: float, wanted: str) -> Methods:
        from models.baselines.rover import Rover
        from models.forecaster import Forecaster

        model: Forecaster | None = None
        checksum, limits, refused, is_unreadable = "", "", "", False
        try:
            if domain.model in ROVER:
                scale = domain.scale
                rover = Rover(nonlinear=ROVER[domain.model], dbz_min=scale.dbz_min, dbz_max=scale.dbz_max)
                model = Forecaster(rover, threads=self.settings.threads)
            elif domain.model == AREA_MATCHED:
                model = Forecaster(_area_matched(domain, spacing_m), threads=self.settings.threads)
            elif domain.model not in {OPTICAL_FLOW, LAST_FRAME}:
                model, card = self._network(domain, spacing_m, wanted)
                checksum, limits = card.checksum, card.limits
                if wanted not in {"", checksum}:
                    raise ModelRefused(f"model {card.name} is {checksum[:12]} now, {wanted[:12]} was promoted")
        except (ModelRefused, ValueError) as err:
            refused = str(err)
            log.warning("model refused: %s", refused)
            model = None
        except Exception as err:  # of this model; a fallback serves
            refused, is_unreadable = f"{domain.model_name} cannot be loaded: {reason_of(err)}", bool(machine_fault(err))
            log.error("model refused: %s", refused, exc_info=not is_unreadable)
            model = None
        return Methods(
            model=model,
            model_name=domain.model_name,
            asked=domain.model_name,
            model_checksum=checksum,
            model_limits=limits,
            refused=refused,
            optical_flow=self._optical_flow,
            last_frame=self._last_frame,
            is_unreadable=is_unreadable,
        )

    def _network(self, domain: Domain, spacing_m: float, wanted: str) -> "tuple[Forecaster, Any]":
        from models import checkpoint
        from models.forecaster import Forecaster
        from models.recipe import too_short_reach

        settings = self.settings
        known = self._networks.get(domain.model)
        if known is None or wanted not in {"", known[1].checksum}:  # its files may have been replaced since
            try:
                folder = checkpoint.find(domain.model, (self.store.models(domain.model),))
                self._networks[domain.model] = checkpoint.load(folder)
            except checkpoint.CheckpointError as err:
                raise ModelRefused(str(err)) from err
        network, card = self._networks[domain.model]
        refusal = card.refusal(
            dbz_min=domain.scale.dbz_min,
            dbz_max=domain.scale.dbz_max,
            cadence_minutes=domain.cadence_minutes,
            spacing_m=spacing_m,
            products=domain.products,
        )
        if not refusal and not card.moving:
            refusal = too_short_reach(network, domain.cadence_minutes, spacing_m)
        if refusal:
            raise ModelRefused(refusal)
        # in the moving frame a network serves several kinds of frames, each in its own way
        kind = (domain.cadence_minutes, spacing_m, domain.zr, domain.scale) if card.moving else ()
        key = (domain.model, card.checksum, *kind)
        if key not in self._forecasters:
            method = _in_moving_frame(network, card, domain, spacing_m, settings.memory_mb) if card.moving else network
            self._forecasters[key] = Forecaster(
                method,
                device=settings.device,
                precision=settings.precision,
                memory_mb=settings.memory_mb,
                threads=settings.threads,
            )
        forecaster = self._forecasters[key]
        needed = forecaster.method.min_frames  # type: ignore[attr-defined]
        if needed > domain.input_frames:
            raise ModelRefused(f"model {card.name} needs {needed} input frames, the domain has {domain.input_frames}")
        return forecaster, card


def _area_matched(domain: Domain, spacing_m: float) -> Any:
    from models.baselines.area_matched import AreaMatched

    levels = sorted({pixel_of_rate(rate, domain.zr, domain.scale) / 255 for rate in domain.thresholds_mm_h})
    return AreaMatched(domain.cadence_minutes, spacing_m, tuple(levels), _rain_of(domain).steep)


def _in_moving_frame(network: Any, card: Any, domain: Domain, spacing_m: float, memory_mb: int) -> Any:
    from models.calibration import Calibration
    from models.moving_frame import MovingFrame

    rain = _rain_of(domain)
    frames = int(card.training.get("input_frames", 0))
    calibration = Calibration.of_card(card.calibration) if card.calibration else None
    return MovingFrame(network, domain.cadence_minutes, spacing_m, rain, frames, calibration, memory_mb)


def _rain_of(domain: Domain) -> Any:
    """What the pixels of a domain mean, for ``models``."""
    from models.moving_windows import Rain

    return Rain(domain.zr.a, domain.zr.b, domain.scale.dbz_min, domain.scale.dbz_max)


# a forecast that is wanted: for which domain, from what
Item = tuple[Domain, InputSequence]
# frames (lead, channels, rows, columns) uint8, the cells that are extrapolated inflow, and by threshold the probability
# of reaching it (lead, rows, columns) uint8 in 1/255
_Run = tuple[Pixels, NDArray[np.bool_], dict[float, Pixels]]


@dataclass(frozen=True)
class ModelRun:
    """What the model forecast for one item; or, with ``run`` None, why it did not."""

    run: "_Run | None"
    reason: str = ""


def forecast(item: Item, methods: Methods) -> publish.Made:
    """Forecast one item by the model, or by a fallback."""
    return with_fallbacks(item, methods, by_model([item], [methods])[0])


def by_model(items: Sequence[Item], methods: Sequence[Methods]) -> list[ModelRun]:
    """Forecast a batch by the model; one that fails, whatever with, does not harm its company.

    Args:
        items: all of one shape and number of leads.
        methods: of each; all have the same model.
    """
    runs = [ModelRun(None, _why_not_model(of, sequence)) for of, (_, sequence) in zip(methods, items, strict=True)]
    model = methods[0].model
    if model is not None:
        ready = [n for n, run in enumerate(runs) if not run.reason]
        for n, run in zip(ready, _try(model, [items[n] for n in ready], methods[0].model_name), strict=True):
            runs[n] = run
    return runs


def _try(forecaster: "Forecaster", items: Sequence[Item], name: str, newest: int | None = None) -> list[ModelRun]:
    """Run a method on a batch; if that fails, one by one, so that a bad cycle does not harm its company."""
    if not items:
        return []
    try:
        return [ModelRun(run) for run in _run(forecaster, items, newest)]
    except Exception as err:
        log.exception("%s failed on %d cycles", name, len(items))
        if len(items) == 1:
            foreseen = type(err) in {RuntimeError, MemoryError, ValueError}  # see Forecaster.predict
            reason = (str(err).splitlines() or [type(err).__name__])[0] if foreseen else reason_of(err)
            return [ModelRun(None, f"{name} failed: {reason}")]
    return [_try(forecaster, [item], name, newest)[0] for item in items]


def _why_not_model(methods: Methods, sequence: InputSequence) -> str:
    if methods.model is None:
        return methods.refused
    if sequence.missing_times:
        missing = ", ".join(times.iso(t) for t in sequence.missing_times)
        damaged = f" (damaged: {', '.join(map(times.iso, sequence.damaged_times))})" if sequence.damaged_times else ""
        return f"input frames are missing and not filled: {missing}{damaged}"
    return ""


def with_fallbacks(item: Item, methods: Methods, by_model: ModelRun) -> publish.Made:
    """The fallback chain, the only place where it is decided."""
    (domain, sequence), reason = item, by_model.reason
    present = [t not in sequence.missing_times for t in _instants(domain, sequence)]
    recent = next((n for n, there in enumerate(reversed(present)) if not there), len(present))
    by_flow = ModelRun(None, "optical flow needs the two newest frames")
    if recent >= 2:
        by_flow = _try(methods.optical_flow, [item], OPTICAL_FLOW, recent)[0]
    flow, last = by_flow.run, _run(methods.last_frame, [item])[0]
    method, checksum, chosen = methods.model_name, methods.model_checksum, by_model.run
    if chosen is None:
        method, checksum, chosen = OPTICAL_FLOW, "", flow
    asked = methods.model_name == LAST_FRAME
    if chosen is None or asked:
        method, checksum, chosen = LAST_FRAME, "", last
        reason = methods.refused if asked else "; ".join(text for text in (reason, by_flow.reason) if text)
    pixels, extrapolated, exceedance = chosen
    state = product.lead_states(pixels[:, 0], sequence.observed[-1], extrapolated)
    limits = methods.model_limits if checksum else ""
    frames = product.ForecastFrames(
        pixels, state, method, checksum, reason or methods.refused, methods.asked, limits, exceedance
    )
    return publish.Made(frames, {OPTICAL_FLOW: None if flow is None else flow[0][:, 0], LAST_FRAME: last[0][:, 0]})


def _instants(domain: Domain, sequence: InputSequence) -> list[datetime]:
    count = domain.input_frames
    return [sequence.reference_time - (count - 1 - n) * domain.cadence for n in range(count)]


def _run(forecaster: "Forecaster", items: Sequence[Item], newest: int | None = None) -> list["_Run"]:
    """Forecast of each sequence from its ``newest`` frames.

    Dry input is a forecast of no rain, with certainty. Rain below the drizzle floor and outside the coverage is none.
    """
    leads, count = items[0][0].lead_frames, newest or items[0][0].input_frames
    pixels = np.stack([s.pixels[-count:] for _, s in items])
    observed = np.stack([s.observed[-count:] for _, s in items])
    wet = np.array([not s.is_dry for _, s in items])
    made = np.zeros((len(items), leads, *pixels.shape[2:]), np.uint8)
    flags = np.zeros((len(items), leads, *pixels.shape[3:]), bool)
    exceedance: NDArray[np.uint8] | None = None
    if wet.any():
        forecast = forecaster.predict(pixels[wet], observed[wet], leads)
        made[wet], flags[wet], exceedance = forecast.pixels, forecast.extrapolated, forecast.exceedance
    runs, order = [], np.cumsum(wet) - 1
    for n, (domain, sequence) in enumerate(items):
        floor = pixel_of_rate(sequence.source.drizzle_floor_mm_h, domain.zr, domain.scale)
        made[n][made[n] < floor] = 0
        made[n][:, :, ~sequence.observed[-1]] = 0
        chances = {}
        for rate, level in _thresholds_of(forecaster, domain).items():
            if exceedance is None or not wet[n]:
                chances[rate] = np.zeros_like(made[n, :, 0])
            else:
                chances[rate] = exceedance[order[n], :, level]
        runs.append((made[n], flags[n], chances))
    return runs


def _thresholds_of(forecaster: "Forecaster", domain: Domain) -> dict[float, int]:
    """Thresholds of the domain that are levels of the network's head too, and which."""
    pixels = [round(255 * level) for level in getattr(forecaster.method, "levels", ())]
    wanted = {rate: pixel_of_rate(rate, domain.zr, domain.scale) for rate in domain.thresholds_mm_h}
    return {rate: pixels.index(pixel) for rate, pixel in wanted.items() if pixel in pixels}
