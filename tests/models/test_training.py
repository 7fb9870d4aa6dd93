import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from models.adversarial import Adversary
from models.losses import mse
from models.networks.encoder_forecaster import EncoderForecaster, EncoderForecasterConfig
from models.networks.unet import UNet, UNetConfig
from models.training import TrainingConfig, learning_rate, taught, train
from models.windows import TRAIN, VALIDATION, FrameSeries, Windows, load_series, save_series

PROJECT = Path(__file__).parents[2]


def moving_square(frames: int = 30, size: int = 32) -> FrameSeries:
    pixels = np.zeros((frames, 1, size, size), np.uint8)
    for n in range(frames):
        pixels[n, 0, 8:16, (n % size) : (n % size) + 6] = 200
    return FrameSeries(pixels, np.ones((frames, size, size), bool), np.arange(8), np.arange(20, 24))


def windows(**changes) -> Windows:
    return Windows([moving_square()], **{"length": 5, "crop": 32, "seed": 0, **changes})


def network() -> EncoderForecaster:
    torch.manual_seed(0)
    return EncoderForecaster(EncoderForecasterConfig(widths=(8,), patch=2))


def config(**changes) -> TrainingConfig:
    return TrainingConfig(
        **{"input_frames": 3, "lead_frames": 2, "batch": 2, "steps": 12, "validate_every": 6, **changes}
    )


@pytest.mark.parametrize("feed", ["own", "teacher", "scheduled"])
def test_a_small_network_learns_a_moving_square(feed):
    history = train(network(), windows(augment=False), mse, config(steps=150, validate_every=50, feed=feed))
    # a forecast of the mean frame has an error of about 0.027
    assert history[-1]["validation_loss"] < 0.018
    # the same error in pixels, of clipped values
    assert 0.7 < history[-1]["validation_mse"] / (history[-1]["validation_loss"] * 255**2) <= 1


def test_training_is_reproducible():
    runs = [train(network(), windows(), mse, config()) for _ in range(2)]
    assert [r["train_loss"] for r in runs[0]] == [r["train_loss"] for r in runs[1]]


def test_accumulated_passes_equal_one_large_batch():
    weights = []
    for sizes in ({"batch": 4}, {"batch": 2, "accumulate": 2}, {"batch": 1, "accumulate": 4}):
        one = network()
        train(one, half_observed(), mse, config(steps=3, validate_every=3, **sizes))
        weights.append(one.state_dict())
    for other in weights[1:]:
        for key, value in weights[0].items():
            torch.testing.assert_close(other[key], value, rtol=1e-3, atol=1e-5)


