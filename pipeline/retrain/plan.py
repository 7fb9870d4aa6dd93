"""What one retraining does, written down before it begins, so that one that was killed goes on with the same."""

import json
import logging
import shutil
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline import times
from pipeline.catalog import Catalog
from pipeline.domain import Domain, model_name
from pipeline.errors import BadInput, reading
from pipeline.frames.archive import Archive
from pipeline.promotion import serving, usable
from pipeline.retrain.settings import Retrain
from pipeline.storage import Store, safe_name
from pipeline.version import software_version

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """One retraining of one domain.

    Attributes:
        id: of the domain's retrainings; names the folder.
        made_at: by the clock of whoever began.
        start, learn_until: what is learnt from, and at its end tuned and calibrated with.
        decide_from, decide_until: reference times of the forecasts that decide.
        model, model_checksum: in use when it began; the checksum is empty of a method without weights.
        challenger: name of the model that is trained, or of the one that was given.
        given: the challenger is not trained here.
        after_shadow: it was better before, and has since forecast beside the model in use.
        online: of the online setting: first all of the window is learnt from, then what came after it decides.
        asked: start, end and challenger as they were asked for; empty where they were not.
        settings: ``Retrain``.
        problem: why nothing can be done; empty if it can.
    """

    id: str
    domain: str
    made_at: str
    start: str
    learn_until: str
    decide_from: str
    decide_until: str
    model: str
    model_checksum: str
    challenger: str
    given: bool
    settings: dict[str, Any]
    software_version: str
    asked: list[str]
    after_shadow: bool = False
    online: bool = False
    problem: str = ""

    @property
    def chosen(self) -> Retrain:
        """The settings that it began with."""
        return Retrain(**self.settings)

    @property
    def tunes(self) -> bool:
        """It only tunes online; a later plan decides."""
        return self.online and not self.after_shadow

    def between(self) -> tuple[datetime, datetime]:
        """First and last reference time that decide."""
        return times.parse_time(self.decide_from), times.parse_time(self.decide_until)


def folder_of(store: Store, domain: str, plan_id: str = "") -> Path:
    """Where the plans of a domain lie, or one of them."""
    folder = store.root / "retrain" / domain
    return folder / plan_id if plan_id else folder


def unfinished(store: Store, domain: str, online: bool) -> Plan | None:
    """The newest plan of that kind without a verdict; None if there is none, or it cannot be read."""
    for path in sorted(folder_of(store, domain).glob("*/plan.json"), reverse=True):
        if (path.parent / "verdict.json").is_file():
            continue
        try:
            with reading(path):
                plan = Plan(**json.loads(path.read_text(encoding="utf-8")))
            plan.chosen  # noqa: B018 - settings of another version are refused here
        except (OSError, ValueError, TypeError, ValidationError) as err:
            log.warning("%s is no plan of this version and is left alone: %s", path, err)
            continue
        if plan.online == online:
            return plan
    return None


def last_made(store: Store, domain: str) -> datetime:
    """When the newest plan of a domain was made."""
    names = [path.parent.name for path in folder_of(store, domain).glob("*/plan.json")]
    return max((times.parse_time(name) for name in names), default=times.EPOCH)


