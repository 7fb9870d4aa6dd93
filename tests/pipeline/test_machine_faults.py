"""A fault of the machine (no descriptors left, a disk or a mount that fails) is never taken for damaged data."""

import builtins
import errno
import io
import os
import shutil
from datetime import timedelta
from pathlib import Path

import h5py
import pytest
import sqlalchemy as sa

from flows.console import Exit, errors_to_exit_codes
from pipeline import catalog as tables
from pipeline import nowcast, operations, times
from pipeline.catalog import Catalog
from pipeline.errors import DamagedFrame, StoreUnavailable, machine_fault
from pipeline.frames.archive import Archive
from pipeline.ingest import ingest
from pipeline.rebuild import rebuild
from pipeline.sources.synthetic import SyntheticRain, write_composite
from pipeline.storage import Store, open_store
from tests.conftest import NOW, settings_for, synthetic_domain
from tests.pipeline.cycles import STEP, T0, backfill, digests, issue
from tests.pipeline.test_ingest import GRID, composites

FAULTS = (errno.EIO, errno.EMFILE, errno.ESTALE, errno.EACCES)


class Machine:
    """Fails to open files below a folder while ``number`` is set, for Python and for HDF5."""

    def __init__(self, monkeypatch):
        self.number, self.below = 0, ""
        python, hdf5 = io.open, h5py.h5f.open

        def fail(path, words="{}"):
            if self.number and not isinstance(path, int) and os.fsdecode(path).startswith(self.below):
                raise OSError(self.number, words.format(os.strerror(self.number)), os.fsdecode(path))

        def open_file(file, mode="r", *arguments, **options):
            if "r" in mode:
                fail(file)
            return python(file, mode, *arguments, **options)

        def open_hdf5(path, *arguments, **options):
            words = (
                f"Unable to open file (unable to open file: errno = {self.number}, error message = '{{}}', flags = 0)"
            )
            fail(path, words)
            return hdf5(path, *arguments, **options)

        for module, name, call in (
            (io, "open", open_file),
            (builtins, "open", open_file),
            (h5py.h5f, "open", open_hdf5),
        ):
            monkeypatch.setattr(module, name, call)

    def fails(self, below: Path, number: int) -> None:
        self.below, self.number = str(below), number

    def works(self) -> None:
        self.number = 0


@pytest.fixture
def machine(monkeypatch):
    return Machine(monkeypatch)


def quarantined(settings) -> list[Path]:
    return [path for path in (settings.root / "quarantine").rglob("*") if path.is_file()]


def waits(settings) -> str:
    """The reason for which a cycle is tried again later."""
    (outcome,) = issue(settings, T0)
    assert outcome.state == "failed" and isinstance(outcome.error, StoreUnavailable)
    return outcome.reason


@pytest.mark.parametrize("number", FAULTS)
def test_a_frame_that_cannot_be_read_now_is_not_damaged(settings, machine, number):
    """Issuing and verifying moved it to the quarantine and deleted its row; it came back only from the source."""
    operations.ingest(settings, "small", T0 - 4 * STEP, T0, NOW)
    archive = Archive(Store(settings.root), settings.domain("small"))
    machine.fails(settings.root / "archive/small/2024", number)
    with pytest.raises(StoreUnavailable, match=os.strerror(number)):
        archive.read(T0 - STEP)
    assert waits(settings)
    machine.works()
    rows = Catalog(settings.catalog).read(sa.select(tables.frames))
    assert len(rows) == 5 and not quarantined(settings)
    (made,) = issue(settings, T0)
    assert made.state == "published" and made.method != "last_frame"


@pytest.mark.parametrize(
    ("where", "error", "says"),
    [
        ("zarr.storage.LocalStore._open", OSError(errno.ESTALE, "Stale file handle"), "Stale file handle"),
        ("asyncio.to_thread", RuntimeError("can't start new thread"), "no thread can be started"),
    ],
)
def test_nor_is_one_whose_folder_or_thread_the_machine_refuses(settings, monkeypatch, where, error, says):
    operations.ingest(settings, "small", T0 - 4 * STEP, T0, NOW)

    async def fail(*arguments, **named):
        raise error

    with monkeypatch.context() as refusing:
        refusing.setattr(where, fail)
        assert says in waits(settings)
    assert not quarantined(settings) and issue(settings, T0)[0].state == "published"


