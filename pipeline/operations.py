"""The order of work, written once: what ingest, run, backfill, verify, report and train do, step by step.

Each takes ``step``, a wrapper around its steps; bare it is the identity, in a flow it makes a Prefect task of each.
"""

import dataclasses
import functools
import logging
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from pipeline import logs, nowcast, promotion, times
from pipeline.catalog import Catalog
from pipeline.cycles import issue_cycles
from pipeline.domain import Domain
from pipeline.errors import (
    SOFTWARE_FAULT,
    ModelRefused,
    NotForecast,
    NowcastError,
    SettingsError,
    StoreUnavailable,
    machine_fault,
    reason_of,
)
from pipeline.ingest import IngestResult
from pipeline.ingest import ingest as ingest_window
from pipeline.learn_clutter import Learned
from pipeline.learn_clutter import learn_clutter as learn_from_volumes
from pipeline.settings import Settings
from pipeline.storage import Store, open_store
from pipeline.verification.sums_files import VerifyResult
from pipeline.verification.verify import verify as verify_window
from pipeline.warnings.watch import deliver

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
Step = Callable[[Callable[..., Any]], Callable[..., Any]]


def no_progress(stage: str, done: int, total: int) -> None:
    """Show nothing."""


def bare(function: Callable[..., Any]) -> Callable[..., Any]:
    """The step itself, without an orchestrator."""
    return function


@dataclass
class Report:
    """What a command did, for people (printed), for scripts (``--json``) and for the exit code.

    Attributes:
        problems: what was not done and why; the exit code is then 3.
        notes: what a person should know although all was done.
    """

    domain: str
    ingest: IngestResult | None = None
    cycles: dict[str, int] = field(default_factory=dict)
    methods: dict[str, int] = field(default_factory=dict)
    products: list[str] = field(default_factory=list)
    verify: VerifyResult | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def ingest(
    settings: Settings,
    domain_name: str,
    start: datetime | None,
    end: datetime | None,
    now: datetime,
    step: Step = bare,
    progress: Progress = no_progress,
) -> Report:
    """Take in what the source holds; without times all of it (of a synthetic source, the last day)."""
    domain = settings.domain(domain_name)
    endless = _is_endless(domain)
    # a file dated in the future is not taken in, but it is said that it is there
    start = start or (now - timedelta(days=1) if endless else times.EPOCH)
    end = end or (now if endless else now + timedelta(days=36500))
    report = Report(domain_name)
    _timed(report, "ingest", step(_ingest), settings, domain, start, end, now, progress, report)
    return report


def learn_clutter(
    settings: Settings,
    domain_name: str,
    start: datetime | None,
    end: datetime | None,
    now: datetime,
    progress: Progress = no_progress,
) -> list[Learned]:
    """Clutter maps of a domain's radars, from the dry volumes of a period; without times from all that there are."""
    domain = settings.domain(domain_name)
    start = start or (now - timedelta(days=1) if _is_endless(domain) else times.EPOCH)
    return learn_from_volumes(domain, open_store(settings), start, end or now, functools.partial(progress, "clutter"))


def _is_endless(domain: Domain) -> bool:
    """Whether the source makes data for every time there is."""
    return domain.source.kind in {"synthetic", "synthetic_radars"}


def run(
    settings: Settings,
    domain_name: str,
    reference_time: datetime | None,
    now: datetime,
    step: Step = bare,
    progress: Progress = no_progress,
) -> Report:
    """One cycle: that of ``reference_time``, or of the newest frame that can still serve a forecast.

    A map page that ``view`` has once written below the root is renewed.

    A product is ``issued`` while some of its lead times lie in the future, else a ``hindcast``.
    """
    domain, clock = settings.domain(domain_name), times.Clock(now)
    report = Report(domain_name)
    newest = reference_time or now
    if reference_time is not None and not times.is_slot(reference_time, domain.cadence):
        raise NotForecast(
            f"{times.iso(reference_time)} is not on the {domain.cadence_minutes}-minute axis of {domain_name}"
        )
    if newest > now:
        raise NotForecast(f"{times.iso(newest)} is after now ({times.iso(now)}): its frame cannot exist yet")
    before = (domain.input_frames - 1) * domain.cadence
    # without a time the newest frame decides, which may be as old as a forecast that still reaches into the future
    first = newest - (domain.horizon if reference_time is None else timedelta(0))
    _timed(report, "ingest", step(_ingest), settings, domain, first - before, newest, now, progress, report)
    if reference_time is None:
        recent = [t for t in times.slots(first, now, domain.cadence) if _has_frame(settings, domain, t)]
        if not recent:
            report.notes.append(f"nothing due: no frame of {domain_name} since {times.iso(first)}")
            return report
        reference_time = recent[-1]
    kind = "issued" if now < reference_time + domain.horizon else "hindcast"
    _timed(report, "nowcast", step(_issue), settings, domain, [reference_time], kind, clock, 1, progress, report)
    if report.cycles.get("published") and _has_page(settings, domain_name):
        _timed(report, "view", step(_renew_view), settings, domain, report)
    return report


