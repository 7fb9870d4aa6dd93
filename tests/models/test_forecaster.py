import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from models import checkpoint, zoo
from models.baselines.rover import Rover, RoverConfig, _applied, _Equations, solve
from models.contract import Prediction
from models.forecaster import Forecaster
from models.memory import PLENTY, peak_bytes
from models.tiles import _cuts
from tests.models.test_optical_flow import rain, shifted

PROJECT = Path(__file__).parents[2]


def moving_rain(size: int, frames: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Real-looking rain that moves by (1, 2) pixels a frame: pixels (1, time, 1, size, size), observed."""
    field = rain(size)
    pixels = np.stack([np.roll(field, (n, 2 * n), axis=(0, 1)) for n in range(frames)])
    return (pixels * 255).astype(np.uint8)[None, :, None], np.ones((1, frames, size, size), bool)


@pytest.fixture(scope="module")
def shipped():
    return checkpoint.load(checkpoint.find("convlstm"))[0]


TILED = {
    "convlstm": {"widths": (32, 16), "patch": 2},
    "wu2019_radar_3l": {"widths": (32, 16), "head_width": 6},
    "convlstm_attention": {"widths": (32,), "patch": 4},
    "dc": {"taps": 21, "input_frames": 3},
    "unet": {"widths": (32, 32), "input_frames": 3, "lead_frames": 2},
    "unet_dilated": {"widths": (32, 32), "input_frames": 3, "lead_frames": 2},
    "growth_decay": {"widths": (8, 8, 8), "blurs": (1.0, 2.0), "levels": (0.4, 0.6), "lead_frames": 3},
}


@pytest.mark.parametrize("name", TILED)
def test_a_forecast_in_tiles_is_that_of_one_piece(name):
    torch.manual_seed(1)
    network = zoo.build(name, TILED[name])
    with torch.no_grad():  # far from the start: filters that move by many pixels, weights that carry far
        for parameter in network.parameters():
            parameter.mul_(3)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (2, 3, 1, 500, 350), dtype=np.uint8)
    observed = rng.random((2, 3, 500, 350)) > 0.1
    whole = Forecaster(network).predict(pixels, observed, 3)
    budget = peak_bytes(network, 1, 3, 3, 410, 350) // 2**20
    tiled = Forecaster(network, memory_mb=budget)
    assert len(tiled._plan(1, (3, 1, 500, 350, 3)).tiles) > 1
    made = tiled.predict(pixels, observed, 3)
    difference = np.abs(made.pixels.astype(int) - whole.pixels)
    assert difference.max() <= 1 and difference.mean() < 1e-3


@pytest.mark.parametrize("name", TILED)
def test_nothing_beyond_its_stated_influence_matters(name):
    torch.manual_seed(1)
    network = zoo.build(name, TILED[name]).eval()
    size, far = 160, network.influence(3, 2)
    assert far < size - 8
    frames = torch.rand(1, 3, 1, size, size)
    changed = frames.clone()
    changed[..., far + 8 :] = torch.rand(1, 3, 1, size, size - far - 8)
    with torch.no_grad():
        a, b = network.roll_out(frames, 2), network.roll_out(changed, 2)
    torch.testing.assert_close(a[..., :8], b[..., :8], atol=1e-6, rtol=0)
    assert not torch.allclose(a[..., -8:], b[..., -8:])


@pytest.mark.parametrize("multiple", [1, 4, 10])
@pytest.mark.parametrize("length", [161, 320, 333, 1000])
def test_cuts_keep_every_cell_once_and_overlap_enough(length, multiple):
    side, overlap = 160, 40
    cuts = _cuts(length, side, overlap, multiple)
    kept = np.zeros(length, int)
    for whole, part in cuts:
        kept[part] += 1
        assert whole.start % multiple == 0 and whole.start >= 0 and whole.stop <= length
        assert whole.stop - whole.start == cuts[0][0].stop <= side
        assert part.start == 0 or part.start - whole.start >= overlap
        assert part.stop == length or whole.stop - part.stop >= overlap
    assert (kept == 1).all()


@pytest.mark.parametrize(
    "name", ["wu2019_mnist_1l", "mnistpp_trajgru_l17", "mnistpp_convgru_k7", "dfn_11", "hko7_cnn3d"]
)
def test_what_small_grids_are_given_without_asking_is_plenty(name):
    with torch.device("meta"):  # the hungriest of the zoo
        network = zoo.build(name)
    assert peak_bytes(network, 1, 10, 12, 120, 120) < PLENTY * 120 * 120


def test_a_budget_that_cannot_be_met_is_an_error():
    pixels, observed = moving_rain(64, 3)
    with pytest.raises(MemoryError, match="overlap by 184 cells; raise memory_mb"):
        Forecaster(zoo.build("convlstm"), memory_mb=1).predict(pixels, observed, 12)
    gru = zoo.build("hko7_convgru", {"down": ((4, 7, 5), (8, 5, 3), (8, 3, 2)), "widths": (8, 8, 8)})
    with pytest.raises(MemoryError, match="cannot work in tiles"):
        Forecaster(gru, memory_mb=1).predict(pixels, observed, 12)


class Hungry:
    """Runs out of memory with more than two samples."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, frames, observed, leads):
        self.sizes.append(len(frames))
        if len(frames) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        values = frames[:, -1:].repeat(1, leads, 1, 1, 1)
        return Prediction(values, torch.zeros_like(values, dtype=torch.bool))


def test_when_memory_runs_out_passes_are_halved_for_good():
    method = Hungry()
    forecaster = Forecaster(method, samples=8)
    frames = np.arange(7, dtype=np.uint8).repeat(16).reshape(7, 1, 1, 4, 4)
    made = forecaster.predict(frames, np.ones((7, 1, 4, 4), bool), 2)
    assert method.sizes == [8, 4, 2, 2, 2, 1]
    assert np.array_equal(made.pixels[:, 1], frames[:, 0])
    forecaster.predict(frames[:1], np.ones((1, 1, 4, 4), bool), 2)
    assert method.sizes[-1] == 1  # one alone is not filled up


class Greedy(Hungry):
    """Says that a sample takes three megabytes."""

    def peak_bytes(self, batch, frames, leads, height, width):
        return batch * 3 * 2**20

    def __call__(self, frames, observed, leads):
        self.sizes.append(len(frames))
        values = frames[:, -1:].repeat(1, leads, 1, 1, 1)
        return Prediction(values, torch.zeros_like(values, dtype=torch.bool))


def test_a_pass_has_the_smallest_power_of_two_that_holds_the_batch_and_that_the_budget_holds():
    frames = np.arange(13, dtype=np.uint8).repeat(256).reshape(13, 1, 1, 16, 16)
    seen = np.ones((13, 1, 16, 16), bool)
    for count, memory_mb, sizes in ((1, 64, [1]), (3, 64, [4]), (5, 64, [8]), (13, 64, [16]), (5, 13, [4, 1])):
        method = Greedy()
        made = Forecaster(method, samples=64, memory_mb=memory_mb).predict(frames[:count], seen[:count], 2)
        assert method.sizes == sizes, (count, memory_mb)
        assert np.array_equal(made.pixels[:, 1], frames[:count, 0])
    with pytest.raises(MemoryError, match="one forecast takes 3 MB, the budget is 2 MB; raise memory_mb"):
        Forecaster(Greedy(), samples=64, memory_mb=2).predict(frames, seen, 2)


def test_other_errors_and_memory_that_never_suffices_are_raised():
    def broken(frames, observed, leads):
        raise RuntimeError("something else")

    def never(frames, observed, leads):
        raise torch.OutOfMemoryError("CUDA out of memory")

    frames, seen = np.zeros((2, 1, 1, 4, 4), np.uint8), np.ones((2, 1, 4, 4), bool)
    with pytest.raises(RuntimeError, match="something else"):
        Forecaster(broken, samples=4).predict(frames, seen, 1)
    with pytest.raises(torch.OutOfMemoryError):
        Forecaster(never, samples=4).predict(frames, seen, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convlstm", "mnistpp_trajgru_l5", "unet"])
def test_the_memory_of_a_pass_is_within_the_budget_for_any_number_of_sequences(name, tmp_path):
    """Resident memory over that of the loaded program, without the arrays given and returned."""
    script = """
import json, resource, sys
import numpy as np, torch
from models import zoo
from models.forecaster import Forecaster
name, count, budget = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
forecaster = Forecaster(zoo.build(name), memory_mb=budget)
small = np.zeros((1, 5, 1, 32, 32), np.uint8)
forecaster.predict(small, np.ones((1, 5, 32, 32), bool), 2)
frames = np.random.default_rng(0).integers(0, 200, (count, 5, 1, 64, 64), dtype=np.uint8)
observed = np.ones((count, 5, 64, 64), bool)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
forecaster._plans.clear()
made = forecaster.predict(frames, observed, 6)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"mb": (after - before) / 1024, "returned": (made.pixels.nbytes + made.extrapolated.nbytes) / 2**20,
                  "planned": len(forecaster._plans[(1, 5, 1, 64, 64, 6)].tiles)}))
"""
    budget = peak_bytes(zoo.build(name), 1, 5, 6, 64, 64) // 2**20 + 1
    for count in (1, 16, 256) if name == "convlstm" else (1, 16):
        done = subprocess.run(
            [sys.executable, "-c", script, name, str(count), str(budget)],
            cwd=PROJECT, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        measured = json.loads(done.stdout)
        assert measured["mb"] - measured["returned"] < budget + 10, (count, measured, budget)


def test_bfloat16_stays_within_a_pixel_or_two(shipped):
    pixels, observed = moving_rain(96)
    exact = Forecaster(shipped).predict(pixels, observed, 6).pixels.astype(int)
    rough = Forecaster(shipped, precision="bfloat16").predict(pixels, observed, 6).pixels.astype(int)
    wet = exact > 0
    assert wet.mean() > 0.02 and not np.array_equal(rough, exact)
    assert np.abs(rough - exact)[wet].mean() < 2


def test_classes_come_out_as_probabilities():
    network = zoo.build("convlstm_classes", {"widths": (4,), "patch": 4})
    pixels, observed = moving_rain(40, 3)
    made = Forecaster(network).predict(np.repeat(pixels, 3, axis=0), np.repeat(observed, 3, axis=0), 2)
    assert made.exceedance.shape == (3, 2, 5, 40, 40)
    assert (np.diff(made.exceedance.astype(int), axis=2) <= 0).all() and made.exceedance.max() > 0


@pytest.mark.parametrize(
    ("frames", "observed", "error", "says"),
    [
        (np.zeros((1, 3, 1, 8, 8), np.float32), np.ones((1, 3, 8, 8), bool), TypeError, "float32"),
        (np.zeros((1, 3, 1, 8, 8), np.uint8), np.ones((1, 3, 8, 8), np.uint8), TypeError, "observed bool"),
        (np.zeros((3, 1, 8, 8), np.uint8), np.ones((3, 8, 8), bool), ValueError, "must be"),
        (np.zeros((1, 3, 1, 8, 8), np.uint8), np.ones((1, 3, 8, 9), bool), ValueError, "8, 9"),
        (np.zeros((1, 3, 2, 8, 8), np.uint8), np.ones((1, 3, 8, 8), bool), ValueError, "2 channels"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(frames, observed, error, says):
    with pytest.raises(error, match=says):
        Forecaster(zoo.build("convlstm", {"widths": (4,), "patch": 4})).predict(frames, observed, 2)


def test_too_few_frames_are_refused():
    network = zoo.build("unet", {"widths": (4, 4), "input_frames": 4, "lead_frames": 2})
    with pytest.raises(ValueError, match="3 input frames, the network takes at least 4"):
        Forecaster(network).predict(np.zeros((1, 3, 1, 8, 8), np.uint8), np.ones((1, 3, 8, 8), bool), 2)


def test_device_and_precision_are_checked():
    with pytest.raises(ValueError, match="there are float32, bfloat16"):
        Forecaster(Rover(nonlinear=False), precision="float8")
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here, so it is not refused")
    assert Forecaster(Rover(nonlinear=False), device="auto").device.type == "cpu"
    with pytest.raises(ValueError, match="no CUDA device"):
        Forecaster(Rover(nonlinear=False), device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: graphs are captured there only")
def test_a_captured_graph_forecasts_the_same_as_eager(shipped):
    pixels, observed = moving_rain(96)
    captured, eager = Forecaster(shipped, device="cuda", samples=2), Forecaster(shipped, device="cuda", samples=2)
    eager._may_capture = False
    for n in (4, 5):
        a, b = (f.predict(np.roll(pixels, n, axis=4), observed, 6).pixels.astype(int) for f in (captured, eager))
        assert np.abs(a - b).max() <= 1
    assert captured._graphs and captured._may_capture


@pytest.mark.parametrize("nonlinear", [False, True])
@pytest.mark.parametrize("size", [192, 129, 101])
def test_rover_moves_rain_where_it_goes(nonlinear, size):
    """A pixel and a half a frame: the forecast beats the last frame by far, also on odd grids."""
    field = rain(256)
    frames = np.stack([shifted(field, 1.0 * n, -1.5 * n) for n in range(5)])[:, :size, :size]
    pixels = torch.from_numpy(frames).float()[None, :, None]
    seen = torch.ones(1, 2, 1, size, size, dtype=torch.bool)
    made = Rover(nonlinear=nonlinear)(pixels[:, :2], seen, 3)
    inside = ~made.extrapolated[0, :, 0]
    assert inside.float().mean() > 0.8

    def error(values: torch.Tensor) -> float:
        return ((values - pixels[0, 2:, 0])[inside] ** 2).mean().item()

    assert error(made.values[0, :, 0]) < 0.45 * error(pixels[0, 1:2, 0].expand(3, -1, -1))


@pytest.mark.parametrize(("height", "width"), [(48, 48), (65, 65), (101, 101), (129, 97), (145, 161), (3, 7)])
def test_rover_solves_its_own_equations_on_any_grid(height, width):
    torch.manual_seed(0)
    a = torch.rand(1, 1, height, width, dtype=torch.float64) * 100 + 50
    equations = _Equations(a, 0.3 * a, 1.5 * a, 2000.0)
    right = 100 * torch.randn(1, 2, height, width, dtype=torch.float64)
    found = solve(equations, right, RoverConfig())
    # the rows and columns at the end lean on the padding; everywhere else the equations hold
    residual = (right - _applied(equations, found))[..., : height - 1, : width - 1]
    assert residual.norm() < 2e-3 * right.norm()


def test_rover_transform_inverts_and_has_the_published_bounds():
    rover = Rover(nonlinear=True)
    pixels = torch.linspace(0, 1, 50)
    torch.testing.assert_close(rover._restored(rover._stretched(pixels)), pixels, atol=1e-4, rtol=0)
    assert rover._bounds().tolist() == pytest.approx([-1.478, 1.424], abs=1e-3)
    still = torch.rand(1, 1, 1, 32, 32).expand(1, 2, 1, 32, 32)
    made = rover(still, torch.ones(1, 2, 1, 32, 32, dtype=torch.bool), 1)
    torch.testing.assert_close(made.values[0, 0], still[0, 0], atol=1e-3, rtol=0)


def test_rover_needs_two_frames():
    with pytest.raises(ValueError, match="two input frames"):
        Rover(nonlinear=False)(torch.rand(1, 1, 1, 8, 8), torch.ones(1, 1, 1, 8, 8, dtype=torch.bool), 1)


def test_a_forecast_that_is_no_number_is_an_error_and_not_no_rain():
    def broken(frames, observed, leads):
        values = torch.full((len(frames), leads, 1, 4, 4), float("nan"))
        return Prediction(values, torch.zeros(values.shape, dtype=torch.bool))

    with pytest.raises(RuntimeError, match="not finite"):
        Forecaster(broken).predict(np.zeros((1, 1, 1, 4, 4), np.uint8), np.ones((1, 1, 4, 4), bool), 2)


def test_values_are_rounded_and_inflow_is_flagged():
    def method(frames, observed, leads):
        values = torch.full((len(frames), leads, 1, 4, 4), 99.6 / 255)
        flags = torch.zeros(values.shape, dtype=torch.bool)
        flags[:, 1, :, 2:] = True
        return Prediction(values, flags, torch.full((len(frames), leads, 2, 4, 4), 0.5))

    made = Forecaster(method).predict(np.zeros((3, 1, 1, 4, 4), np.uint8), np.ones((3, 1, 4, 4), bool), 2)
    assert (made.pixels == 100).all() and (made.exceedance == 128).all()
    assert made.extrapolated[:, 1, 2:].all() and made.extrapolated.sum() == 3 * 8
