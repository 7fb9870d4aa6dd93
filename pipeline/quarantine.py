"""Review of what could not be used: list it, keep it, drop its bytes, or hand it to the next ingest.

What a person decides is a line of the journal first, then the state of the volume in the catalog, then bytes go.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from pipeline import catalog as tables
from pipeline import times
from pipeline.catalog import Catalog, Row
from pipeline.domain import Domain
from pipeline.errors import SettingsError
from pipeline.source_settings import PolarSource
from pipeline.sources import open_polar_source, open_source
from pipeline.storage import Store, Stored

log = logging.getLogger(__name__)

# state of the volume after each decision
STATES = {"keep": "reviewed", "drop": "dropped", "retry": "unreadable"}
UNSEEN = "quarantined"
IN_QUARANTINE = (UNSEEN, "reviewed", "dropped")
# of files without a volume in the catalog: a later ingest could use it; a frame that the archive set aside
TAKEN_IN, SET_ASIDE = "taken in later", "set aside"


@dataclass(frozen=True)
class Item:
    """One thing in quarantine: a volume that could not be used, or a file that is left of one.

    Attributes:
        key: of the volume; the file's name if there is no volume.
        state: ``quarantined`` until somebody has looked at it; see ``STATES``.
        files: that are kept, by name below the root; none if its bytes could not be read.
    """

    domain: str
    key: str
    state: str
    reason: str
    etag: str = ""
    radar: str = ""
    nominal_time: str = ""
    seen_at: str = ""
    files: tuple[str, ...] = ()
    bytes: int = 0
    written_at: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What a person calls it."""
        return f"{self.domain}/{self.key}"

    @property
    def is_reviewed(self) -> bool:
        """Whether somebody has looked at it, or it was taken in later."""
        return self.state not in {UNSEEN, SET_ASIDE}


def items(store: Store, catalog: Catalog, domains: Iterable[str]) -> list[Item]:
    """All that is in quarantine, by domain and time: volumes as the catalog has them, then other files."""
    journal = [e for e in store.read_journal() if e.get("event") in {"quarantined", "reviewed"}]
    found = []
    for domain in domains:
        kept = {store.relative(s.path): s for s in store.listed(store.root / "quarantine" / domain, "*")}
        mine = [e for e in journal if e.get("domain") == domain]
        v = tables.volumes.c
        here = sa.and_(v.domain == domain, v.state.in_(IN_QUARANTINE))
        history = _history(mine)
        for row in catalog.read(sa.select(tables.volumes).where(here).order_by(v.nominal_time, v.key)):
            entries = history[row["key"], row["etag"]]
            files = [kept.pop(name) for name in _files(entries) if name in kept]
            found.append(_of_volume(store, row, files, entries))
        for (key, etag), entries in history.items():
            files = [kept.pop(name) for name in _files(entries) if name in kept]
            if files:
                of_it = sa.and_(v.domain == domain, v.key == key, v.etag == etag)
                known = next((row["state"] for row in catalog.read(sa.select(v.state).where(of_it))), "")
                reason = f"the volume is {known} now" if known else "the catalog does not know its volume any more"
                state = STATES["retry"] if known == STATES["retry"] else TAKEN_IN if known else "reviewed"
                found.append(_of_files(store, domain, key, state, reason, files, etag, entries))
        reviewed = {e["key"]: STATES[e["action"]] for e in mine if e["event"] == "reviewed"}
        for name, file in sorted(kept.items()):
            key = name.rsplit("/", 1)[-1]
            reason = "an object of the archive that could not be decoded, or a frame that was taken away"
            found.append(_of_files(store, domain, key, reviewed.get(key, SET_ASIDE), reason, [file]))
    return found


