"""Work that is killed at every step in turn, in a forked process, and what it leaves."""

import contextlib
import os
from collections.abc import Callable, Iterator

import pytest

from pipeline.catalog import Catalog
from pipeline.frames.zarr_stores import _Folder
from pipeline.storage import Store

DURABLE = ((_Folder, "set"), (_Folder, "delete"), (_Folder, "delete_dir"))
STEPS = (*DURABLE, (Store, "remove"), (Store, "put"), (Store, "append_journal"))


def killed_at_each_step(work: Callable[[], None], every: int = 1) -> Iterator[int]:
    """Run ``work`` in a child that dies before its n-th durable step, for n = 1, 1 + every, ... until it gets through.

    Yields after each death, so that the caller can check, and restore, what was left.
    """
    n = 1
    while True:
        child = os.fork()
        if child == 0:
            code = 1
            with contextlib.suppress(BaseException):
                _die_before(n)
                work()
                code = 0
            os._exit(code)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:
            assert n > 1, "nothing was done"
            return
        assert status == 9, "the work failed by itself"
        yield n
        n += every


def _die_before(n: int) -> None:
    count = 0

    def step() -> None:
        nonlocal count
        count += 1
        if count == n:
            os._exit(9)

    patch = pytest.MonkeyPatch()
    for owner, name in STEPS:
        original = getattr(owner, name)
        patch.setattr(owner, name, lambda *a, _original=original, **k: (step(), _original(*a, **k))[1])
    write = Catalog.write

    @contextlib.contextmanager
    def counted(self: Catalog, *arguments: str) -> Iterator[object]:
        with write(self, *arguments) as connection:
            yield connection
            step()  # just before the commit
        step()

    patch.setattr(Catalog, "write", counted)