def backfill(
    settings: Settings,
    domain_name: str,
    start: datetime,
    end: datetime,
    now: datetime,
    workers: int = 1,
    step: Step = bare,
    progress: Progress = no_progress,
    dask: str | None = None,
) -> Report:
    """Hindcast every cycle with a reference time in [start, end]: ingest what they need, forecast, verify.

    Args:
        workers: processes that forecast.
        dask: they are those of the Dask scheduler at this address, or of a cluster on this machine (``local``).
    """
    domain, clock = settings.domain(domain_name), times.Clock(now)
    report = Report(domain_name)
    end = min(end, now)
    cycles = list(times.slots(start, end, domain.cadence))
    if not cycles:
        report.notes.append(
            f"no instant of the {domain.cadence_minutes}-minute axis from {times.iso(start)} to {times.iso(end)}"
        )
        return report
    before, after = (domain.input_frames - 1) * domain.cadence, domain.horizon
    _timed(
        report, "ingest", step(_ingest), settings, domain, start - before, min(end + after, now), now, progress, report
    )
    _timed(
        report, "nowcast", step(_issue), settings, domain, cycles, "hindcast", clock, workers, progress, report, dask
    )
    _timed(report, "verify", step(_verify), settings, domain, start, end, progress, report)
    return report


def verify(
    settings: Settings,
    domain_name: str,
    start: datetime | None,
    end: datetime | None,
    now: datetime,
    step: Step = bare,
    progress: Progress = no_progress,
    external: str | None = None,
    name: str = "external",
) -> Report:
    """Score the forecasts of a period against what has arrived; or foreign ones, beside ours.

    Args:
        external: a pattern of files with foreign forecasts; the times are then theirs.
        name: of the foreign method.
    """
    domain = settings.domain(domain_name)
    report = Report(domain_name)
    if external is not None:
        _timed(report, "verify", step(_verify_external), settings, domain, external, name, progress, report)
        return report
    _timed(report, "verify", step(_verify), settings, domain, start or times.EPOCH, end or now, progress, report)
    return report


@dataclass(frozen=True)
class PageWritten:
    """The report's page and CSV, and per model the CSI table that the command prints."""

    page: Path
    scores: Path
    summary: list[str]
    headlines: dict[str, str]
    rows: dict[str, Any]


def report(
    settings: Settings,
    domain_name: str,
    start: datetime | None,
    end: datetime | None,
    out: Path | None,
    now: datetime,
    period: Literal["day", "week", "month"] | None = None,
    pair: tuple[str, str] | None = None,
) -> PageWritten:
    """Write the verification page; without times over all that the catalog knows.

    Args:
        period: instead of times, the last one that is over.
        pair: the two methods that the summary compares; default: the forecast and optical flow.
    """
    from pipeline.verification.report import headline, last_whole, write_report

    domain = settings.domain(domain_name)
    if period is not None:
        if start is not None or end is not None:
            raise SettingsError(f"--period {period} stands for times; give either it or --from and --to")
        start, end = last_whole(period, now)
    store, catalog = open_root(settings)
    written = write_report(domain, store, catalog, start, end, out, now, pair)
    catalog.close()
    wide = {key: headline(table) for key, table in written.tables.items()}
    return PageWritten(
        written.page,
        written.scores,
        written.summary,
        {key: table.to_string(float_format="%.3f", na_rep="-") for key, table in wide.items()},
        {key: table.reset_index().to_dict("records") for key, table in wide.items()},
    )


def view(
    settings: Settings,
    domain_name: str,
    reference_time: datetime | None,
    out: Path | None,
    only_if_new: bool = False,
) -> Any:
    """Write the page that shows a forecast on a map: that of ``reference_time``, or the newest.

    Args:
        only_if_new: a page that shows this forecast already stays as it is.
    """
    from pipeline.viewer.page import write_page

    domain = settings.domain(domain_name)
    store, catalog = open_root(settings)
    with closing(catalog):
        return write_page(domain, store, catalog, reference_time, out, only_if_new)


