"""Which process of which machine something belongs to, and whether that process still runs."""

import os
import socket
from pathlib import Path


def machine() -> str:
    """Where a process id means something: the host, its boot (two hosts may share a name) and the id namespace."""
    try:
        boot, space = Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")
    except OSError:
        boot, space = "", ""
    return f"{socket.gethostname()[:40]}/{boot}/{space}"


def process_lives(pid: int) -> bool:
    """Whether a process of this machine runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def has_ended_here(owner_machine: str, pid: str) -> bool:
    """Whether the owner was a process of this machine that no longer runs; of other machines nothing is known.

    Args:
        owner_machine: as ``machine`` gave it to the owner.
        pid: its process id; what is none has not ended.
    """
    return owner_machine == machine() and pid.isdigit() and not process_lives(int(pid))
