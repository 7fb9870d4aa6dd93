"""What must hold of a root after a soak; an AssertionError says what does not."""

import contextlib
import io
from collections import Counter
from datetime import datetime

import numpy as np
import sqlalchemy as sa
import xarray as xr

from pipeline import catalog as tables
from pipeline import packing, product, times
from pipeline.catalog import Catalog, Row
from pipeline.rebuild import rebuild
from pipeline.settings import Settings
from pipeline.storage import Store, open_store
from tests.soak.schedule import MARK

# in the reason of a forecast whose method failed, in the words of the soak and of the system
FAILED = (MARK, "the machine failed")
# beginnings of the attributes in which a replay differs
OF_ITS_TIME = ("kind", "id", "revision", "verified_skill")
# products that the compliance checker sees, a third of a second each
MOST_CF = 40
COMPARED = {
    "cycles": ("state", "method", "reason", "path", "content_digest", "baselines_digest", "inputs_digest"),
    "frames": ("sha256",),
}


def check_root(settings: Settings, name: str, start: datetime, end: datetime) -> dict:
    """Every cycle issued or explained, no duplicate, no half file, catalog equal to the stores."""
    domain, store, catalog = settings.domain(name), open_store(settings), Catalog(settings.catalog)
    rows = cycles(catalog, name)
    by_time: dict[datetime, list[Row]] = {}
    for row in rows:
        by_time.setdefault(tables.from_seconds(row["reference_time"]), []).append(row)
    wanted = list(times.slots(start, end, domain.cadence))
    missing = [times.iso(t) for t in wanted if t not in by_time]
    assert not missing, f"neither issued nor explained: {missing}"
    twice = [times.iso(t) for t, of_time in by_time.items() if len(of_time) > 1]
    assert not twice, f"two rows: {twice}"
    unexplained = [row for row in rows if row["state"] == "skipped" and not row["reason"]]
    assert not unexplained, unexplained
    published = {row["path"]: row for row in rows if row["state"] == "published"}
    on_disk = {store.relative(p) for p in store.glob(store.root / "products" / name, "**/*.nc") if "." not in p.stem}
    assert on_disk == set(published), f"files without rows or rows without files: {on_disk ^ set(published)}"
    for path, row in published.items():
        file = store.get(store.root / path)
        assert packing.read_digest(file) == row["content_digest"], path
        with xr.open_dataset(file, engine="h5netcdf") as data:
            assert data.sizes["time"] == domain.lead_frames and bool(data["rainfall_rate"].notnull().any()), path
    some = sorted(published)[:: max(1, len(published) // MOST_CF)]
    wrong = [path for path in some if not cf_compliant(store.get(store.root / path))]
    assert not wrong, f"not CF: {wrong}"
    left = list(store.temporary.iterdir())
    store.remove_stale_temporaries()
    assert not list(store.temporary.iterdir()), f"temporaries: {left}"
    _check_rebuild(settings, name, store, catalog)
    held = catalog.held_leases()
    assert not held, f"leases that nobody gave back: {held}"
    catalog.close()
    reasons = Counter(_short(row["reason"]) for row in rows if row["state"] == "skipped")
    return {
        "cycles": len(wanted),
        "published": Counter(row["method"] for row in published.values()),
        "causes": Counter(row["cause"].split(":")[0] for row in published.values()),
        "skipped": reasons,
    }


def cf_compliant(path) -> bool:
    """Whether the compliance checker finds nothing wrong with CF-1.8."""
    from compliance_checker.runner import CheckSuite, ComplianceChecker

    if not CheckSuite.checkers:
        CheckSuite.load_all_available_checkers()
    with contextlib.redirect_stdout(io.StringIO()):
        passed, _ = ComplianceChecker.run_checker(str(path), ["cf:1.8"], 0, "strict", output_filename="/dev/null")
    return passed


def equal_where_inputs_are(settings: Settings, clean: Settings, name: str) -> dict[str, int]:
    """How many issued forecasts equal those of a backfill without faults.

    Where the input was equal, all must, but for those whose method failed: they say so, and are a fallback's.
    """
    issued, replay = (
        {row["reference_time"]: row for row in cycles(Catalog(of.catalog), name) if row["state"] == "published"}
        for of in (settings, clean)
    )
    both = sorted(set(issued) & set(replay))
    equal = [time for time in both if issued[time]["inputs_digest"] == replay[time]["inputs_digest"]]
    fallback = [time for time in equal if any(words in issued[time]["reason"] for words in FAILED)]
    silent = [times.iso(tables.from_seconds(time)) for time in fallback if not _is_fallback(issued[time], replay[time])]
    assert not silent, f"the method failed, and yet it served: {silent}"
    same = [time for time in equal if time not in fallback]
    differ = [
        times.iso(tables.from_seconds(time))
        for time in same
        if _data_digest(settings, issued[time]["path"]) != _data_digest(clean, replay[time]["path"])
        or not _same_baselines(settings, issued[time], clean, replay[time])
    ]
    assert not differ, f"equal input, other forecast: {differ}"
    return {"equal": len(same), "other_input": len(both) - len(equal), "fallback": len(fallback)}


def _is_fallback(issued: Row, replay: Row) -> bool:
    return issued["method"] != replay["method"] or replay["method"] == "last_frame"


def _same_baselines(settings: Settings, issued: Row, clean: Settings, replay: Row) -> bool:
    """Whether those that were issued are equal; one that failed beside the model's forecast is not there."""
    here, there = (
        product.read_baselines(store.get(store.baselines(store.root / row["path"])))
        for store, row in ((open_store(settings), issued), (open_store(clean), replay))
    )
    return all(pixels is None or np.array_equal(pixels, there[name]) for name, pixels in here.items())


def _data_digest(settings: Settings, path: str) -> str:
    """Digest of a product without what tells an issued one from a replay, which was made when more was verified."""
    store = open_store(settings)
    data = packing.read_packed(store.get(store.root / path))
    return packing.content_digest(
        data.drop_attrs(deep=False).assign_attrs(
            {key: value for key, value in data.attrs.items() if not key.startswith(OF_ITS_TIME)}
        )
    )


def cycles(catalog: Catalog, name: str) -> list[Row]:
    """Rows of a domain's cycles in order."""
    c = tables.cycles.c
    return catalog.read(sa.select(tables.cycles).where(c.domain == name).order_by(c.reference_time, c.kind, c.revision))


def _check_rebuild(settings: Settings, name: str, store: Store, catalog: Catalog) -> None:
    """A catalog made from the stores and the journal says the same."""
    again = settings.root / "rebuilt.sqlite"
    rebuilt = Catalog(f"sqlite:///{again}")
    result = rebuild([settings.domain(name)], store, rebuilt)
    assert not result.damaged, result.damaged
    for table, columns in COMPARED.items():
        one = tables.metadata.tables[table]
        query = sa.select(one).where(one.c.domain == name).order_by(*one.primary_key.columns)
        keys = [column.name for column in one.primary_key.columns]
        found = [[[row[k] for k in (*keys, *columns)] for row in of.read(query)] for of in (catalog, rebuilt)]
        assert found[0] == found[1], (
            f"{table}: {[pair for pair in zip(*found, strict=False) if pair[0] != pair[1]][:3]}"
        )
    rebuilt.close()
    for part in settings.root.glob("rebuilt.sqlite*"):
        part.unlink()


def _short(reason: str) -> str:
    """A reason without times and keys, to be counted."""
    head, _, tail = reason.partition(": ")
    return (tail.split(":")[-1].strip() or head)[:60]