def test_a_packed_day_that_cannot_be_read_now_is_not_damaged(settings, machine):
    from pipeline.compaction import compact

    operations.ingest(settings, "small", T0 - 4 * STEP, T0, NOW)
    store, catalog, domain = Store(settings.root), Catalog(settings.catalog), settings.domain("small")
    assert compact(domain, store, catalog, NOW).days == 1
    machine.fails(settings.root / "archive/small/2024", errno.EIO)
    for look in (lambda: Archive(store, domain).read(T0), lambda: Archive(store, domain).times()):
        with pytest.raises(StoreUnavailable, match="Input/output error"):
            look()
    machine.works()
    assert Archive(store, domain).read(T0) is not None and not quarantined(settings)


def test_a_lost_or_damaged_description_of_a_day_is_written_again(settings):
    """It follows from the settings; the frames beside it are whole and must not be set aside."""
    operations.ingest(settings, "small", T0 - 4 * STEP, T0, NOW)
    day = settings.root / "archive/small/2024/06/01.zarr"
    before = Archive(Store(settings.root), settings.domain("small")).read(T0)
    for spoil in (
        lambda path: path.unlink(),
        lambda path: path.write_text("garbage"),
        lambda path: path.write_text(""),
    ):
        for name in ("zarr.json", "frames/zarr.json"):
            spoil(day / name)
            found = Archive(Store(settings.root), settings.domain("small")).read(T0)
            assert (found.pixels == before.pixels).all() and not quarantined(settings)


def test_damage_is_damage(settings):
    """Neither a cut nor a flipped byte is taken for a fault of the machine."""
    operations.ingest(settings, "small", T0 - STEP, T0, NOW)
    archive = Archive(Store(settings.root), settings.domain("small"))
    path = archive._object(*archive._slot(T0))
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], content[:-1], b"", bytes(len(content))):
        path.write_bytes(damaged)
        with pytest.raises(DamagedFrame):
            archive.read(T0)


@pytest.mark.parametrize("number", (errno.EIO, errno.EMFILE))
def test_products_and_sums_that_cannot_be_read_now_are_not_made_anew(settings, machine, number):
    backfill(settings)
    operations.verify(settings, "small", T0, T0, NOW)
    before = digests(settings)
    scores = {path: path.stat().st_ino for path in (settings.root / "verification").rglob("*.nc")}
    store, catalog, domain = Store(settings.root), Catalog(settings.catalog), settings.domain("small")
    machine.fails(settings.root, number)
    with pytest.raises(StoreUnavailable):
        operations.verify(settings, "small", T0, T0, NOW)
    with pytest.raises(StoreUnavailable):
        rebuild([domain], store, catalog)
    machine.works()
    assert digests(settings) == before and len(catalog.read(sa.select(tables.cycles))) == len(before)
    assert {path: path.stat().st_ino for path in (settings.root / "verification").rglob("*.nc")} == scores


def test_a_product_without_a_row_that_cannot_be_read_now_is_not_made_again(settings, machine):
    backfill(settings)
    catalog = Catalog(settings.catalog)
    (product,) = [path for path in (settings.root / "products").rglob("*_r1.nc")]
    before = product.stat().st_ino
    with catalog.write() as connection:
        connection.execute(sa.delete(tables.cycles))
    machine.fails(settings.root / "products", errno.EIO)
    assert "Input/output error" in waits(settings)
    machine.works()
    (made,) = issue(settings, T0)
    assert made.state == "published" and product.stat().st_ino == before


@pytest.mark.parametrize("number", (errno.EIO, errno.ENFILE))
def test_a_received_file_that_cannot_be_read_now_is_tried_again(tmp_path, store, catalog, machine, number):
    domain = composites(tmp_path / "in")
    rain = SyntheticRain(synthetic_domain().source, synthetic_domain())
    write_composite(tmp_path / "in" / f"comp_{times.compact(T0)}.h5", rain.rain_rate(T0), GRID, T0)
    start, end = T0 - timedelta(hours=1), T0 + timedelta(hours=1)
    machine.fails(tmp_path / "in", number)
    first = ingest(domain, store, catalog, start, end, NOW)
    states = [row["state"] for row in catalog.read(sa.select(tables.volumes.c.state))]
    assert states == ["unreadable"] and os.strerror(number) in first.quarantined[0][1]
    machine.works()
    assert ingest(domain, store, catalog, start, end, NOW).framed == 1