def half_observed() -> Windows:
    """Samples that are observed to different shares: a mean of means would differ from the mean."""
    series = moving_square()
    observed = series.observed.copy()
    observed[: len(observed) // 2, :, 5:] = False
    return Windows([FrameSeries(series.pixels, observed, series.train, series.validation)], 5, 32, 0)


def test_the_best_weights_are_kept_and_patience_ends_the_run():
    one = network()
    history = train(one, windows(), mse, config(steps=400, validate_every=5, learning_rate=0.5, patience=3))
    assert len(history) < 80
    best = min(history, key=lambda row: row["validation_loss"])
    assert history.index(best) == len(history) - 4
    again = train(one, windows(), mse, config(steps=1, validate_every=1, learning_rate=1e-12))
    assert again[0]["validation_loss"] == pytest.approx(best["validation_loss"], rel=1e-4)


def test_the_rate_falls_along_a_half_cosine():
    c = config(steps=100, learning_rate=1.0)
    assert learning_rate(1, c) == 1.0
    assert learning_rate(51, c) == pytest.approx(0.525)
    assert learning_rate(100, c) == pytest.approx(0.05, abs=1e-3)
    assert learning_rate(77, config(constant_rate=True, learning_rate=0.3)) == 0.3


def test_scheduled_sampling_goes_from_truth_to_own_output():
    shares = [
        taught(step, range(500), config(feed="scheduled", steps=100), torch.device("cpu")).float().mean().item()
        for step in (1, 50, 100)
    ]
    assert shares == pytest.approx([0.99, 0.5, 0.0], abs=0.05)
    assert taught(1, range(2), config(), torch.device("cpu")) is None


def test_a_teacher_is_refused_where_nothing_is_fed_back():
    net = UNet(UNetConfig(widths=(4, 4), input_frames=3, lead_frames=2))
    with pytest.raises(ValueError, match="does not feed on its output"):
        train(net, windows(), mse, config(feed="teacher"))
    with pytest.raises(ValueError, match="there are own, teacher, scheduled"):
        config(feed="nonesuch")


def test_the_discriminator_learns_and_pushes_the_forecast():
    torch.manual_seed(0)
    adversary = Adversary(3, 1, 1e-3, torch.device("cpu"))
    past, true = torch.rand(4, 2, 1, 32, 32), torch.rand(4, 1, 1, 32, 32)
    made = torch.full_like(true, 0.5).requires_grad_()  # the mean: blurred
    seen = torch.ones_like(true, dtype=torch.bool)
    seen[..., 16:] = False
    losses = [adversary.learn(past, made, true, seen) for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]
    adversary.of_forecast(past, made, seen).backward()
    assert made.grad[..., :16].abs().max() > 0 and made.grad[..., 16:].abs().max() == 0


def test_training_with_an_adversary_runs_and_saves_it(tmp_path):
    train(network(), windows(), mse, config(adversarial=0.05), folder=tmp_path)
    assert any(key.startswith("judge/") for key in load_file(tmp_path / "state.safetensors"))


def test_metrics_and_curve_are_written(tmp_path):
    history = train(network(), windows(), mse, config(), folder=tmp_path)
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["validation_loss"]) for row in rows] == [row["validation_loss"] for row in history]
    assert (tmp_path / "loss.png").read_bytes()[:4] == b"\x89PNG"


def test_a_state_of_another_run_or_a_damaged_one_is_refused(tmp_path):
    train(network(), windows(), mse, config(), folder=tmp_path)
    with pytest.raises(ValueError, match="batch was 2, is 3"):
        train(network(), windows(), mse, config(batch=3), folder=tmp_path)
    state = tmp_path / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(ValueError, match="remove it to start anew"):
        train(network(), windows(), mse, config(), folder=tmp_path)


def test_windows_turn_pixels_and_mask_together_and_hide_what_is_not_observed():
    series = moving_square()
    pixels = np.maximum(series.pixels, 7)  # something everywhere, also where nothing was observed
    samples = Windows([FrameSeries(pixels, series.pixels[:, 0] > 0, series.train, series.validation)], 5, 20, 0)
    for n in range(20):
        one = samples.sample(TRAIN, n)
        assert np.array_equal(one.pixels[:, 0] > 0, one.observed)
    assert samples.count(TRAIN) == 8 and samples.count(VALIDATION) == 4
    assert np.array_equal(samples.sample(TRAIN, 3).pixels, samples.sample(TRAIN, 3).pixels)


def test_no_window_and_too_small_a_grid_are_refused():
    s = moving_square()
    none = FrameSeries(s.pixels, s.observed, np.array([], np.int64), np.array([], np.int64))
    with pytest.raises(ValueError, match="5 consecutive frames"):
        Windows([none], 5, 32, 0)
    with pytest.raises(ValueError, match="smallest grid has a side of 32"):
        Windows([s], 5, 64, 0)


def exported(folder: Path) -> Path:
    about = {
        "dbz_min": -10.0, "dbz_max": 60.0, "cadences_minutes": [10], "spacing_m": [1000.0, 1000.0],
        "product": "surface_rain", "classes": [0.4, 0.54, 0.63, 0.7, 0.81], "notes": {},
    }  # fmt: skip
    save_series(folder, {"square": moving_square()}, about)
    return folder


