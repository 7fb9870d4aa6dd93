"""Nothing that is whole was taken for damaged: in quarantine, among the volumes, in the reasons of cycles."""

import hashlib
import re
import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

import google_crc32c
import sqlalchemy as sa

from pipeline import catalog as tables
from pipeline import times
from pipeline.catalog import Catalog, Row
from pipeline.domain import Domain
from pipeline.errors import SOFTWARE_FAULT
from pipeline.storage import Store
from tests.soak.checks import cycles
from tests.soak.schedule import MARK

# of volumes that were used
USED = ("framed", "partial", "duplicate")
# end of the reason of a cycle for which no file is known
NOTHING = "nothing arrived for it"


def overlooked(catalog: Catalog, domain: Domain, feed: Path, clean: Mapping[str, bytes]) -> dict[str, int]:
    """Whole files that came, and are not in use; cycles that were given up since nothing came, though something had.

    Args:
        feed: folder of the feed with faults.
        clean: files of the one without, by name.
    """
    used = _keys(catalog, domain.name, USED)
    there = _whole_files(feed, clean)
    slots = {_slot(domain, key): (feed / key).stat().st_mtime for key in there}
    denied = 0
    for row in cycles(catalog, domain.name):
        arrived = slots.get(tables.from_seconds(row["reference_time"]))
        in_time = arrived is not None and arrived - row["reference_time"] < domain.lateness.grace_s
        denied += in_time and row["state"] == "skipped" and row["reason"].endswith(NOTHING)
    return {"files_not_in_use": len(there - used), "cycles_given_up_as_if_nothing_had_come": denied}


def check_quarantine(
    store: Store, catalog: Catalog, name: str, feed: Path, clean: Mapping[str, bytes]
) -> dict[str, int]:
    """Each file in quarantine differs from what the feed without faults has, each frame is damaged indeed.

    Args:
        feed: folder of the feed with faults.
        clean: files of the one without, by name.

    Returns:
        How many files and frames lie there.
    """
    whole = {hashlib.sha256(content).hexdigest(): key for key, content in clean.items()}
    kinds: Counter[str] = Counter()
    healthy = []
    for path in store.glob(store.root / "quarantine" / name, "*"):
        content, label = store.read(path), path.name.partition("_")[2]
        is_frame = label.startswith(("frame_", "frames_"))
        kinds["frames" if is_frame else "files"] += 1
        if _is_whole_frame(content) if is_frame else hashlib.sha256(content).hexdigest() in whole:
            healthy.append(path.name)
    assert not healthy, f"healthy, and in quarantine: {healthy}"
    v = tables.volumes.c
    rows = catalog.read(sa.select(tables.volumes).where(v.domain == name))
    used, there = _keys(catalog, name, USED), _whole_files(feed, clean)
    wrong = [
        (row["key"], row["state"], row["reason"])
        for row in rows
        if (row["state"] == "quarantined" and row["sha256"] in whole)
        or (row["state"] == "unreadable" and row["key"] in there - used)
    ]
    assert not wrong, f"healthy, and recorded as one that cannot be used: {wrong}"
    return dict(kinds)


def check_reasons(rows: Iterable[Row], reported: Iterable[str]) -> None:
    """The only faults of the software are those that the soak brought in."""
    texts = [*(row["reason"] for row in rows), *reported]
    ours = [text for text in texts if SOFTWARE_FAULT in text and MARK not in text]
    assert not ours, f"faults of the software: {ours[:5]}"


def _keys(catalog: Catalog, name: str, states: Sequence[str]) -> set[str]:
    v = tables.volumes.c
    query = sa.select(v.key).where(v.domain == name, v.state.in_(states))
    return {row["key"] for row in catalog.read(query)}


def _whole_files(feed: Path, clean: Mapping[str, bytes]) -> set[str]:
    """Names of the files that lie in the feed as they should be."""
    return {key for key, content in clean.items() if (feed / key).exists() and (feed / key).read_bytes() == content}


def _slot(domain: Domain, key: str) -> datetime:
    """The instant that a file is for, by its name."""
    (time,) = re.findall(r"\d{8}T\d{6}Z", key)
    return times.nearest_slot(datetime.strptime(time, "%Y%m%dT%H%M%S%z"), domain.cadence)


def _is_whole_frame(content: bytes) -> bool:
    """Whether an object of the archive has its checksum; a packed day is never damaged by the soak."""
    return len(content) > 4 and google_crc32c.value(content[:-4]) == struct.unpack("<I", content[-4:])[0]