def test_a_model_that_cannot_be_read_now_is_not_refused_for_good(settings, machine):
    operations.ingest(settings, "small", T0 - 4 * STEP, T0, NOW)
    folder = Path(settings.domain("small").model)
    machine.fails(folder, errno.EMFILE)
    assert "Too many open files" in waits(settings)  # a hindcast waits for its model
    store, catalog = Store(settings.root), Catalog(settings.catalog)
    loader = nowcast.Loader(store, settings, catalog)
    methods = loader.methods(settings.domain("small"), 2000.0)
    assert methods.model is None and methods.is_unreadable and "Too many open files" in methods.refused
    machine.works()
    assert loader.methods(settings.domain("small"), 2000.0).model is not None


def test_an_unfinished_retraining_that_cannot_be_read_now_is_not_left_for_another(settings, machine):
    from pipeline.retrain import plan as plans

    folder = plans.folder_of(Store(settings.root), "small", "20240601T000000Z")
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text("{}")
    machine.fails(folder, errno.ESTALE)
    with pytest.raises(StoreUnavailable):
        plans.unfinished(Store(settings.root), "small", False)
    machine.works()
    assert plans.unfinished(Store(settings.root), "small", False) is None


def test_the_end_of_a_command_says_that_the_store_cannot_be_used(capsys):
    import typer

    with pytest.raises(typer.Exit) as end, errors_to_exit_codes():
        raise OSError(errno.EIO, "Input/output error", "data/archive")
    assert end.value.exit_code == Exit.UNREACHABLE
    with pytest.raises(OSError, match="no words of the system"), errors_to_exit_codes():
        raise OSError("no words of the system")


def test_what_lies_behind_an_error_counts():
    def behind(cause: Exception) -> Exception:
        try:
            raise ValueError("cannot decode") from cause
        except ValueError as err:
            return err

    assert machine_fault(behind(OSError(errno.ESTALE, "Stale file handle"))) == "Stale file handle"
    assert machine_fault(behind(MemoryError())) == "not enough memory"
    assert machine_fault(KeyError("file read failed: errno = 5, error message = 'Input/output error', buf")) != ""
    for of_data in (OSError("truncated file"), FileNotFoundError(errno.ENOENT, "no"), OSError(errno.EINVAL, "seek")):
        assert machine_fault(behind(of_data)) == ""


def test_temporaries_of_another_boot_or_container_are_left_alone(tmp_path, monkeypatch):
    """Two containers may share a host name, and see none of each other's processes."""
    store = Store(tmp_path)
    with monkeypatch.context() as other:
        other.setattr("pipeline.processes.machine", lambda: "host/another boot/pid:[1]")
        other.setattr("os.getpid", lambda: 2**22 + 1)  # no process of that number runs here
        with store.new_file(tmp_path / "products/a.nc") as temporary:
            temporary.write_bytes(b"half")
            other.undo()
            assert store.remove_stale_temporaries() == 0 and temporary.exists()
    with monkeypatch.context() as ours:
        ours.setattr("os.getpid", lambda: 2**22 + 1)
        with store.new_file(tmp_path / "products/b.nc") as temporary:
            temporary.write_bytes(b"half")
            shutil.copy(temporary, kept := tmp_path / "kept")
    kept.rename(temporary)
    assert store.remove_stale_temporaries() == 1 and not temporary.exists()


def test_a_root_that_cannot_be_listed_is_not_empty(tmp_path, monkeypatch):
    store = open_store(settings_for(tmp_path, synthetic_domain()))

    def fail(*arguments, **options):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "scandir", fail)
    for look in (lambda: store.listed(tmp_path), lambda: store.folders(tmp_path)):
        with pytest.raises(StoreUnavailable, match="Input/output error"):
            look()
