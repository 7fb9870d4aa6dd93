"""Headers of ODIM_H5 volumes, checked before they are believed: xradar takes them as they come."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import numpy as np

from pipeline.errors import BadInput
from pipeline.radar.formats import text


@contextmanager
def checked(path: Path, name: str, has_site: bool) -> Iterator[Path]:
    """The file; or, if it has no position and ``has_site``, a copy with one that will not be used.

    Raises:
        BadInput: names the group, the attribute, what was expected and what was found.
    """
    with h5py.File(path, "r") as file:
        for group in (g for g in file if g.startswith("dataset")):
            _check_sweep(file[group], f"{name}: {group}")
        site = sorted(file["where"].attrs) if "where" in file else []
    if {"lon", "lat", "height"} <= set(site):
        yield path
        return
    if not has_site:
        found = ", ".join(site) or "nothing"
        raise BadInput(
            f"{name}: the file has no position of the radar (expected lon, lat and height in where, found {found}); "
            "give it in the source's sites"
        )
    with TemporaryDirectory(prefix="volume-") as folder:
        copy = Path(folder) / "volume"
        shutil.copyfile(path, copy)
        with h5py.File(copy, "r+") as file:
            file.require_group("where").attrs.update(lon=0.0, lat=0.0, height=0.0)
        yield copy


def announced_sweeps(path: Path) -> int:
    """How many sweeps a volume says it has (scan_count, which few writers give); 0 if it does not say."""
    with h5py.File(path, "r") as file:
        if text(file["what"].attrs["object"]) != "PVOL":
            return 0
        groups = [file, *(file[name] for name in file if name.startswith("dataset"))]
        counts = [_number(group["how"].attrs.get("scan_count")) for group in groups if "how" in group]
        return max((int(count) for count in counts if count is not None and np.isfinite(count)), default=0)


def _check_sweep(sweep: h5py.Group, name: str) -> None:
    if "where" not in sweep:
        raise BadInput(f"{name} has no group where")
    where = {key: _number(value) for key, value in sweep["where"].attrs.items()}
    told = where.get("nrays"), where.get("nbins")
    for moment in (sweep[m] for m in sweep if m.startswith("data") and "data" in sweep[m]):
        short = moment.name.rpartition("/")[2]
        if moment["data"].shape != told:
            found = moment["data"].shape
            raise BadInput(f"{name}/where has nrays {told[0]} and nbins {told[1]}, but {short} is of {found}")
        gain = _number(moment["what"].attrs.get("gain")) if "what" in moment else None
        if gain is None or not np.isfinite(gain) or gain == 0:
            raise BadInput(f"{name}/{short}/what: gain is {gain}, expected a number but 0")
    if not (where.get("rscale") or 0) > 0:
        raise BadInput(f"{name}/where: rscale is {where.get('rscale')}, expected more than 0 metres")
    is_rhi = bool({"az_angle", "azangle"} & where.keys())
    elevation = where.get("elangle")
    if not is_rhi and (elevation is None or not np.isfinite(elevation)):
        raise BadInput(f"{name}/where: elangle is {elevation}, expected degrees")


def _number(value: Any) -> Any:
    """An attribute, scalar or of length 1; None if it is no number."""
    value = np.ravel(value)[0] if value is not None and np.size(value) else None
    return value.item() if isinstance(value, np.number) else None
