"""Packed NetCDF: integers with scale and fill value that we make ourselves, so that a file has a content digest."""

import hashlib
import io
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pipeline.errors import reading

# attributes that may differ between two files with the same content
# what is known of radars comes from the catalog, which loses it when it is rebuilt; the frames' checksums are in the
# digest. What is known of the skill depends on when the product is made
VOLATILE = frozenset(
    {
        "date_created",
        "history",
        "issue_time",
        "software_version",
        "content_digest",
        "input_offsets_s",
        "radars_used",
        "radars_carried_on",
        "verified_skill_24h",
        "verified_skill_30d",
    }
)
FILL = -32768


def pack(values: NDArray[np.floating[Any]], step: float) -> NDArray[np.int16]:
    """Round to int16 multiples of ``step``; NaN becomes FILL, and what is too large or too small saturates."""
    scaled = np.round(values / step)
    whole = np.clip(np.where(np.isnan(scaled), 0, scaled), FILL + 1, 32767).astype(np.int16)
    whole[np.isnan(scaled)] = FILL
    return whole


def packed(dims: tuple[str, ...], values: NDArray[np.floating[Any]], step: float, attrs: dict[str, Any]) -> xr.Variable:
    """An int16 variable with its packing attributes (``add_offset`` is 0)."""
    packing = {"_FillValue": np.int16(FILL), "scale_factor": np.float64(step), "add_offset": np.float64(0)}
    return xr.Variable(dims, pack(values, step), {**attrs, **packing})


def content_digest(dataset: xr.Dataset) -> str:
    """SHA-256 over names, dimensions, raw values and attributes, without the volatile attributes."""
    digest = hashlib.sha256()
    for name in sorted(dataset.variables, key=str):
        variable = dataset.variables[name]
        values = np.ascontiguousarray(variable.values)
        head = [str(name), list(variable.dims), str(values.dtype), _plain(variable.attrs)]
        digest.update(json.dumps(head, sort_keys=True).encode())
        digest.update(values.tobytes())
    kept = {k: v for k, v in dataset.attrs.items() if k not in VOLATILE}
    digest.update(json.dumps(_plain(kept), sort_keys=True).encode())
    return digest.hexdigest()


def write(dataset: xr.Dataset, path: Path, whole: bool = False) -> str:
    """Write packed variables as they are (zlib 1, shuffle).

    Args:
        whole: one chunk per variable, for tables; else one per slice of the last two dimensions, for maps.

    Returns:
        The content digest, which is also the global attribute ``content_digest``.
    """
    digest = content_digest(dataset)
    encoding: dict[str, dict[str, Any]] = {}
    for name, variable in dataset.variables.items():
        encoding[str(name)] = {} if "_FillValue" in variable.attrs else {"_FillValue": None}
        if variable.ndim >= 2:
            chunks = variable.shape if whole else (*([1] * (variable.ndim - 2)), *variable.shape[-2:])
            encoding[str(name)].update(zlib=True, complevel=1, shuffle=True, chunksizes=chunks)
    # in memory first: HDF5 does not survive a disk that fills up under it
    content = io.BytesIO()
    dataset.assign_attrs(content_digest=digest).to_netcdf(content, engine="h5netcdf", encoding=encoding)
    path.write_bytes(content.getbuffer())
    return digest


def read_packed(path: Path) -> xr.Dataset:
    """Load a whole file without unpacking anything.

    Raises:
        OSError, ValueError: not a whole NetCDF file.
        StoreUnavailable: the machine cannot read it.
    """
    with reading(path), xr.open_dataset(path, engine="h5netcdf", decode_cf=False, cache=False) as dataset:
        return dataset.load()


def read_arrays(path: Path, names: Collection[str]) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Raw values of some variables, as far as the file has them, and its global attributes; ten times as fast.

    Raises:
        OSError: not a whole NetCDF file.
        StoreUnavailable: the machine cannot read it.
    """
    with reading(path), h5py.File(path, "r") as file:
        found = {name: file[name][()] for name in names if name in file}
        attrs = {name: value for name, value in file.attrs.items() if not name.startswith("_")}
    return found, {k: v.item() if isinstance(v, np.ndarray) and v.size == 1 else v for k, v in attrs.items()}


def read_digest(path: Path) -> str:
    """The recorded digest of a file, after checking that the content still has it.

    Raises:
        ValueError: the content does not have the recorded digest.
    """
    return checked_digest(read_packed(path), path)


def checked_digest(dataset: xr.Dataset, path: Path) -> str:
    """The recorded digest of a file that was read with ``read_packed``, checked against its content.

    Raises:
        ValueError: the content does not have the recorded digest.
    """
    recorded = str(dataset.attrs.get("content_digest", ""))
    if content_digest(dataset) != recorded:
        raise ValueError(f"{path} does not have the content its digest {recorded[:12]} promises")
    return recorded


def _plain(value: Any) -> Any:
    """Attributes as JSON values, the same before writing and after reading."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray) and value.size == 1:
        return _plain(value.item())
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
