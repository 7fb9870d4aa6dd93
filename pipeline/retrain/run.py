"""One retraining from plan to verdict. Every part finds what was done before, so that one that was killed goes on."""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa

from pipeline import catalog as tables
from pipeline import dataset, nowcast, promotion, times
from pipeline.catalog import Catalog, Row
from pipeline.domain import Domain
from pipeline.errors import ModelRefused, NowcastError, SettingsError, StoreUnavailable, machine_fault, reason_of
from pipeline.frames.archive import Archive
from pipeline.promotion import Candidate
from pipeline.retrain import plan as plans
from pipeline.retrain.decision import BETTER, REJECTED, Verdict, decide
from pipeline.retrain.evaluation import Evidence, Rivals, evaluate
from pipeline.retrain.plan import Plan
from pipeline.settings import Settings
from pipeline.storage import Store

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
PROMOTED, SHADOW, NOT_TRAINED = "promoted", "shadow", "not trained"


@dataclass(frozen=True)
class Retrained:
    """What became of one retraining.

    Attributes:
        state: promoted, shadow (better, and now beside the model in use), rejected, not enough evidence, or not
            trained.
        reason: in words.
        page: the comparison; None if nothing was compared.
        checks: conditions of the rule: name, whether it holds, what was found.
    """

    domain: str
    state: str
    reason: str
    model: str
    challenger: str
    page: Path | None = None
    checks: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Work:
    """What the parts of a retraining work with."""

    settings: Settings
    domain: Domain
    store: Store
    catalog: Catalog
    plan: Plan

    @property
    def folder(self) -> Path:
        """Of the plan and all that belongs to it."""
        return plans.folder_of(self.store, self.domain.name, self.plan.id)


def train(work: Work, progress: Progress) -> str:
    """Build the dataset of the window and train the challenger, unless that is done.

    Returns:
        Why nothing could be trained; empty if the challenger is there.

    Raises:
        StoreUnavailable: something cannot be written; the next start goes on.
    """
    plan, store = work.plan, work.store
    if plan.problem or plan.given:
        return plan.problem
    out = store.models(plan.challenger) / plan.challenger
    if (out / "card.json").is_file():
        store.send(out)  # it may have been killed before
        return ""
    data = work.folder / "dataset"
    try:
        _have_dataset(work, data, progress)
        _train(work, data, out, progress)
    except (StoreUnavailable, OSError) as err:
        if isinstance(err, StoreUnavailable):
            raise
        raise StoreUnavailable(f"{err.filename or out}: cannot be read or written: {err.strerror or err}") from err
    except (NowcastError, ValueError, KeyError, TypeError) as err:
        return str(err.args[0] if isinstance(err, KeyError) else err)
    except Exception as err:  # a verdict, or the next start would meet it again
        if fault := machine_fault(err):
            raise StoreUnavailable(f"the training of {plan.challenger} waits: {fault}") from err
        log.exception("the challenger %s was not trained", plan.challenger)
        return reason_of(err)
    store.send(out)
    shutil.rmtree(data, ignore_errors=True)
    return ""


def _have_dataset(work: Work, data: Path, progress: Progress) -> None:
    """Build the dataset, unless an earlier run has; what that left damaged is built again."""
    from models import dataset as datasets

    if data.is_dir():
        try:
            datasets.load(data)
            return
        except ValueError as err:
            log.warning("the dataset of an earlier run is built again: %s", err)
            shutil.rmtree(data)
    shutil.rmtree(data.with_name(".dataset.half"), ignore_errors=True)  # of a run that was killed
    _build(work, data, progress)


