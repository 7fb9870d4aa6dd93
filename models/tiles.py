"""Large grids in overlapping parts, so that a network keeps within a budget of memory."""

from collections.abc import Iterator

from models.networks.network import Network

SMALLEST_KEPT = 32  # pixels of a tile beside its overlap


def tiles_within(
    network: Network, budget: int, frames: int, leads: int, height: int, width: int
) -> list[tuple[slice, slice, slice, slice]]:
    """Parts of a grid of which one sample each takes at most ``budget`` bytes, see ``tiles``; one if that is enough.

    Raises:
        MemoryError: the network cannot work in tiles, or not in such small ones.
    """
    whole = network.peak_bytes(1, frames, leads, height, width)
    rows, columns = slice(0, height), slice(0, width)
    if whole <= budget:
        return [(rows, columns, rows, columns)]
    needs = f"one forecast takes {whole / 2**20:.0f} MB, the budget is {budget / 2**20:.0f} MB, and this network"
    multiple, overlap = network.multiple, network.influence(frames, leads)
    if overlap is None:
        raise MemoryError(f"{needs} cannot work in tiles; raise memory_mb")
    overlap = -(-overlap // multiple) * multiple
    side = max(height, width)
    while network.peak_bytes(1, frames, leads, min(side, height), min(side, width)) > budget:
        side = int(0.8 * side) // multiple * multiple
        if side < 2 * overlap + multiple + SMALLEST_KEPT:
            raise MemoryError(f"{needs} needs tiles that overlap by {overlap} cells; raise memory_mb")
    return list(tiles(height, width, side, overlap, multiple))


def tiles(
    height: int, width: int, side: int, overlap: int, multiple: int
) -> Iterator[tuple[slice, slice, slice, slice]]:
    """Rows and columns of each tile, and those of it that are kept; tiles begin where the network's own grid does."""
    for rows, keep_rows in _cuts(height, side, overlap, multiple):
        for columns, keep_columns in _cuts(width, side, overlap, multiple):
            yield rows, columns, keep_rows, keep_columns


def _cuts(length: int, side: int, overlap: int, multiple: int) -> list[tuple[slice, slice]]:
    """Parts of equal size, the last one flush with the end; ``overlap`` and starts are multiples of ``multiple``."""
    if length <= side:
        return [(slice(0, length), slice(0, length))]
    side -= (side - length) % multiple
    step = (side - 2 * overlap) // multiple * multiple
    starts = [*range(0, length - side, step), length - side]
    ends = [start + side - overlap for start in starts[:-1]] + [length]
    return [
        (slice(start, start + side), slice(kept, end))
        for start, kept, end in zip(starts, [0, *ends[:-1]], ends, strict=True)
    ]


def within(whole: slice, kept: slice) -> slice:
    """The kept part of a tile, counted from the tile's own begin."""
    return slice(kept.start - whole.start, kept.stop - whole.start)
