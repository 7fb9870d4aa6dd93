"""The radar experiment of Wu 2019 (table 4.2, figure 4.5) on any rain: four networks, 10 frames -> 5, 101 x 101.

    nowcast train DOMAIN --data-only DATA --crop 101 --lead-frames 5 --set domains.DOMAIN.input_frames=10
    python -m models.experiments.radar DATA --out DIR                 # or, with the CIKM 2017 file: train.txt --out DIR

The numbers are not those of the thesis: other rain.
"""

import argparse
import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models import checkpoint, zoo
from models.baselines.last_frame import LastFrame
from models.baselines.optical_flow import OpticalFlow
from models.contract import Method
from models.experiments.evaluation import errors_per_step, picture
from models.losses import mse
from models.recipe import fingerprint
from models.training import train
from models.training_config import TrainingConfig
from models.windows import VALIDATION, FrameSeries, Sample, Windows, load_series

ROWS = ("fc_lstm_radar", "wu2019_radar_1l", "wu2019_radar_2l", "wu2019_radar_3l")
INPUT, LEADS, SIDE = 10, 5, 101
TEST = "test"
CIKM_HEIGHTS = 4
CORRELATION_LIMIT = 0.75


@dataclass(frozen=True)
class Sequences:
    """Training and validation windows, and later ones for the test (``models.windows.Samples``)."""

    early: Windows
    late: Windows

    def count(self, part: str) -> int:
        """Windows of the part."""
        return self.late.count(VALIDATION) if part == TEST else self.early.count(part)

    def sample(self, part: str, number: int) -> Sample:
        """See ``models.windows.Samples``."""
        return self.late.sample(VALIDATION, number) if part == TEST else self.early.sample(part, number)


