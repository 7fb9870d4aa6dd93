"""Two machines of one host name on one: processes that see another namespace of process ids, and not each other."""

import contextlib
import os
import random
from multiprocessing.connection import Connection
from pathlib import Path

from pipeline.settings import Settings
from pipeline.storage import open_store

# between two looks of one that stands by, seconds
LOOKS_S = (0.02, 0.4)


def pretend(machine: int, folder: Path) -> None:
    """Be a process of machine 1 or 2: same host and boot, another namespace, in which those of the other do not exist.

    Args:
        folder: where the processes of both are noted.
    """
    here = folder / str(machine)
    here.mkdir(parents=True, exist_ok=True)
    (here / str(os.getpid())).touch()
    kill, readlink = os.kill, os.readlink

    def kill_here(pid: int, number: int) -> None:
        if number == 0 and not (here / str(pid)).exists():
            raise ProcessLookupError(f"machine {machine} has no process {pid}")
        kill(pid, number)

    def readlink_here(path, *arguments, **options):
        if str(path) == "/proc/self/ns/pid":
            return f"pid:[{4026530000 + machine}]"
        return readlink(path, *arguments, **options)

    os.kill, os.readlink = kill_here, readlink_here


def stand_by(settings: Settings, machine: int, folder: Path, stop: Connection) -> None:
    """Clean the root up again and again, as every process does that begins; answer how much was removed."""
    pretend(machine, folder)
    store, removed = open_store(settings), 0
    while not stop.poll(random.uniform(*LOOKS_S)):
        removed += store.remove_stale_temporaries()
    with contextlib.suppress(EOFError):  # whoever asked is gone
        stop.recv()
        stop.send(removed + store.remove_stale_temporaries())
