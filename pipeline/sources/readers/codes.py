"""Which cells of a coded field are dry, which were not observed; they are never taken for each other by default."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BadInput
from pipeline.sources.contract import Quantity

Floats = NDArray[np.float32]

NO_ECHO = {"rain_rate": 0.0, "reflectivity": -32.0}
# what lies outside is no measurement but a code that nobody declared (-1, -99, -999, 9999); radars reach from the
# -64 dBZ of the emptiest packing to the 95.5 of the fullest
_POSSIBLE = {"rain_rate": (0.0, 1e5), "reflectivity": (-64.0, 100.0)}
# fewer dry cells than this share of the observed ones come by chance
_FEW_DRY = 1e-3


def has_code(raw: NDArray[Any], code: float | None) -> NDArray[np.bool_]:
    """Cells of a raw array that hold a code, compared in the array's own precision; none if there is no code."""
    if code is None:
        return np.zeros(raw.shape, np.bool_)
    if np.isnan(code):
        return np.asarray(np.isnan(raw))
    if np.issubdtype(raw.dtype, np.integer):
        return np.asarray(raw == code)
    return np.asarray(raw == np.asarray(code, raw.dtype))


def observed_values(
    name: str,
    values: Floats,
    kind: Quantity,
    no_data: NDArray[np.bool_],
    no_echo: NDArray[np.bool_] | None,
    shared_code: Literal["refuse", "dry", "no_data"],
) -> Floats:
    """Values with no echo as 0 mm/h or -32 dBZ, and NaN where not observed.

    Args:
        name: of the file, for errors.
        values: decoded; NaN and what no radar measures are not observed unless ``no_echo`` has the cell.
        no_data: cells with the code of no data.
        no_echo: cells with the code of no echo; None if the file declares none. NaN, the code of no data or one that
            nobody declared may then stand for it, which only a field with plain dry values rules out.
        shared_code: what the cells are that may be either.

    Raises:
        BadInput: there are such cells, and ``shared_code`` is ``refuse``.
    """
    lowest, highest = _POSSIBLE[kind]
    with np.errstate(invalid="ignore"):
        possible = (values >= lowest) & (values <= highest)  # false for NaN
    either = np.zeros(values.shape, np.bool_)
    if no_echo is None:
        either = no_data | ~possible
        dry = np.count_nonzero(possible & ~no_data & (values <= NO_ECHO[kind]))
        if dry > _FEW_DRY * np.count_nonzero(possible & ~no_data):
            either[:] = False
        why = "no code of no echo is declared, and no cell is dry, so that the cells without a value may be either"
        no_echo = np.zeros_like(either)
    else:
        either = no_data & no_echo
        why = "no echo and no data have one code"
    if either.any() and shared_code == "refuse":
        raise BadInput(
            f"{name}: {why} ({either.mean():.1%} of the cells), so that dry cannot be told from not observed: set "
            'source.shared_code = "dry" if they are dry, or "no_data" if they were not observed'
        )
    dry_cells = (no_echo & ~no_data) | (either if shared_code == "dry" else False)
    out = np.where(possible & ~no_data, values, np.float32(np.nan))
    return np.where(dry_cells, np.float32(NO_ECHO[kind]), out)