def split(series: list[FrameSeries], side: int, seed: int) -> Sequences:
    """By time: the newest fifth of each series' windows is the test, then come validation and training.

    Windows that share a frame with a later part are left out.

    Raises:
        ValueError: nothing is left for one of the parts.
    """
    length = INPUT + LEADS
    early, late = [], []
    for one in series:
        starts = np.sort(np.concatenate((one.train, one.validation)))
        count = len(starts)
        test = starts[count - count // 5 :]
        before = starts[starts + length <= test[0]] if len(test) else starts
        validation = before[max(len(before) - round(0.15 * count), 0) :]
        training = before[before + length <= validation[0]] if len(validation) else before
        early.append(replace(one, train=training, validation=validation))
        late.append(replace(one, train=training, validation=test))
    for part, windows in (("training", early), ("validation", early), ("test", late)):
        if not any(len(one.train if part == "training" else one.validation) for one in windows):
            raise ValueError(f"no {part} windows of {length} frames: the data are too short")
    return Sequences(*(Windows(part, length, side, seed) for part in (early, late)))


def read_cikm(path: Path, height: int, limit: int) -> FrameSeries:
    """Sequences of a CIKM 2017 file, one altitude, those whose first and last frame differ; each stands by itself.

    Raises:
        ValueError: names the line that is not 15 frames of 4 altitudes of 101 x 101.
    """
    frames = INPUT + LEADS
    kept: list[NDArray[np.uint8]] = []
    for number, sequence in itertools.islice(_cikm_lines(path, height), limit):
        p, q = sequence[0].astype(float), sequence[-1].astype(float)
        power = (p**2).sum() * (q**2).sum()
        if power and (p * q).sum() / np.sqrt(power + 1e-9) <= CORRELATION_LIMIT:
            kept.append(sequence)
        if number % 1000 == 0:
            print(f"{path}: line {number}, {len(kept)} kept", flush=True)  # noqa: T201
    if not kept:
        raise ValueError(f"{path}: no sequence whose first and last frame differ")
    pixels = np.concatenate(kept)[:, None]
    starts, cut = np.arange(len(kept)) * frames, round(0.7 * len(kept))
    return FrameSeries(pixels, np.ones((len(pixels), SIDE, SIDE), bool), starts[:cut], starts[cut:])


def _cikm_lines(path: Path, height: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    wanted = (INPUT + LEADS) * CIKM_HEIGHTS * SIDE * SIDE
    with path.open() as file:
        for number, line in enumerate(iter(lambda: file.readline(8 * wanted), ""), start=1):
            values = np.array(line.rsplit(",", 1)[-1].split(), dtype=np.int64)
            if values.size != wanted or values.min() < 0 or values.max() > 255:
                raise ValueError(f"{path}: line {number} has {values.size} pixels, {wanted} of 0-255 were expected")
            yield number, values.reshape(INPUT + LEADS, CIKM_HEIGHTS, SIDE, SIDE)[:, height].astype(np.uint8)


def run(name: str, changes: dict[str, Any], samples: Sequences, out: Path, config: TrainingConfig, test: int) -> None:
    """Train and test one row; write its checkpoint and ``result.json``."""
    torch.manual_seed(config.seed)
    network = zoo.build(name, changes).to("cuda" if torch.cuda.is_available() else "cpu")

    def report(step: int, row: dict[str, float]) -> None:
        if "validation_mse" in row:
            figures = f"validation MSE {row['validation_mse']:.1f}, {row['seconds'] / 60:.1f} min"
            print(f"{name} step {step}: {figures}", flush=True)  # noqa: T201

    data = fingerprint([*samples.early.series, *samples.late.series])
    about = {
        "network": name,
        "configuration": json.loads(json.dumps(changes)),
        "data": data,
        "side": samples.early.crop,
    }
    history = train(network, samples, mse, config, report, folder=out / name / "state", about=about)
    print(f"{name}: testing on {test} squares", flush=True)  # noqa: T201
    parameters = sum(p.numel() for p in network.parameters())
    _write(out / name, name, network, samples, test, config, {"parameters": parameters, "history": history})
    card = checkpoint.Card(
        name=name, network=name, network_config=changes, dbz_min=-10.0, dbz_max=60.0, cadences_minutes=[],
        spacing_m=[0, 0], product="radar_experiment", training=asdict(config),
    )  # fmt: skip
    checkpoint.replace(out / name / "model", network, card)


def _write(
    folder: Path, name: str, method: Method, samples: Sequences, test: int, config: TrainingConfig, more: dict[str, Any]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tested = errors_per_step(method, samples, TEST, test, INPUT, config.batch)
    result = {
        "network": name,
        "tested_on": test,
        "test_windows": samples.count(TEST),
        "per_step": tested,
        "parameters": 0,
        **more,
    }
    (folder / "result.json").write_text(json.dumps(result, indent=2) + "\n")


def table(out: Path) -> str:
    """Mean errors of each method, and the MSE of each step; a markdown table."""
    results = [json.loads(path.read_text()) for path in sorted(out.glob("*/result.json"))]
    steps = len(results[0]["per_step"]["mse"])
    lines = [
        "| method | parameters | MSE | MAE | correlation | " + " | ".join(f"MSE +{k + 1}" for k in range(steps)) + " |",
        "|---" * (5 + steps) + "|",
    ]
    for r in sorted(results, key=lambda r: float(np.mean(r["per_step"]["mse"]))):
        each = r["per_step"]
        mean = [f"{np.mean(each['mse']):.1f}", f"{np.mean(each['mae']):.2f}", f"{np.mean(each['correlation']):.3f}"]
        cells = [r["network"], f"{r['parameters']:,}", *mean, *(f"{value:.1f}" for value in each["mse"])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cases(samples: Sequences, out: Path, side: int) -> None:
    """Pictures of the test sequences whose rain grows and decays most, as in figure 4.5."""
    all_tests = [samples.sample(TEST, n) for n in range(min(200, 4 * samples.count(TEST)))]
    growth = [s.pixels[-1].astype(float).mean() - s.pixels[INPUT - 1].astype(float).mean() for s in all_tests]
    methods: list[tuple[str, Method]] = [("last_frame", LastFrame()), ("optical_flow", OpticalFlow())]
    methods += [(name, checkpoint.load(out / name / "model")[0]) for name in ROWS if (out / name / "model").exists()]
    for case, which in (("growing", int(np.argmax(growth))), ("decaying", int(np.argmin(growth)))):
        one = all_tests[which]
        frames = torch.from_numpy(np.ascontiguousarray(one.pixels)).float()[None] / 255
        seen = torch.from_numpy(np.ascontiguousarray(one.observed))[None, :, None]
        rows: list[tuple[str, Any]] = [("observed", one.pixels[:, 0])]
        with torch.no_grad():
            for name, method in methods:
                made = method(frames[:, :INPUT], seen[:, :INPUT], LEADS).values
                rows.append((name, made[0, :, 0].numpy() * 255))
        title = f"{case} rain, {side} x {side} cells, 0-255: frames to step 0 are the input"
        picture(out / f"{case}.png", rows, INPUT, title)


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m models.experiments.radar",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("data", type=Path, help="folder of `nowcast train --data-only`, or a CIKM 2017 text file")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="NETWORK")
    parser.add_argument(
        "--config", type=json.loads, default={}, metavar="JSON", help="NETWORK: changes, to run smaller"
    )
    parser.add_argument("--side", type=int, default=SIDE, help="of the squares")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--minutes", type=float, default=1e9, help="of each row")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument(
        "--feed", choices=("own", "teacher", "scheduled"), default="teacher", help="the thesis: teacher"
    )
    parser.add_argument("--validate-every", type=int, default=500)
    parser.add_argument("--patience", type=int, default=5)
    parser.add_argument("--test", type=int, default=500, help="test squares, from all test windows in turn")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cikm-height", type=int, choices=range(CIKM_HEIGHTS), default=2, help="altitude, 0 is lowest")
    given = parser.parse_args(arguments)
    if given.threads < 1 or given.test < 1 or given.side < 8:
        parser.error("--threads and --test must be at least 1, --side at least 8")
    torch.set_num_threads(given.threads)
    config = TrainingConfig(
        INPUT, LEADS, given.batch, steps=given.steps, feed=given.feed, validate_every=given.validate_every,
        patience=given.patience, minutes=given.minutes, bf16=given.bf16, constant_rate=True,
    )  # fmt: skip
    try:
        if given.data.is_file():
            series = [read_cikm(given.data, given.cikm_height, limit=10_000)]
        else:
            found, about = load_series(given.data)
            if sum(about.get("window", [0])) != INPUT + LEADS:
                raise ValueError(
                    f"{given.data}: its windows are {about.get('window')} frames, {INPUT} and {LEADS} are needed"
                )
            series = list(found.values())
        samples = split(series, given.side, config.seed)
        for name, method in (("last_frame", LastFrame()), ("optical_flow", OpticalFlow())):
            _write(given.out / name, name, method, samples, given.test, config, {})
        for name in given.rows:
            grid = zoo.fitted(name, height=given.side, width=given.side)
            run(name, {**grid, **given.config.get(name, {})}, samples, given.out, config, given.test)
        cases(samples, given.out, given.side)
        print(table(given.out))  # noqa: T201
    except (OSError, ValueError, checkpoint.CheckpointError) as err:
        parser.exit(2, f"error: {err}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