class TrainingRequest(BaseModel):
    """What to train and how; see ``models.recipe.Recipe`` and ``models.training_config.TrainingConfig``.

    ``data_only``: a folder to write the training data to, instead of training.
    """

    name: str = Field("trained", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,60}$")
    network: str = "convlstm"
    steps: int = Field(1000, ge=1)
    minutes: float = Field(60.0, gt=0)
    crop: int = Field(128, ge=16)
    batch: int = Field(4, ge=1)
    lead_frames: int = Field(8, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    accumulate: int = Field(1, ge=1)
    feed: Literal["own", "teacher", "scheduled"] = "own"
    loss: str = ""
    gradient_weight: float = Field(0.0, ge=0)
    adversarial: float = Field(0.0, ge=0)
    validate_every: int = Field(100, ge=1)
    patience: int = Field(10, ge=1)
    seed: int = Field(0, ge=0)
    bf16: bool = False
    command: str = ""
    data_only: Path | None = None


def train(
    settings: Settings,
    domain_names: list[str],
    request: TrainingRequest,
    now: datetime,
    progress: Callable[[int, dict[str, float]], None] = lambda step, row: None,
) -> Any:
    """Train a network on the archive of the domains; the checkpoint goes to root/models/NAME."""
    from models.checkpoint import PRETRAINED
    from models.recipe import Recipe
    from models.training_config import TrainingConfig
    from models.zoo import ZOO
    from pipeline import train as training

    domains = [settings.domain(name) for name in domain_names]
    if (PRETRAINED / request.name).exists():
        raise SettingsError(f"--name {request.name}: a shipped model has this name; give another one")
    if request.network not in ZOO:
        raise SettingsError(f"network {request.network!r} is not in the zoo; it has {', '.join(ZOO)}")
    store = open_store(settings)
    of_engine = {field.name for field in dataclasses.fields(TrainingConfig)}
    chosen = request.model_dump(include=of_engine)
    recipe = Recipe(
        network=request.network,
        loss=request.loss,
        gradient_weight=request.gradient_weight,
        crop=request.crop,
        training=TrainingConfig(input_frames=domains[0].input_frames, **chosen),
    )
    if request.data_only is not None:
        return training.export(domains, store, recipe, request.data_only, request.command, now)
    out = store.models(request.name) / request.name
    return training.train(
        domains, store, recipe, out, request.command, settings.threads, settings.device, now, progress
    )


def retrain(
    settings: Settings,
    domain_name: str,
    now: datetime,
    start: datetime | None = None,
    end: datetime | None = None,
    challenger: str = "",
    anew: bool = False,
    step: Step = bare,
    progress: Progress = no_progress,
    online: bool = False,
) -> Any:
    """Train a challenger on the newest archive, compare it with the model in use, and promote it if it is better.

    One that was killed goes on where it was. The model in use serves on, whatever happens here.

    Args:
        start, end: of the window, instead of the newest ``retrain.window_days``.
        challenger: a model that is there already; nothing is trained.
        anew: forget a retraining that is not finished.
        online: tune the model in use on the newest frames, if ``retrain.online`` says so; what comes after decides.
    """
    from pipeline.retrain import run as retraining

    domain = settings.domain(domain_name)
    if online and not settings.retrain.online:
        return retraining.Retrained(domain_name, "off", "retrain.online is off", domain.model_name, "")
    store, catalog = open_root(settings)
    with closing(catalog), logs.log_context(domain=domain_name), catalog.lease(f"retrain/{domain_name}") as lease:
        if lease is None and online:
            return retraining.Retrained(domain_name, "off", "another process retrains it", domain.model_name, "")
        if lease is None:
            raise NowcastError(f"another process retrains {domain_name}; nothing was begun")
        clock = times.Clock(now)
        work = retraining.open_work(settings, domain, store, catalog, start, end, challenger, anew, now, online)
        if isinstance(work, retraining.Retrained):
            return work
        why_not, evidence = step(retraining.train)(work, progress), None
        try:
            if not why_not and not work.plan.tunes:
                evidence = step(retraining.compare)(work, progress)
        except ModelRefused as err:
            why_not = str(err)
        except NowcastError:
            raise
        except Exception as err:  # a verdict, or the next start would meet it again
            if fault := machine_fault(err):
                raise StoreUnavailable(f"the retraining of {domain_name} waits: {fault}") from err
            log.exception("the models were not compared")
            why_not = reason_of(err)
        return step(retraining.conclude)(work, clock.now(), why_not, evidence)


def open_root(settings: Settings) -> tuple[Store, Catalog]:
    """Store and catalog of the settings, with what a killed process left cleaned away."""
    store = open_store(settings)
    store.remove_stale_temporaries()
    return store, Catalog(settings.catalog)


def _timed(report: Report, stage: str, function: Callable[..., Any], *args: Any) -> None:
    started = time.perf_counter()
    with logs.log_context(domain=report.domain):
        part: Report = function(*args)
    # a task may hand back a copy; what it filled in counts
    for name, value in vars(part).items():
        setattr(report, name, value)
    report.seconds[stage] = round(time.perf_counter() - started, 3)


def _ingest(
    settings: Settings,
    domain: Domain,
    start: datetime,
    end: datetime,
    now: datetime,
    progress: Progress,
    report: Report,
) -> Report:
    store, catalog = open_root(settings)
    result = ingest_window(domain, store, catalog, start, end, now, lambda done, total: progress("ingest", done, total))
    catalog.close()
    report.ingest = result
    report.problems = [*result.problems, *(reason for _, reason in result.quarantined)]
    report.notes += [f"used as a part: {defect}" for defect in result.defects]
    report.notes += [f"left alone: {reason}" for _, reason in result.left_alone]
    return report


def _issue(
    settings: Settings,
    domain: Domain,
    reference_times: list[datetime],
    kind: str,
    clock: times.Clock,
    workers: int,
    progress: Progress,
    report: Report,
    dask: str | None = None,
) -> Report:
    outcomes = {}
    with closing(issue_cycles(settings, domain, reference_times, kind, clock, workers, dask)) as coming:
        for outcome in coming:
            outcomes[outcome.reference_time] = outcome
            progress("nowcast", len(outcomes), len(reference_times))
    states: Counter[str] = Counter()
    methods: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    products, problems = [], list(report.problems)
    with closing(Catalog(settings.catalog)) as catalog:
        asked = promotion.in_use(catalog, domain)
    for reference_time, outcome in outcomes.items():
        report.notes += outcome.warnings
        problems += outcome.faults
        states[outcome.state] += 1
        if outcome.state in {"skipped", "held"}:
            problems.append(f"{outcome.state} {times.iso(reference_time)}: {outcome.reason}")
            continue
        methods[outcome.method] += 1
        products.append(outcome.path)
        if outcome.state == "published" and SOFTWARE_FAULT in outcome.reason:
            problems.append(f"{times.iso(reference_time)} by {outcome.method}: {outcome.reason}")
        elif outcome.reason:
            notes[f"{outcome.method} instead of the model: {outcome.reason}"] += 1
        elif outcome.state == "unchanged" and outcome.method != asked:
            notes[f"stands as published by {outcome.method}, although the model is now {asked}"] += 1
    if kind == "issued":
        with closing(Catalog(settings.catalog)) as catalog:
            problems += deliver(domain, open_store(settings), catalog)
    if any(outcome.state == "published" and outcome.reason for outcome in outcomes.values()):
        problems += _unusable_model(settings, domain)
    report.cycles, report.methods, report.products = dict(states), dict(methods), sorted(products)
    report.problems = problems
    report.notes += [f"{count} x {text}" for text, count in notes.items()]
    return report


def _has_page(settings: Settings, domain_name: str) -> bool:
    store = open_store(settings)
    return store.has(store.view(domain_name) / "index.html")


def _renew_view(settings: Settings, domain: Domain, report: Report) -> Report:
    try:
        view(settings, domain.name, None, None)
    except Exception as err:  # the forecast stands all the same
        log.error("the map page was not renewed", exc_info=not isinstance(err, NowcastError))
        report.problems.append(f"the map page was not renewed: {reason_of(err)}")
    return report


def _unusable_model(settings: Settings, domain: Domain) -> list[str]:
    """A model that is absent or damaged is a mistake to mend, although forecasts went out without it."""
    from models import checkpoint

    store, problems = open_store(settings), []
    with closing(Catalog(settings.catalog)) as catalog:
        serving = promotion.candidates(catalog, domain)
    for one in serving:
        if one.name in nowcast.UNTRAINED:
            continue
        try:
            checkpoint.load(checkpoint.find(one.name, (store.models(one.name),)))
        except checkpoint.CheckpointError as err:
            what = f"the promotion of {one.name}" if one.checksum else f"domains.{domain.name}.model"
            problems.append(f"{what}: {err}")
        except OSError as err:
            raise StoreUnavailable(f"the model {one.name} cannot be read: {machine_fault(err) or err}") from err
    return problems


def _verify(
    settings: Settings, domain: Domain, start: datetime, end: datetime, progress: Progress, report: Report
) -> Report:
    store, catalog = open_root(settings)
    result = verify_window(domain, store, catalog, start, end, lambda done, total: progress("verify", done, total))
    catalog.close()
    report.verify = result
    report.problems += [f"not verified {path}: {reason}" for path, reason in result.failed]
    return report


def _verify_external(
    settings: Settings, domain: Domain, pattern: str, name: str, progress: Progress, report: Report
) -> Report:
    from pipeline.verification.external import verify_external

    store, catalog = open_root(settings)
    show = functools.partial(progress, "verify")
    report.verify = verify_external(domain, store, catalog, pattern, name, show)
    catalog.close()
    report.problems += [f"not verified {path}: {reason}" for path, reason in report.verify.failed]
    return report


def _has_frame(settings: Settings, domain: Domain, time: datetime) -> bool:
    from pipeline.errors import DamagedFrame
    from pipeline.frames.archive import Archive

    try:
        return Archive(open_store(settings), domain).read(time) is not None
    except DamagedFrame:
        return False
