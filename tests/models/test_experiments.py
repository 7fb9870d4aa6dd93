"""Moving MNIST and the experiments of the literature, on digits and rain small enough to run in seconds."""

import gzip
import json
import struct

import numpy as np
import pytest

from models.baselines.last_frame import LastFrame
from models.experiments import moving_mnist, radar
from models.experiments.evaluation import errors_per_step
from models.moving_mnist import DIGIT, TEST, MovingMNIST, MovingMNISTConfig, read_idx, trajectory
from models.windows import TRAIN, VALIDATION, FrameSeries, Sample

FREE = 64 - DIGIT


def digits(count: int = 500) -> np.ndarray:
    """Squares of different brightness and size in place of digits."""
    images = np.zeros((count, DIGIT, DIGIT), np.uint8)
    for n in range(count):
        edge = 4 + n % 8
        images[n, edge:-edge, edge:-edge] = 60 + n % 190
    return images


def idx_file(path, images=None, magic=0x803, claimed=None, cut=0):
    images = digits() if images is None else images
    header = struct.pack(">4I", magic, claimed or len(images), *images.shape[1:])
    data = header + images.tobytes()
    data = data[: len(data) - cut]
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("config", [MovingMNISTConfig(), MovingMNISTConfig(slowest=3.6, fastest=3.6, frames=20)])
def test_digits_keep_their_speed_and_turn_round_at_the_walls(config):
    bounces = 0
    for seed in range(60):
        path = trajectory(np.random.default_rng(seed), config)
        assert path.min() >= 0 and path.max() <= FREE
        steps = np.diff(path, axis=0)
        away = (path[1:] > 0) & (path[1:] < FREE) & (path[:-1] > 0) & (path[:-1] < FREE)
        whole = away.all(axis=1)
        speeds = np.hypot(*steps[whole].T)
        if len(speeds):
            assert np.ptp(speeds) < 1e-9 and config.slowest - 1e-9 <= speeds[0] <= config.fastest + 1e-9
        for axis in (0, 1):
            at_wall = np.flatnonzero((path[1:-1, axis] == 0) | (path[1:-1, axis] == FREE)) + 1
            for t in at_wall:
                into, out = path[t, axis] - path[t - 1, axis], path[t + 1, axis] - path[t, axis]
                assert into * out <= 0 and abs(out) >= abs(into) - 1e-9  # stopped at the wall, back at full speed
                bounces += 1
    assert bounces > 20


def test_frames_show_the_digits_where_the_paths_say():
    images = digits()
    samples = MovingMNIST(images, MovingMNISTConfig(digits=3))
    frames, paths = samples.sequence(TEST, 5)
    assert frames.shape == (14, 64, 64) and paths.shape == (3, 14, 2)
    for t in (0, 7, 13):
        covered = np.zeros((64, 64), bool)
        for y, x in np.rint(paths[:, t]).astype(int):
            covered[y : y + DIGIT, x : x + DIGIT] = True
        assert not frames[t][~covered].any() and frames[t].any()


def test_sequences_are_functions_of_seed_part_and_number():
    one, same = (MovingMNIST(digits(), MovingMNISTConfig(train=20)) for _ in range(2))
    assert np.array_equal(one.sample(TRAIN, 33).pixels, same.sample(TRAIN, 33).pixels)
    first = {one.sample(TRAIN, n).pixels.tobytes() for n in range(20)}
    second = {one.sample(TRAIN, n).pixels.tobytes() for n in range(20, 40)}
    assert len(first) == 20 and first == second  # every sequence once, then again in another order
    assert [one.sample(TRAIN, n).pixels.tobytes() for n in range(20)] != [
        one.sample(TRAIN, n).pixels.tobytes() for n in range(20, 40)
    ]
    assert not first & {one.sample(part, n).pixels.tobytes() for part in (VALIDATION, TEST) for n in range(50)}


def test_idx_files_are_read_plain_and_gzipped(tmp_path):
    for name in ("images", "images.gz"):
        assert np.array_equal(read_idx(idx_file(tmp_path / name)), digits())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"magic": 0x801}, "magic 0x801"),
        ({"cut": 10}, "bytes of pixels, 500 images take"),
        ({"claimed": 2**31}, "bytes of pixels"),
        ({"images": np.zeros((5, 20, 20), np.uint8)}, "20 x 20"),
    ],
)
def test_what_is_no_idx_file_is_refused_by_name(tmp_path, changes, says):
    path = idx_file(tmp_path / "images", **changes)
    with pytest.raises(ValueError, match=says) as refused:
        read_idx(path)
    assert str(path) in str(refused.value)


def test_absent_empty_and_cut_gzip_files_are_refused(tmp_path):
    whole = idx_file(tmp_path / "images.gz").read_bytes()
    (tmp_path / "cut.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty").write_bytes(b"")
    for name in ("absent", "empty", "cut.gz"):
        with pytest.raises(ValueError, match=name):
            read_idx(tmp_path / name)