def _build(work: Work, data: Path, progress: Progress) -> None:
    plan, chosen = work.plan, work.plan.chosen
    domains = [work.domain, *(work.settings.domain(name) for name in chosen.also if name != work.domain.name)]
    request = dataset.DatasetRequest(
        start=times.parse_time(plan.start),
        end=times.parse_time(plan.learn_until),
        validation_share=0.0 if plan.tunes else chosen.tune_share,
        gap_minutes=chosen.gap_minutes,
    )
    command = f"retrain {plan.domain} {plan.id}"
    built = dataset.build(domains, work.store, data, request, command, times.parse_time(plan.made_at), progress)
    found = sum(built.train.values())
    if found < chosen.fewest_times and not plan.tunes:
        shutil.rmtree(data, ignore_errors=True)
        raise NowcastError(
            f"{found} times with rain to learn from between {plan.start} and {plan.learn_until}, "
            f"{chosen.fewest_times} are needed (retrain.fewest_times)"
        )
    if not built.validation[plan.domain] and not plan.tunes:
        shutil.rmtree(data, ignore_errors=True)
        raise NowcastError(f"no time to tune with before {plan.learn_until}; the window is too short")


def _train(work: Work, data: Path, out: Path, progress: Progress) -> None:
    from models import checkpoint
    from models import dataset as datasets
    from models.forecaster import resolved_device
    from models.recipe import Recipe, make_moving
    from models.training_config import TrainingConfig

    chosen, plan = work.plan.chosen, work.plan
    series, card = datasets.load(data)
    steps = chosen.online_steps if plan.tunes else chosen.steps
    config = TrainingConfig(
        input_frames=int(card["input_frames"]),
        lead_frames=int(card["lead_frames"]),
        batch=chosen.batch,
        steps=steps,
        minutes=chosen.minutes,
        learning_rate=chosen.learning_rate,
        seed=chosen.seed,
        leads_in_step=chosen.leads_in_step,
        validate_every=max(1, min(100, steps // 5)),
    )
    recipe = Recipe(
        network=chosen.network, network_config=chosen.network_config, crop=chosen.crop, training=config
    )  # fmt: skip
    initial, calibration, before = None, {}, {}
    if chosen.start_from == "model" and plan.model_checksum:
        try:
            network, parent = checkpoint.load(checkpoint.find(plan.model, (work.store.models(plan.model),)))
            if parent.moving:
                initial, calibration, before = network, parent.calibration, parent.training.get("periods", {})
        except checkpoint.CheckpointError as err:
            log.warning("from scratch, since the model in use cannot be read: %s", err)

    def report(step: int, row: dict[str, float]) -> None:
        progress("train", step, config.steps)

    lineage = {
        "parent": {"name": plan.model, "checksum": plan.model_checksum},
        "software_version": plan.software_version,
        "retraining": plan.id,
        "periods": _both({name: one.facts.about["period"] for name, one in series.items()}, before),
    }
    device = str(resolved_device(work.settings.device))
    make_moving(
        recipe, series, card, out, plan.challenger, report, device,
        initial=initial, calibration=calibration, lineage=lineage, threads=work.settings.threads,
    )  # fmt: skip


def _both(own: dict[str, str], before: dict[str, str]) -> dict[str, str]:
    """Periods of a model that continues another one: from the earlier start to the later end."""
    made = {**before, **own}
    for name in set(own) & set(before):
        (a, b), (c, d) = own[name].split("/"), before[name].split("/")
        made[name] = f"{min(a, c, key=times.parse_time)}/{max(b, d, key=times.parse_time)}"
    return made


def shadow_seconds(work: Work) -> float | None:
    """Median seconds of the forecasts beside the live ones; None of a challenger that made none."""
    c = tables.cycles.c
    mine = sa.and_(c.domain == work.domain.name, c.kind == SHADOW, c.method == work.plan.challenger)
    stages = [json.loads(row["stages"] or "{}") for row in work.catalog.read(sa.select(c.stages).where(mine))]
    seconds = [one["forecast"] for one in stages if "forecast" in one]
    return float(np.median(seconds)) if seconds else None


def compare(work: Work, progress: Progress) -> Evidence | None:
    """Forecasts of both, scored; None if no time could be.

    Raises:
        ModelRefused: one of the two cannot be used.
    """
    loader = nowcast.Loader(work.store, work.settings, work.catalog)
    return evaluate(
        work.domain,
        work.store,
        _rivals(work, loader),
        work.plan.between(),
        work.plan.chosen.forecasts,
        work.folder / "sums",
        progress,
    )


def _rivals(work: Work, loader: nowcast.Loader) -> Rivals:
    plan = work.plan
    source = Archive(work.store, work.domain).source()
    assert source is not None  # a plan without frames has a problem, and compares nothing
    challenger = loader.of(work.domain, source.grid.spacing_m, Candidate(plan.challenger))
    in_use = loader.of(work.domain, source.grid.spacing_m, Candidate(plan.model, plan.model_checksum))
    for whose, methods in (("the challenger", challenger), ("the model in use", in_use)):
        if methods.is_unreadable:
            raise StoreUnavailable(methods.refused)
        if methods.refused:
            raise ModelRefused(f"{whose} cannot be used: {methods.refused}")
    return Rivals(challenger, in_use)


def conclude(work: Work, now: datetime, not_trained: str, evidence: Evidence | None) -> Retrained:
    """Decide, write the verdict and its page, promote or not, and tell the journal."""
    from pipeline.retrain.page import write_page

    plan, chosen = work.plan, work.plan.chosen
    verdict = Verdict(NOT_TRAINED, not_trained, ()) if not_trained else decide(evidence, chosen, shadow_seconds(work))
    if plan.tunes and not not_trained:
        verdict = Verdict(SHADOW, f"tuned on what was observed until {plan.learn_until}; what comes now decides", ())
    state = verdict.state
    if state == BETTER:
        state = SHADOW if chosen.shadow_hours and not plan.after_shadow else PROMOTED
    done = Retrained(
        domain=plan.domain,
        state=state,
        reason=verdict.reason,
        model=plan.model,
        challenger=plan.challenger,
        page=work.folder / "index.html" if evidence is not None and evidence.verified is not None else None,
        checks=[asdict(check) for check in verdict.checks],
    )
    done = _act(work, now, done)
    if done.page is not None and evidence is not None:
        try:
            write_page(work.domain, work.store, plan, done, evidence, now)
        except StoreUnavailable:
            raise
        except Exception as err:  # the verdict stands without a page, and must not be sought for ever
            log.exception("the page of the retraining %s could not be made", plan.id)
            done = replace(done, page=None, problems=[f"no page: {err!r}"])
    _finish(work, now, done)
    return done


def _act(work: Work, now: datetime, done: Retrained) -> Retrained:
    """Let a better challenger serve or run beside, unless that was done before a kill; end a shadow that is not."""
    plan, catalog, domain = work.plan, work.catalog, work.domain
    shadow = promotion.in_shadow(catalog, domain)
    mine = shadow is not None and shadow["name"] == plan.challenger
    if done.state == REJECTED and mine:
        promotion.demote(work.store, catalog, domain, now, done.reason, promotion.SHADOW)
    if done.state not in {PROMOTED, SHADOW}:
        return done
    if promotion.in_use(catalog, domain) == plan.challenger or (done.state == SHADOW and mine):
        return done
    role = promotion.IN_USE if done.state == PROMOTED else promotion.SHADOW
    shown = work.store.relative(work.folder / "verdict.json")
    try:
        promotion.promote(
            work.store, catalog, domain, plan.challenger, now, done.reason, shown, role, after=plan.model
        )  # fmt: skip
    except StoreUnavailable:
        raise
    except NowcastError as err:
        return replace(done, state=REJECTED, reason=f"better, but it cannot serve: {err}")
    return done


def _finish(work: Work, now: datetime, done: Retrained) -> None:
    content = {
        **asdict(done),
        "page": done.page and done.page.name,
        "plan": asdict(work.plan),
        "decided_at": times.iso(now),
    }
    entry = {"event": "retrained", "domain": done.domain, "state": done.state, "reason": done.reason}
    entry |= {"challenger": done.challenger, "model": done.model, "retraining": work.plan.id}
    work.store.append_journal(now, entry)
    plans.write(work.store, work.plan, "verdict.json", content)
    for rest in ("dataset", "sums"):
        shutil.rmtree(work.folder / rest, ignore_errors=True)


def open_work(
    settings: Settings,
    domain: Domain,
    store: Store,
    catalog: Catalog,
    start: datetime | None,
    end: datetime | None,
    challenger: str,
    anew: bool,
    now: datetime,
    online: bool = False,
) -> Work | Retrained:
    """The unfinished retraining of a domain, that of the challenger which leaves the shadow, or a new one.

    Args:
        anew: an unfinished one is forgotten, and a challenger in the shadow.
        online: a new one is an online tuning.

    Returns:
        What there is to say, if a challenger is in the shadow still.

    Raises:
        SettingsError: an unfinished one would go on, although another one is asked for.
    """
    found = plans.unfinished(store, domain.name, online)
    wanted = plans.asked(start, end, challenger)
    if found is not None and anew:
        plans.discard(store, found)
        found = None
    if found is not None and any(wanted) and wanted != found.asked:
        raise SettingsError(
            f"the retraining {found.id} of {domain.name} is not finished: the command without --from, --to and "
            "--challenger goes on with it, --anew forgets it"
        )
    if found is not None:
        log.warning(
            "going on with the retraining %s of %s, with the settings that it was begun with; --anew begins again",
            found.id, domain.name,
        )  # fmt: skip
        return Work(settings, domain, store, catalog, found)
    shadow = promotion.in_shadow(catalog, domain)
    if shadow is not None and anew:
        promotion.demote(store, catalog, domain, now, "another retraining was asked for", promotion.SHADOW)
    elif shadow is not None and not any(wanted):
        before = _plan_of(store, shadow)
        if before["online"] == online or online:
            return _out_of_shadow(settings, domain, store, catalog, shadow, before, now)
        promotion.demote(store, catalog, domain, now, "the scheduled retraining begins", promotion.SHADOW)
    if not challenger:
        _check(settings)
    plan = plans.make(domain, store, catalog, settings.retrain, start, end, challenger, now, online=online)
    return Work(settings, domain, store, catalog, plan)


def _check(settings: Settings) -> None:
    """The network can be built and trained as the settings say, and the further domains exist.

    Raises:
        SettingsError: names the setting.
    """
    from models import zoo

    chosen = settings.retrain
    for name in chosen.also:
        settings.domain(name)
    try:
        network = zoo.build(chosen.network, chosen.network_config)
    except (KeyError, TypeError, ValueError, RuntimeError) as err:
        raise SettingsError(f"retrain.network = {chosen.network!r}: {err.args[0] if err.args else err}") from err
    if chosen.leads_in_step and not network.picks_leads:
        raise SettingsError(f"retrain.leads_in_step: {chosen.network} is trained on all leads at once; set it to 0")
    if chosen.leads_in_step > dataset.DatasetRequest().lead_frames:
        most = dataset.DatasetRequest().lead_frames
        raise SettingsError(f"retrain.leads_in_step = {chosen.leads_in_step}: there are {most} leads")


def _plan_of(store: Store, shadow: Row) -> dict[str, Any]:
    """The plan that put a challenger into the shadow."""
    found: dict[str, Any] = json.loads(store.read(store.root / shadow["evidence"]))["plan"]
    return found


def _out_of_shadow(
    settings: Settings,
    domain: Domain,
    store: Store,
    catalog: Catalog,
    shadow: Row,
    before: dict[str, Any],
    now: datetime,
) -> Work | Retrained:
    """The decision on a challenger that forecasts beside, if it is time for one."""
    chosen, name = settings.retrain, shadow["name"]
    least = timedelta(hours=chosen.online_shadow_hours if before["online"] else chosen.shadow_hours)
    until = max(tables.from_seconds(shadow["since"]), plans.last_made(store, domain.name)) + least
    first, held = times.parse_time(before["decide_from"]), Archive(store, domain).times()
    reason = f"{name} forecasts beside until {times.iso(until.replace(microsecond=0))}"
    if now >= until and (not held or held[-1] <= first):
        reason = f"{name} forecasts beside; nothing was observed yet that could decide"
    elif now >= until:
        online = before["online"]
        plan = plans.make(domain, store, catalog, chosen, first, None, name, now, decide_from=first, online=online)
        return Work(settings, domain, store, catalog, plan)
    return Retrained(domain.name, SHADOW, reason, promotion.in_use(catalog, domain), name)