def command(data: Path, out: Path, *more: str) -> list[str]:
    line = (
        f"-m models.training {data} --out {out} --network convlstm --crop 32 --input-frames 3 --lead-frames 2 "
        "--batch 2 --steps 40 --validate-every 5 --loss mse --threads 1 --device cpu"
    )
    config = '{"widths": [8], "patch": 2}'
    return [sys.executable, *line.split(), "--network-config", config, *more]


def test_exported_data_come_back_and_bad_ones_are_named(tmp_path):
    folder = exported(tmp_path / "data")
    series, about = load_series(folder)
    assert np.array_equal(series["square"].pixels, moving_square().pixels) and about["dbz_max"] == 60
    np.save(folder / "square.observed.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"square\.observed\.npy: 1 dimensions of float64"):
        load_series(folder)
    (folder / "about.json").write_text(json.dumps({"series": ["../x"]}))
    with pytest.raises(ValueError, match="is no name of a series"):
        load_series(folder)


def test_a_run_that_was_killed_goes_on_exactly(tmp_path):
    """On a bare machine: only ``models`` is there, and neither the pipeline nor its packages."""
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "models").symlink_to(PROJECT / "models")
    data = exported(tmp_path / "data")
    absent = "('pydantic', 'xarray', 'netCDF4', 'prefect', 'pipeline')"
    (bare / "sitecustomize.py").write_text(f"import sys\nfor name in {absent}:\n    sys.modules[name] = None\n")
    environment = {**os.environ, "PYTHONPATH": str(bare)}

    def go(out: Path) -> subprocess.Popen:
        return subprocess.Popen(
            command(data, out), cwd=bare, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    whole = go(tmp_path / "whole")
    said = whole.communicate(timeout=120)
    assert whole.returncode == 0, said[1]
    killed, state = go(tmp_path / "killed"), tmp_path / ".killed.training" / "state.safetensors"
    deadline = time.monotonic() + 120
    while not state.is_file() and time.monotonic() < deadline:
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL and not (tmp_path / "killed").exists()
    again = go(tmp_path / "killed")
    lines = again.communicate(timeout=120)[1]
    assert again.returncode == 0 and "step 5/40" not in lines, lines
    a, b = (load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(a[key], b[key]) for key in a)
    with (tmp_path / "killed" / "metrics.csv").open() as file:
        assert [float(row["step"]) for row in csv.DictReader(file)] == list(range(5, 41, 5))
    assert not state.parent.exists()


def test_two_processes_have_the_gradients_of_one_with_the_double_batch(tmp_path):
    """Weights after a few steps: every gradient went into them. The samples are observed to different shares."""
    series = half_observed().series[0]
    folder = exported(tmp_path / "data")
    np.save(folder / "square.observed.npy", series.observed)
    run = command(folder, tmp_path / "two", "--steps", "6", "--validate-every", "3")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    two = subprocess.run([*launcher, *run[1:]], capture_output=True, text=True, env=environment, timeout=180)
    assert two.returncode == 0, two.stderr[-3000:]
    one = subprocess.run(
        command(folder, tmp_path / "one", "--steps", "6", "--validate-every", "3", "--batch", "4"),
        capture_output=True, text=True, env=environment, timeout=120,
    )  # fmt: skip
    assert one.returncode == 0, one.stderr[-3000:]
    a, b = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--network", "dc"], "rain of 120 km/h moves by"),
        (["--network", "unet", "--network-config", "{}", "--feed", "teacher"], "does not feed on its output"),
        (["--network-config", '{"colour": 1}'], "colour"),
        (["--crop", "64"], "smallest grid has a side of 32"),
        (["--device", "cuda"], "no CUDA device"),
        (["--loss", "dice"], "segmentation head"),
    ],
)
def test_the_command_says_what_does_not_fit(tmp_path, more, says):
    if says.startswith("no CUDA") and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here, so the command rightly uses it")
    data = exported(tmp_path / "data")
    if "dc" in more:
        more = [*more, "--network-config", '{"taps": 21, "input_frames": 3}']
    done = subprocess.run(
        command(data, tmp_path / "out", *more), capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    )  # fmt: skip
    assert done.returncode == 2 and says in done.stderr, done.stderr