class TwoFrames:
    """One sequence of three frames of two cells: pixels 0, 100; then 50, 100; then 50, 0, of which one is not seen."""

    def count(self, part):
        return 1

    def sample(self, part, number):
        pixels = np.array([[0, 100], [50, 100], [50, 0]], np.uint8).reshape(3, 1, 1, 2)
        return Sample(pixels, np.array([[1, 1], [1, 1], [1, 0]], bool).reshape(3, 1, 2))


def test_errors_per_step_by_hand():
    found = errors_per_step(LastFrame(), TwoFrames(), TEST, 1, 1)
    assert found["mse"] == pytest.approx([1250, 2500]) and found["mae"] == pytest.approx([25, 50])
    # (0, 100) with (50, 100): 10000 / (100 * sqrt(12500)); then 0 with 50
    assert found["correlation"] == pytest.approx([0.894427, 0.0], abs=1e-5)


def test_a_row_of_the_mnist_table_is_one_command(tmp_path, capsys):
    mnist = str(idx_file(tmp_path / "images.gz"))
    out = str(tmp_path / "out")
    line = f"train wu2019_mnist_1l --mnist {mnist} --out {out} --steps 2 --batch 2 --validation-samples 2 --test 3"
    small = ["--config", '{"widths": [4]}']
    assert moving_mnist.main([*line.split(), *small]) == 0
    result = json.loads((tmp_path / "out" / "wu2019_mnist_1l" / "result.json").read_text())
    assert result["steps"] == 2 and result["tested_on"] == 3 and len(result["per_step"]["test"]["mse"]) == 7
    assert result["three digits"]["mse"] > result["test"]["mse"]
    assert moving_mnist.main(["table", "--out", out]) == 0
    assert "| wu2019_mnist_1l |" in capsys.readouterr().out
    assert moving_mnist.main(["picture", "--mnist", mnist, "--out", out]) == 0
    assert (tmp_path / "out" / "sequence_0.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(SystemExit) as stopped:
        moving_mnist.main([*line.replace(mnist, "nowhere").split(), *small])
    assert stopped.value.code == 2 and "nowhere" in capsys.readouterr().err


def series(windows: int, side: int = 24) -> FrameSeries:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (windows + 14, 1, side, side), dtype=np.uint8)
    cut = round(0.85 * windows)
    return FrameSeries(pixels, np.ones((windows + 14, side, side), bool), np.arange(cut - 14), np.arange(cut, windows))


def test_no_frame_is_in_two_parts_of_the_radar_experiment():
    samples = radar.split([series(200)], 24, 0)
    early, late = samples.early.series[0], samples.late.series[0]
    parts = (early.train, early.validation, late.validation)
    frames = [{n + k for n in part.tolist() for k in range(15)} for part in parts]
    assert not frames[0] & frames[1] and not frames[1] & frames[2] and not frames[0] & frames[2]
    assert [samples.count(part) for part in (TRAIN, VALIDATION, TEST)] == [len(part) for part in parts]
    assert max(frames[0]) < min(frames[1]) < max(frames[1]) < min(frames[2])
    with pytest.raises(ValueError, match="too short"):
        radar.split([series(30)], 24, 0)


def cikm(path, sequences: int, side: int = 101):
    """Sequences of 15 frames and 4 altitudes; every second one does not change."""
    rng = np.random.default_rng(1)
    with path.open("w") as file:
        for n in range(sequences):
            frames = np.zeros((15, 4, side, side), np.uint8)
            for t in range(15):
                place = 5 * t if n % 2 else 40
                frames[t, 2, 40:60, place : place + 15] = 100 + rng.integers(0, 50)
            file.write(f"train_{n},{n}.5,{' '.join(map(str, frames.ravel()))}\n")
    return path


def test_a_cikm_file_is_filtered_by_correlation_and_a_bad_line_is_named(tmp_path):
    path = cikm(tmp_path / "train.txt", 6)
    read = radar.read_cikm(path, 2, 10)
    assert read.pixels.shape == (3 * 15, 1, 101, 101) and len(read.train) + len(read.validation) == 3
    assert all(n % 15 == 0 for n in read.train)
    with pytest.raises(ValueError, match="no sequence"):
        radar.read_cikm(path, 0, 10)  # nothing at that altitude
    with path.open("a") as file:
        file.write("train_6,1,1 2 3\n")
    with pytest.raises(ValueError, match="line 7 has 3 pixels"):
        radar.read_cikm(path, 2, 10)


def test_the_radar_experiment_is_one_command(tmp_path, capsys):
    from models.windows import save_series

    save_series(tmp_path / "data", {"rain": series(200)}, {"product": "surface_rain", "window": [10, 5]})
    line = f"{tmp_path / 'data'} --out {tmp_path / 'out'} --side 16 --steps 2 --batch 2 --test 4 --validate-every 1"
    small = {name: {"widths": [4] * widths} for name, widths in zip(radar.ROWS, (1, 1, 2, 3), strict=True)}
    assert radar.main([*line.split(), "--config", json.dumps(small)]) == 0
    table = capsys.readouterr().out
    assert all(f"| {name} |" in table for name in (*radar.ROWS, "last_frame", "optical_flow"))
    for case in ("growing", "decaying"):
        assert (tmp_path / "out" / f"{case}.png").read_bytes()[:4] == b"\x89PNG"
