"""``python -m models.training``: exported data, a kill and going on, two processes, and what it refuses."""

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

from models.windows import load_series, save_series
from tests.models.test_training import half_observed, moving_square

PROJECT = Path(__file__).parents[2]


def exported(folder: Path) -> Path:
    about = {
        "dbz_min": -10.0, "dbz_max": 60.0, "cadences_minutes": [10], "spacing_m": [1000.0, 1000.0],
        "product": "surface_rain", "classes": [0.4, 0.54, 0.63, 0.7, 0.81], "window": [3, 2], "notes": {},
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
    np.save(folder / "square.observed.npy", moving_square().observed[1:])
    with pytest.raises(ValueError, match=r"square\.observed\.npy: \(29, 32, 32\)"):
        load_series(folder)
    np.save(folder / "square.observed.npy", moving_square().observed)
    for part, starts, says in (
        ("validation", [24, 26], "begin at 24 to 26 of 30"),
        ("validation", [11], "share frames"),
        ("train", [-1], "begin at -1"),
    ):
        kept = np.load(folder / f"square.{part}.npy")
        np.save(folder / f"square.{part}.npy", np.array(starts, np.int64))
        with pytest.raises(ValueError, match=says):
            load_series(folder)
        np.save(folder / f"square.{part}.npy", kept)
    np.save(folder / "square.pixels.npy", moving_square().pixels.astype(np.uint16))
    with pytest.raises(ValueError, match="uint16, not pixels"):
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
        (["--network-config", '{"colour": 1}'], "convlstm cannot be built with"),
        (["--network-config", "[1]"], "must be a JSON object"),
        (["--network-config", '{"widths": [-3]}'], "cannot be built with"),
        (["--network-config", '{"patch": 0}'], "cannot be built with"),
        (["--network-config", '{"widths": [100000000, 100000000]}'], "cannot be built with"),
        (["--network-config", '{"channels": 2}'], "the data have 1 channels"),
        (["--lead-frames", "6"], "9 frames are wanted, the windows were chosen for 5"),
        (["--steps", "0"], "steps must be at least 1"),
        (["--learning-rate", "nan"], "learning_rate must be positive and finite"),
        (["--adversarial", "nan"], "adversarial and seed must not be negative"),
        (["--gradient-weight", "-3"], "gradient_weight must be"),
        (["--crop", "1"], "crop must be at least 8"),
        (["--threads", "-1"], "--threads must not be negative"),
        (["--device", "tpu"], "there are auto, cpu"),
        (["--out", "/proc/x/m"], "/proc/x"),
        (["--crop", "64"], "smallest grid has a side of 32"),
        (["--device", "cuda:77"], "no CUDA device"),
        (["--loss", "dice"], "segmentation head"),
    ],
)
def test_the_command_says_what_does_not_fit(tmp_path, more, says):
    data = exported(tmp_path / "data")
    if "dc" in more:
        more = [*more, "--network-config", '{"taps": 21, "input_frames": 3}']
    done = subprocess.run(
        command(data, tmp_path / "out", *more), capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    )  # fmt: skip
    assert done.returncode == 2 and says in done.stderr, done.stderr
