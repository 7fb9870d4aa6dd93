"""Which trained model serves a domain: that of the settings, or one that was promoted in its place.

A promotion is for the model that the settings name; when they name another one, that serves. Promotions lie on each
other: taking the last one back brings the one before it to work again, at last the model of the settings.
"""

import logging
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from pipeline import catalog as tables
from pipeline import times
from pipeline.catalog import Catalog, Row
from pipeline.domain import Domain, model_name
from pipeline.errors import ModelRefused, NowcastError
from pipeline.storage import Store

log = logging.getLogger(__name__)

IN_USE, SHADOW = "in_use", "shadow"
EVENTS = ("promoted", "shadowed", "demoted")


@dataclass(frozen=True)
class Candidate:
    """A model that may serve.

    Attributes:
        name: as ``Domain.model``.
        checksum: that it must have; empty is any.
    """

    name: str
    checksum: str = ""


def candidates(catalog: Catalog, domain: Domain) -> list[Candidate]:
    """What should serve the domain, the newest promotion first, the model of the settings last."""
    rows = standing(catalog, domain, IN_USE)
    return [*(Candidate(row["name"], row["checksum"]) for row in rows), Candidate(domain.model)]


def in_use(catalog: Catalog, domain: Domain) -> str:
    """Name of the model that should serve."""
    return model_name(candidates(catalog, domain)[0].name)


def serving(store: Store, catalog: Catalog, domain: Domain) -> tuple[Candidate, Any]:
    """The first candidate that can be read, and its card; None of a method without weights, or if none can be."""
    from models import checkpoint

    found = candidates(catalog, domain)
    for one in found:
        try:
            card = checkpoint.read_card(checkpoint.find(one.name, (store.models(one.name),)))
        except checkpoint.CheckpointError:
            continue
        if one.checksum in {"", card.checksum}:
            return one, card
    return found[-1], None


def in_shadow(catalog: Catalog, domain: Domain) -> Row | None:
    """The promotion row of the model that runs beside, if there is one."""
    return next(iter(standing(catalog, domain, SHADOW)), None)


def standing(catalog: Catalog, domain: Domain, role: str) -> list[Row]:
    """Rows in force, the newest first."""
    p = tables.promotions.c
    mine = sa.and_(p.domain == domain.name, p.role == role, p.ended_at == 0, p.instead_of == domain.model)
    return catalog.read(sa.select(tables.promotions).where(mine).order_by(p.since.desc()))


def history(catalog: Catalog, domain: Domain) -> list[Row]:
    """All rows of the domain, the newest first."""
    p = tables.promotions.c
    return catalog.read(sa.select(tables.promotions).where(p.domain == domain.name).order_by(p.since.desc()))


def promote(
    store: Store,
    catalog: Catalog,
    domain: Domain,
    name: str,
    now: datetime,
    reason: str,
    evidence: str = "",
    role: str = IN_USE,
    after: str = "",
) -> Row:
    """Let a model of this root, or a shipped one, serve from the next cycle on; or run in shadow.

    A shadow of the domain ends. Nothing changes if the model cannot be used.

    Args:
        reason: why, for people.
        evidence: what shows it, a path below the root; empty if a person decided.
        after: only while the model of this name serves; empty is whatever serves.

    Raises:
        NowcastError: it serves already, or not the model that it is better than.
        ModelRefused: it is absent or damaged, or was trained for other frames.
    """
    card = usable(store, domain, name)
    row: Row = {
        "domain": domain.name, "name": name, "role": role, "since": now.timestamp(), "ended_at": 0.0,
        "checksum": card.checksum, "instead_of": domain.model, "reason": reason, "evidence": evidence,
    }  # fmt: skip
    p = tables.promotions.c
    ends = sa.and_(p.domain == domain.name, p.role == SHADOW, p.ended_at == 0)
    with catalog.write(domain.name) as connection:
        now_serving = model_name(serving(store, catalog, domain)[0].name)
        if role == IN_USE and in_use(catalog, domain) == name:
            raise NowcastError(f"{name} serves {domain.name} already")
        if after and now_serving != model_name(after):
            raise NowcastError(f"{now_serving} serves {domain.name} now, {name} was compared with {model_name(after)}")
        event = "promoted" if role == IN_USE else "shadowed"
        store.append_journal(now, {"event": event, "promotion": row})
        connection.execute(sa.update(tables.promotions).where(ends).values(ended_at=now.timestamp()))
        catalog.upsert(connection, tables.promotions, [row])
    log.info("%s of %s: %s", name, domain.name, event)
    return row


def demote(store: Store, catalog: Catalog, domain: Domain, now: datetime, reason: str, role: str = IN_USE) -> Row:
    """Take the newest promotion back (or end the shadow); returns its row.

    Raises:
        NowcastError: there is none.
    """
    p = tables.promotions.c
    with catalog.write(domain.name) as connection:
        mine = sa.and_(p.domain == domain.name, p.role == role, p.ended_at == 0, p.instead_of == domain.model)
        query = sa.select(tables.promotions).where(mine).order_by(p.since.desc()).limit(1)
        found = connection.execute(query).mappings().first()
        if found is None:
            raise NowcastError(f"no promotion of {domain.name} stands; {domain.model_name} of the settings serves")
        row = {**found, "ended_at": now.timestamp()}
        store.append_journal(now, {"event": "demoted", "promotion": row, "reason": reason})
        catalog.upsert(connection, tables.promotions, [row])
    log.info("%s of %s: taken back", row["name"], domain.name)
    return row


def usable(store: Store, domain: Domain, name: str) -> Any:
    """The card of a model that can be loaded and fits the domain.

    Raises:
        ModelRefused: it does not, and why.
    """
    from models import checkpoint
    from pipeline.frames.archive import Archive

    if "/" in name:
        raise ModelRefused(f"{name!r}: only models of the root, or shipped ones, can be promoted; give a name")
    try:
        _, card = checkpoint.load(checkpoint.find(name, (store.models(name),)))
    except checkpoint.CheckpointError as err:
        raise ModelRefused(str(err)) from err
    source = Archive(store, domain).source()
    refusal = card.refusal(
        dbz_min=domain.scale.dbz_min,
        dbz_max=domain.scale.dbz_max,
        cadence_minutes=domain.cadence_minutes,
        spacing_m=card.spacing_m[0] if source is None else source.grid.spacing_m,
        products=domain.products,
    )
    if refusal:
        raise ModelRefused(refusal)
    return card


def rows_of_journal(entries: list[dict[str, Any]]) -> list[Row]:
    """The promotions that a journal tells of, as their rows stand at its end."""
    found: dict[tuple[Any, ...], Row] = {}
    for entry in entries:
        if entry.get("event") not in EVENTS:
            continue
        row = entry["promotion"]
        if entry["event"] != "demoted":
            stands = [o for o in found.values() if not o["ended_at"] and _place(o) == _place(row)]
            if stands and stands[-1]["name"] == row["name"]:
                continue  # told twice, since a process was killed before the catalog had it
            for other in found.values():
                if (other["domain"], other["role"], other["ended_at"]) == (row["domain"], SHADOW, 0):
                    other["ended_at"] = row["since"]
        found[row["domain"], row["name"], row["role"], row["since"]] = dict(row)
    return list(found.values())


def _place(row: Row) -> tuple[Any, ...]:
    return row["domain"], row["role"], row["instead_of"]


def said(row: Row) -> str:
    """A promotion in words."""
    since = times.iso(tables.from_seconds(row["since"]).replace(microsecond=0))
    return f"{row['name']} ({row['checksum'][:8]}) since {since}"
