"""Where the first gate of an ODIM_H5 sweep begins: ``rstart`` is in km before version 2.4, in metres since.

Many a writer gives metres under an older version, or spells the version so that nobody knows it. A wrong guess moves
all echo by a factor of a thousand of the offset, in silence; so what is plausible decides.
"""

from collections.abc import Sequence

from pipeline.errors import BadInput

METRES_SINCE = (2, 4)
# no weather radar begins to measure further away, nor beyond this share of its range
FURTHEST_START_M, SHARE_OF_RANGE = 10_000.0, 0.25
# nobody gives an offset that is a smaller part of a gate
SMALLEST_SHARE_OF_GATE = 0.02


def metres_per_unit(
    first_gates: Sequence[tuple[float, float, float]], version: tuple[int, int] | None, name: str, rstart_unit: str
) -> float:
    """1 if the file's ``rstart`` is in metres, 1000 if it is in km.

    Args:
        first_gates: of each sweep rstart as written, gate length in metres, number of gates.
        version: of ODIM; None if the file does not say it.
        rstart_unit: ``m`` or ``km`` if a setting says so, else empty.

    Raises:
        BadInput: both may be, or neither; names the setting.
    """
    units = {"m": 1.0, "km": 1000.0}
    if rstart_unit:
        return units[rstart_unit]
    offsets = [gate for gate in first_gates if gate[0] != 0]
    if not offsets:
        return 1000.0
    plausible = [unit for unit, factor in units.items() if all(_is_plausible(*gate, factor) for gate in offsets)]
    if version is not None:
        declared = "m" if version >= METRES_SINCE else "km"
        plausible = [declared] if declared in plausible else plausible
    if len(plausible) != 1:
        start, gate, count = offsets[0]
        said = f"ODIM {version[0]}.{version[1]}" if version else "no version"
        raise BadInput(
            f"{name}: the first gate begins at rstart = {start:g}, of {count:g} gates of {gate:g} m, with {said}: "
            f"{'metres and km are' if plausible else 'neither metres nor km is'} plausible; "
            "say which in the source's rstart_unit"
        )
    return units[plausible[0]]


def _is_plausible(start: float, gate_m: float, gates: float, factor: float) -> bool:
    metres = start * factor
    smallest = SMALLEST_SHARE_OF_GATE * gate_m
    return max(-gate_m, -FURTHEST_START_M) <= metres <= min(FURTHEST_START_M, SHARE_OF_RANGE * gate_m * gates) and (
        abs(metres) >= smallest
    )
