"""Nothing that is whole was taken for damaged: in quarantine, among the volumes, in the reasons of cycles."""

import hashlib
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import google_crc32c
import sqlalchemy as sa

from pipeline import catalog as tables
from pipeline.catalog import Catalog, Row
from pipeline.errors import SOFTWARE_FAULT
from pipeline.storage import Store
from tests.soak.schedule import MARK

# of volumes that were used
USED = ("framed", "partial", "duplicate")


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
    used = {row["key"] for row in rows if row["state"] in USED}
    there = {key for key, content in clean.items() if (feed / key).exists() and (feed / key).read_bytes() == content}
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


def _is_whole_frame(content: bytes) -> bool:
    """Whether an object of the archive has its checksum; a packed day is never damaged by the soak."""
    return len(content) > 4 and google_crc32c.value(content[:-4]) == struct.unpack("<I", content[-4:])[0]
