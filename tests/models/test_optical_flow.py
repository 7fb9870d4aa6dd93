import numpy as np
import pytest
import torch

from models.baselines.last_frame import LastFrame
from models.baselines.motion import estimate_motion
from models.baselines.optical_flow import OpticalFlow, extrapolate
from models.forecaster import Forecaster
from models.networks.encoder_forecaster import EncoderForecaster, EncoderForecasterConfig
from pipeline.domain import ZR, Scale
from pipeline.frames.grayscale import pixel_of_reflectivity, reflectivity_of_rate
from pipeline.sources.synthetic import SyntheticRain
from pipeline.times import parse_time
from tests.conftest import synthetic_domain


def rain(size: int = 256) -> np.ndarray:
    """A real-looking rain field (size, size), 0-1."""
    domain = synthetic_domain()
    domain = domain.model_copy(update={"grid": domain.grid.model_copy(update={"shape": (size, size)})})
    rate = SyntheticRain(domain.source, domain).rain_rate(parse_time("2024-06-01T03:00"))
    return pixel_of_reflectivity(reflectivity_of_rate(rate, ZR()), Scale()).astype(np.float32) / 255


def shifted(field: np.ndarray, rows: float, columns: float) -> np.ndarray:
    """Sub-pixel periodic shift by the Fourier theorem would ring; bilinear between whole shifts does not."""
    r, c = int(np.floor(rows)), int(np.floor(columns))
    a, b = rows - r, columns - c
    at = [[np.roll(field, (r + i, c + j), axis=(0, 1)) for j in (0, 1)] for i in (0, 1)]
    return (1 - a) * ((1 - b) * at[0][0] + b * at[0][1]) + a * ((1 - b) * at[1][0] + b * at[1][1])


@pytest.mark.parametrize(("rows", "columns"), [(0, 0), (1.0, -2.0), (3.4, 5.7), (-8.0, 12.0)])
def test_motion_of_a_translated_field(rows, columns):
    field = rain()
    frames = torch.from_numpy(np.stack([shifted(field, n * rows, n * columns) for n in range(3)])).float()[None]
    motion = estimate_motion(frames, torch.ones_like(frames, dtype=torch.bool))[0].numpy()
    wet = (frames[0, -1].numpy() > 0) & (np.indices(field.shape).min(axis=0) > 32)
    error = np.hypot(motion[0] - columns, motion[1] - rows)[wet]
    assert np.median(error) < 0.1


def test_extrapolation_along_whole_pixels_is_exact():
    field = torch.from_numpy(rain(64))[None, None]
    motion = torch.stack((torch.full((1, 64, 64), 3.0), torch.full((1, 64, 64), -2.0)), dim=1)
    made = extrapolate(field, torch.ones(1, 1, 64, 64, dtype=torch.bool), motion, leads=4)
    for n in range(1, 5):
        expected = torch.zeros(64, 64)
        expected[: 64 - 2 * n, 3 * n :] = field[0, 0, 2 * n :, : 64 - 3 * n]
        inside = ~made.extrapolated[0, n - 1, 0]
        assert inside.sum() == (64 - 2 * n) * (64 - 3 * n)
        got = (made.values[0, n - 1, 0] * 255 + 0.5).floor()
        assert torch.equal(got[inside], (expected * 255 + 0.5).floor()[inside])


def test_inflow_stands_at_the_edge_of_the_coverage_and_is_flagged():
    field = torch.zeros(1, 1, 20, 20)
    field[..., 5] = 0.8  # the westernmost observed column rains
    observed = torch.zeros(1, 1, 20, 20, dtype=torch.bool)
    observed[..., 5:] = True
    motion = torch.zeros(1, 2, 20, 20)
    motion[:, 0] = 2.0  # eastward
    made = extrapolate(field, observed, motion, leads=3)
    row = made.values[0, 2, 0, 10]
    assert torch.allclose(row[5:12], torch.tensor(0.8), atol=0.05)  # rain flowed in behind the column
    assert torch.allclose(row[12:], torch.tensor(0.0), atol=1e-5)
    assert made.extrapolated[0, 2, 0, 10, 5:11].all() and not made.extrapolated[0, 2, 0, 10, 11:].any()


def test_rain_beside_a_hole_is_not_diluted():
    field, observed = torch.full((1, 1, 16, 16), 0.6), torch.ones(1, 1, 16, 16, dtype=torch.bool)
    observed[..., 8:] = False
    motion = torch.zeros(1, 2, 16, 16)
    motion[:, 0] = -0.4  # westward: values come from the hole's side
    made = extrapolate(field, observed, motion, leads=3)
    assert torch.allclose(made.values[0, :, 0, :, :8], torch.tensor(0.6), atol=1e-4)


def test_dry_frames_do_not_move():
    frames = torch.zeros(1, 3, 40, 40)
    motion = estimate_motion(frames, torch.ones_like(frames, dtype=torch.bool))
    assert torch.isfinite(motion).all() and motion.abs().max() == 0


@pytest.mark.parametrize(
    "method", [OpticalFlow(), LastFrame(), EncoderForecaster(EncoderForecasterConfig((4,), patch=4))]
)
def test_a_forecast_does_not_depend_on_its_company(method):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (3, 4, 1, 37, 50), dtype=np.uint8)
    observed = rng.random((3, 4, 37, 50)) > 0.1
    forecaster = Forecaster(method, samples=2)
    together = forecaster.predict(frames, observed, 3)
    alone = forecaster.predict(frames[1:2], observed[1:2], 3)
    assert np.array_equal(together.pixels[1], alone.pixels[0])
    assert np.array_equal(together.extrapolated[1], alone.extrapolated[0])
    assert together.pixels.shape == (3, 3, 1, 37, 50)


def test_agrees_with_pysteps_on_the_same_motion():
    pytest.importorskip("pysteps", reason="comparison package; `make test` installs it (extra `compare`)")
    from pysteps.extrapolation.semilagrangian import extrapolate as peer

    field = rain(96).astype(np.float64)
    y, x = np.mgrid[0:96, 0:96]
    motion = np.stack((2.0 + 0.02 * (y - 48), -1.0 + 0.02 * (x - 48)))  # translation and turning
    theirs = peer(field, motion, 6, n_iter=1)
    ours = (
        extrapolate(
            torch.from_numpy(field).float()[None, None],
            torch.ones(1, 1, 96, 96, dtype=torch.bool),
            torch.from_numpy(motion).float()[None],
            6,
        )
        .values[0, :, 0]
        .numpy()
    )
    both = np.isfinite(theirs)
    assert both.mean() > 0.7
    # in dB of a 70 dB scale; the two differ only in where along the step the midpoint is taken
    assert 70 * np.sqrt(np.mean((ours - theirs)[both] ** 2)) < 0.15
