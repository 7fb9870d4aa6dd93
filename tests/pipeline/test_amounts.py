"""Rain amounts along the motion: no stripes, no lost rain, and no rain or dryness from where nothing was seen."""

import numpy as np
import pytest

from pipeline.advection import MOST_SUBSTEPS, amounts_along_motion, estimated_motion

SHAPE = (24, 96)


def moving_band(frames: int, speed: int, start: int = 10, rate: float = 6.0) -> np.ndarray:
    """A band of rain, two cells wide, that moves eastward."""
    rates = np.zeros((frames, *SHAPE), np.float32)
    for n in range(frames):
        rates[n, :, start + n * speed : start + n * speed + 2] = rate
    return rates


def eastward(speed: float) -> np.ndarray:
    motion = np.zeros((2, *SHAPE), np.float32)
    motion[0] = speed
    return motion


def trapezoid(rates: np.ndarray, step_h: float) -> np.ndarray:
    return (rates[1:] + rates[:-1]) / 2 * step_h


def test_a_narrow_band_that_moves_six_cells_a_frame_leaves_a_uniform_trace():
    rates = moving_band(9, 6)
    total = amounts_along_motion(rates, eastward(6), 0.1).sum(axis=0)
    # every cell is under the band for two cells of way, at six cells in 0.1 h: 6 mm/h x 2/60 h
    assert np.allclose(total[:, 16:52], 0.2, atol=1e-5)
    stripes = trapezoid(rates, 0.1).sum(axis=0)[:, 16:52]
    assert stripes.min() == 0 and stripes.max() == pytest.approx(0.6)
    assert total.sum() == pytest.approx(trapezoid(rates, 0.1).sum(), rel=1e-4)


@pytest.mark.parametrize("speed", [1.0, 3.4, 7.5, 25.0])
def test_the_mass_of_rain_is_that_of_the_trapezoid_rule(speed):
    rng = np.random.default_rng(5)
    rates = np.zeros((3, *SHAPE), np.float32)
    rates[:, 8:16, 40:56] = rng.gamma(0.5, 4.0, (3, 8, 16))
    total = amounts_along_motion(rates, np.stack((eastward(speed)[0], 0.2 * eastward(speed)[0])), 0.1)
    assert total.sum() == pytest.approx(trapezoid(rates, 0.1).sum(), rel=0.01)


def test_without_motion_it_is_the_trapezoid_rule():
    rates = np.random.default_rng(1).gamma(0.5, 4.0, (5, *SHAPE)).astype(np.float32)
    assert np.allclose(amounts_along_motion(rates, eastward(0), 0.1), trapezoid(rates, 0.1), rtol=1e-6)


def test_faster_than_the_cuts_still_leaves_no_gap():
    rates = moving_band(3, 2 * MOST_SUBSTEPS)
    trace = amounts_along_motion(rates, eastward(2 * MOST_SUBSTEPS), 0.1).sum(axis=0)[:, 12:70]
    assert trace.min() > 0.5 * trace.mean()


def test_a_hole_stays_a_hole_and_dries_nothing_around_it():
    rates = np.full((4, *SHAPE), 6.0, np.float32)
    rates[:, 8:14, 40:50] = np.nan
    rates[:, :, 90:] = np.nan
    total = amounts_along_motion(rates, eastward(4.3), 0.1)
    assert np.array_equal(np.isnan(total), np.isnan(rates[1:]))
    assert np.allclose(total[~np.isnan(total)], 0.6, rtol=1e-5)


def test_steady_rain_is_steady_up_to_the_edges():
    rates = np.full((3, *SHAPE), 6.0, np.float32)
    motion = np.stack((eastward(9.0)[0], eastward(-5.0)[0]))
    assert np.allclose(amounts_along_motion(rates, motion, 0.1), 0.6, rtol=1e-5)


def test_a_cell_that_is_not_covered_in_one_frame_has_no_amount():
    rates = moving_band(3, 6)
    rates[1, 5, 20] = np.nan
    assert np.isnan(amounts_along_motion(rates, eastward(6), 0.1)).sum() == 2


def test_the_motion_is_that_of_the_newest_frames():
    y, x = np.mgrid[:64, :64]
    blob = [np.exp(-((x - 20 - 3 * n) ** 2 + (y - 32 - n) ** 2) / 50) * 200 for n in range(4)]
    motion = estimated_motion(np.stack(blob).astype(np.uint8), np.ones((4, 64, 64), bool))
    assert np.abs(motion[:, 35, 29] - (3.0, 1.0)).max() < 0.2
    assert not estimated_motion(np.stack(blob[:1]).astype(np.uint8), np.ones((1, 64, 64), bool)).any()