def find(known: Sequence[Item], name: str) -> Item:
    """The item that ``name`` (``DOMAIN/KEY``, or ``KEY`` where only one domain has it) stands for.

    Raises:
        SettingsError: there is none, or several.
    """
    found = [one for one in known if name in {one.name, one.key}]
    if len({one.domain for one in found}) > 1:
        raise SettingsError(f"{name}: is in quarantine in {', '.join(one.domain for one in found)}; write DOMAIN/KEY")
    if not found:
        some = ", ".join(one.name for one in known[:5]) or "nothing"
        raise SettingsError(f"{name}: no such thing is in quarantine; `nowcast quarantine list` shows: {some}")
    return next((one for one in found if not one.is_reviewed), found[-1])  # of files of one name the one to look at


def review(
    action: str, names: Sequence[str], store: Store, catalog: Catalog, domains: dict[str, Domain], now: datetime
) -> list[Item]:
    """Keep, drop or retry; nothing is done unless all can be.

    Raises:
        SettingsError: one is not in quarantine, or cannot be tried again.
    """
    known = items(store, catalog, domains)
    chosen = [find(known, name) for name in dict.fromkeys(names)]
    if action == "retry":
        for item in chosen:
            if fault := _why_not_again(item, domains[item.domain]):
                raise SettingsError(f"{item.name}: {fault}")
    for item in chosen:
        entry = {"event": "reviewed", "action": action, "domain": item.domain, "key": item.key, "etag": item.etag}
        store.append_journal(now, entry | {"reason": item.reason, "files": list(item.files)})
        v = tables.volumes.c
        its = sa.and_(v.domain == item.domain, v.key == item.key, v.etag == item.etag, v.state.in_(IN_QUARANTINE))
        with catalog.write(item.domain) as connection:
            connection.execute(sa.update(tables.volumes).where(its).values(state=STATES[action]))
        if action == "drop":
            for name in item.files:
                store.remove(store.root / name)
    return chosen


def _why_not_again(item: Item, domain: Domain) -> str:
    """Why a volume cannot be handed to the next ingest; empty if it can."""
    if not item.nominal_time:
        return "is no volume; what the archive set aside is read from its source again by the next ingest"
    time = times.parse_time(item.nominal_time)
    polar = isinstance(domain.source, PolarSource)
    source = open_polar_source(domain) if polar else open_source(domain)
    there = {ref.key: ref.etag for ref in source.list(time - timedelta(seconds=1), time + timedelta(seconds=1))}
    if item.key not in there:
        kept = f"; copy {', '.join(item.files)} back under its name" if item.files else ""
        return f"has left the source of {domain.name}, so an ingest would not find it{kept}"
    if there[item.key] != item.etag:
        return "the source has another file of this name now, which ingest takes by itself; keep or drop this one"
    return ""


def _history(entries: list[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    found: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for entry in entries:
        volume = entry.get("volume", entry)
        if volume.get("etag"):
            found[volume["key"], volume["etag"]].append(entry)
    return found


def _files(entries: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for e in entries for name in str(e.get("kept", "")).split()))


def _of_volume(store: Store, row: Row, files: list[Stored], entries: list[dict[str, Any]]) -> Item:
    seen_at = row["seen_at"] or row["arrived_at"]
    return Item(
        domain=row["domain"],
        key=row["key"],
        state=row["state"],
        reason=row["reason"],
        etag=row["etag"],
        radar=row["radar"],
        nominal_time=times.iso(tables.from_seconds(row["nominal_time"])),
        seen_at=times.iso(tables.from_seconds(seen_at)) if seen_at else "",
        **_kept(store, files),
        history=entries,
    )


def _of_files(
    store: Store,
    domain: str,
    key: str,
    state: str,
    reason: str,
    files: list[Stored],
    etag: str = "",
    entries: Sequence[dict[str, Any]] = (),
) -> Item:
    return Item(domain, key, state, reason, etag, **_kept(store, files), history=list(entries))


def _kept(store: Store, files: list[Stored]) -> dict[str, Any]:
    return {
        "files": tuple(store.relative(file.path) for file in files),
        "bytes": sum(file.size for file in files),
        "written_at": max((file.written_at for file in files), default=0.0),
    }
