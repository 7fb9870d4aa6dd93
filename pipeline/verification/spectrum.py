"""Radially averaged power spectra: how much structure a field has at each scale."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import fft


@dataclass(frozen=True)
class Rings:
    """Rings of equal wavenumber in the half plane of a real transform.

    Attributes:
        index: (rows, columns // 2 + 1) ring of each coefficient; those beyond the last ring have its number plus one.
        weight: same shape, 2 where a coefficient stands for itself and its conjugate.
        cells: coefficients of each ring, counted in the whole plane.
        wavelength_km: of each ring; infinite for the mean.
    """

    index: NDArray[np.intp]
    weight: NDArray[np.float64]
    cells: NDArray[np.float64]
    wavelength_km: NDArray[np.float64]


@lru_cache(maxsize=8)
def rings(shape: tuple[int, int], spacing_km: tuple[float, float]) -> Rings:
    """Rings of a grid, as wide as the smallest wavenumber of its longer side, up to that side's Nyquist wavenumber.

    On a square grid of square cells these are the rings of pysteps' ``rapsd``; on others wavelengths are distances,
    the same along rows and columns, where it counts coefficients.

    Args:
        spacing_km: between rows and between columns.
    """
    rows, columns = shape
    extent = max(rows * spacing_km[0], columns * spacing_km[1])
    along = fft.fftfreq(rows, spacing_km[0])[:, None] * extent
    across = fft.rfftfreq(columns, spacing_km[1])[None, :] * extent
    last = min(round(extent / (2 * max(spacing_km))), max(rows, columns) // 2)
    index = np.minimum(np.rint(np.hypot(along, across)).astype(np.intp), last + 1)
    weight = np.full(index.shape, 2.0)
    weight[:, 0] = 1
    if columns % 2 == 0:
        weight[:, -1] = 1
    cells = np.bincount(index.ravel(), weight.ravel(), minlength=last + 2)[: last + 1]
    with np.errstate(divide="ignore"):
        wavelength = extent / np.arange(last + 1)
    return Rings(index, weight, cells.astype(np.float64), wavelength)


def spectrum(field: NDArray[np.floating], of: Rings) -> NDArray[np.float64]:  # type: ignore[type-arg]
    """Mean power of each ring, |F|^2 per cell of the field.

    Args:
        field: (rows, columns) without NaN.
    """
    power = np.abs(fft.rfft2(field)) ** 2
    sums = np.bincount(of.index.ravel(), (power * of.weight).ravel(), minlength=len(of.cells) + 1)
    return np.asarray(sums[: len(of.cells)] / (np.maximum(of.cells, 1) * field.size))


def bands(of: Rings) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Third-octave bands of wavelength, with edges at whole octaves of a kilometre; the mean belongs to none.

    Returns:
        Band of each ring but the first, and the central wavelength of each band in km, falling.
    """
    thirds = np.floor(3 * np.log2(of.wavelength_km[1:]) + 1e-9).astype(int)
    present, index = np.unique(-thirds, return_inverse=True)
    return np.asarray(index, np.intp), np.asarray(2.0 ** ((0.5 - present) / 3))


def band_power(field: NDArray[np.floating], of: Rings) -> NDArray[np.float64]:  # type: ignore[type-arg]
    """Share of each band in the mean square of a field (Parseval), in squared units of the field.

    Structure finer than the last ring, in the corners of the plane of wavenumbers, belongs to no band.
    """
    index, centres = bands(of)
    power = spectrum(field, of)[1:] * of.cells[1:] / field.size
    return np.bincount(index, power, minlength=len(centres)).astype(np.float64)
