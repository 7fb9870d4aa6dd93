"""What goes wrong with volumes on their way, done on purpose to a synthetic ODIM_H5 volume."""

import os
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

import h5py
import numpy as np

from pipeline.sources.synthetic_radars import RadarNetwork

# truncated: half uploaded; damaged: bytes of one sweep lost; partial: the low sweep is missing; hole: a sector of a
# sweep is missing; silent: everything is "not measured"
Fault = Literal["none", "truncated", "damaged", "partial", "hole", "silent"]

HOLE_RAYS = slice(200, 260)


def write_faulty(
    network: RadarNetwork,
    folder: Path,
    radar: str,
    time: datetime,
    fault: Fault = "none",
    late: timedelta = timedelta(0),
) -> Path:
    """Write one volume of the network into ``folder``, with ``fault``, as a file that arrived ``late``.

    Returns:
        The file; its time of modification is that of its arrival.
    """
    (ref,) = (ref for ref in network.list(time, time) if ref.radar == radar)
    path = folder / ref.key
    network.write(path, radar, time)
    _FAULTS[fault](path)
    arrived = (ref.arrived_at + late).timestamp()
    os.utime(path, (arrived, arrived))
    return path


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _damage(path: Path) -> None:
    with h5py.File(path) as file:
        chunk = file["dataset1/data1/data"].id.get_chunk_info(0)
    with path.open("r+b") as raw:
        raw.seek(chunk.byte_offset + chunk.size // 2)
        raw.write(bytes(20))


def _lose_low_sweep(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["dataset1"]


def _cut_hole(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        sweep = file["dataset1"]
        for moment in ("data1", "data2"):
            rest = np.delete(sweep[moment]["data"][:], HOLE_RAYS, axis=0)
            del sweep[moment]["data"]
            sweep[moment]["data"] = rest
        kept = np.delete(np.arange(sweep["where"].attrs["nrays"], dtype=float), HOLE_RAYS)
        sweep["where"].attrs["nrays"] = len(kept)
        sweep.create_group("how").attrs.update(startazA=kept, stopazA=kept + 1)


def _silence(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        for name in (n for n in file if n.startswith("dataset")):
            file[name]["data1/data"][...] = 255


_FAULTS = {
    "none": lambda path: None,
    "truncated": _truncate,
    "damaged": _damage,
    "partial": _lose_low_sweep,
    "hole": _cut_hole,
    "silent": _silence,
}