def make(
    domain: Domain,
    store: Store,
    catalog: Catalog,
    chosen: Retrain,
    start: datetime | None,
    end: datetime | None,
    challenger: str,
    now: datetime,
    decide_from: datetime | None = None,
    online: bool = False,
) -> Plan:
    """Split the frames of the window by time: to learn from, to tune with, to decide with; and write it down.

    The forecasts that decide are later than all that the challenger, or the model in use, was trained on.

    Args:
        start, end: of the window; without, the last ``window_days`` before the newest frame.
        challenger: name of a model that is there already; empty trains one.
        decide_from: of a challenger that comes out of the shadow; it decides what was compared before, and since.

    Raises:
        BadInput: the challenger has no such name, or is the model in use; the window ends before it begins.
        ModelRefused: the challenger is absent or damaged, or was trained for other frames.
    """
    if challenger and challenger != safe_name(challenger):
        raise BadInput(f"the challenger {challenger!r}: expected the name of a model of this root, or a shipped one")
    if start is not None and end is not None and end < start:
        raise BadInput(f"the window ends at {times.iso(end)}, before it begins at {times.iso(start)}")
    held = [t for t in Archive(store, domain).times() if (start is None or t >= start) and (end is None or t <= end)]
    length = timedelta(hours=chosen.online_hours) if online else timedelta(days=chosen.window_days)
    if held and start is None:
        held = [t for t in held if t >= held[-1] - length]
    problem = "the archive has no frames in that window; run `nowcast ingest` first" if not held else ""
    held = held or [now, now]
    gap = timedelta(minutes=chosen.gap_minutes)
    one, card = serving(store, catalog, domain)
    known_until = _learnt_until(card, domain)
    if challenger and challenger == model_name(one.name):
        raise BadInput(f"{challenger} serves {domain.name} already; compare another model")
    cut = held[min(round(len(held) * (1 - chosen.decide_share)), len(held) - 1)]
    if challenger:
        learnt = _learnt_until(usable(store, domain, challenger), domain)
        known_until = max((t for t in (known_until, learnt) if t is not None), default=None)
        cut = held[0]
    after_shadow = decide_from is not None
    if online and not after_shadow:
        decide_from = held[-1] + gap
    elif decide_from is None:
        decide_from = max(cut, known_until + gap) if known_until is not None else cut
    if not problem and (after_shadow or not online) and decide_from >= held[-1]:
        why = f"the window has {len(held)} frames"
        if known_until is not None and decide_from == known_until + gap:
            why = f"{one.name} or the challenger was trained on frames up to {times.iso(known_until)}"
        problem = f"no frame is left to decide with: {why}, and ends at {times.iso(held[-1])}"
    plan = Plan(
        id=times.compact(now.replace(microsecond=0)),
        domain=domain.name,
        made_at=times.iso(now.replace(microsecond=0)),
        start=times.iso(held[0]),
        learn_until=times.iso(decide_from - gap),
        decide_from=times.iso(decide_from),
        decide_until=times.iso(held[-1]),
        model=one.name,
        model_checksum="" if card is None else card.checksum,
        challenger=challenger or f"{domain.name}-{times.compact(now.replace(microsecond=0))}",
        given=bool(challenger),
        settings=chosen.model_dump(mode="json"),
        software_version=software_version(),
        asked=asked(start, end, challenger),
        after_shadow=after_shadow,
        online=online,
        problem=problem,
    )
    write(store, plan, "plan.json", asdict(plan))
    return plan


def asked(start: datetime | None, end: datetime | None, challenger: str) -> list[str]:
    """What was asked for, as a plan keeps it."""
    return [*("" if t is None else times.iso(t) for t in (start, end)), challenger]


def write(store: Store, plan: Plan, name: str, content: dict[str, Any]) -> Path:
    """Write a JSON document of a plan."""
    path = folder_of(store, plan.domain, plan.id) / name
    with store.publish(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return path


def discard(store: Store, plan: Plan) -> None:
    """Forget a plan that was not finished, with what was trained of it."""
    out = store.models(plan.challenger) / plan.challenger
    shutil.rmtree(folder_of(store, plan.domain, plan.id), ignore_errors=True)
    if not plan.given:
        shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(out.with_name(f".{out.name}.training"), ignore_errors=True)


def _learnt_until(card: Any, domain: Domain) -> datetime | None:
    """End of what a model learnt of this domain, by its card; None if that says nothing of it."""
    try:
        return times.parse_time(card.training["periods"][domain.name].split("/")[1])
    except (AttributeError, KeyError, TypeError, ValueError, IndexError):
        return None
