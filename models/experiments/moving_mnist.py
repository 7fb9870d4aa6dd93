"""Moving MNIST of Wu 2019, table 4.1: one command a row, any network of the zoo.

python -m models.experiments.moving_mnist train NETWORK --mnist train-images-idx3-ubyte.gz --out DIR
python -m models.experiments.moving_mnist table --out DIR
"""

import argparse
import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models import checkpoint, zoo
from models.baselines.last_frame import LastFrame
from models.contract import Method
from models.experiments.evaluation import errors_per_step, picture
from models.losses import mse
from models.moving_mnist import TEST, MovingMNIST, MovingMNISTConfig, read_idx
from models.training import train
from models.training_config import TrainingConfig
from models.windows import TRAIN

# train, validation and test MSE, test MAE on 0-255 pixels: Wu 2019, table 4.1
THESIS = {
    "fc_lstm_mnist": (814.40, 838.52, 880.46, 10.42),
    "wu2019_mnist_1l": (694.40, 734.76, 771.51, 8.56),
    "wu2019_mnist_2l": (631.53, 659.33, 692.31, 7.69),
    "wu2019_mnist_3l": (582.79, 625.55, 656.84, 7.26),
}
INPUT, LEADS = 7, 7


def run(
    name: str,
    changes: dict[str, Any],
    mnist: Path,
    out: Path,
    config: TrainingConfig,
    data: MovingMNISTConfig,
    test: int,
) -> None:
    """Train one network, test it on two digits and, out of its domain, on three; write checkpoint and result.

    Args:
        changes: of the network's configuration, for reduced runs.
        test: sequences to test on.
    """
    images = read_idx(mnist)
    samples = MovingMNIST(images, data)
    torch.manual_seed(config.seed)
    task = zoo.fitted(name, input_frames=min(INPUT, 4) if name == "dc" else INPUT, lead_frames=LEADS)
    task |= changes
    network = zoo.build(name, task).to("cuda" if torch.cuda.is_available() else "cpu")

    def report(step: int, row: dict[str, float]) -> None:
        if "validation_mse" in row:
            figures = f"validation MSE {row['validation_mse']:.1f}, {row['seconds'] / 60:.1f} min"
            print(f"{name} step {step}: {figures}", flush=True)  # noqa: T201

    folder = out / name
    history = train(
        network,
        samples,
        mse,
        config,
        report,
        folder=folder / "state",
        about={
            "network": name,
            "configuration": task,
            "data": str(data),
            "images": hashlib.sha256(samples.images.tobytes()).hexdigest(),
        },
    )
    print(f"{name}: testing on 2 x {test} sequences", flush=True)  # noqa: T201
    three = MovingMNIST(images, replace(data, digits=3))
    tested = {
        "test": errors_per_step(network, samples, TEST, test, INPUT, config.batch, config.bf16),
        "train": errors_per_step(network, samples, TRAIN, min(test, 200), INPUT, config.batch, config.bf16),
        "three digits": errors_per_step(network, three, TEST, test, INPUT, config.batch, config.bf16),
    }
    best = min(history, key=lambda row: row["validation_loss"])
    result = {
        "network": name,
        "configuration": changes,
        "parameters": sum(p.numel() for p in network.parameters()),
        "steps": history[-1]["step"],
        "minutes": history[-1]["seconds"] / 60,
        "sequences_seen": history[-1]["step"] * config.batch * config.accumulate,
        "validation_mse": best["validation_mse"],
        "tested_on": test,
        **{part: {key: float(np.mean(values)) for key, values in found.items()} for part, found in tested.items()},
        "per_step": tested,
        "training": asdict(config),
    }
    (folder / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    card = checkpoint.Card(
        name=name, network=name, network_config=task, dbz_min=0.0, dbz_max=255.0, cadences_minutes=[], spacing_m=[0, 0],
        product="moving_mnist", training={"data": str(data), "validation_mse": best["validation_mse"]},
    )  # fmt: skip
    checkpoint.replace(folder / "model", network, card)


def table(out: Path) -> str:
    """All results below ``out`` beside the thesis, best test error first; a markdown table."""
    results = [json.loads(path.read_text()) for path in sorted(out.glob("*/result.json"))]
    if not results:
        raise ValueError(f"{out}: there are no results yet")
    lines = [
        "| network | parameters | minutes | sequences | validation MSE | test MSE | test MAE | 3 digits MSE | thesis |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in sorted(results, key=lambda r: r["test"]["mse"]):
        reduced = r["configuration"] or r["tested_on"] < MovingMNISTConfig().test  # not to be compared
        thesis = None if reduced else THESIS.get(r["network"])
        cells = [
            r["network"], f"{r['parameters']:,}", f"{r['minutes']:.0f}", f"{r['sequences_seen']:.0f}",
            f"{r['validation_mse']:.1f}", f"{r['test']['mse']:.1f}", f"{r['test']['mae']:.2f}",
            f"{r['three digits']['mse']:.1f}", f"{thesis[2]:.2f}" if thesis else "",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def show(mnist: Path, out: Path, data: MovingMNISTConfig, which: int) -> None:
    """Picture as in figure 4.1: input, truth, and the forecast of each network below ``out``."""
    samples = MovingMNIST(read_idx(mnist), data)
    one = samples.sample(TEST, which)
    frames = torch.from_numpy(one.pixels).float()[None] / 255
    seen = torch.ones(1, INPUT, 1, data.size, data.size, dtype=torch.bool)
    rows: list[tuple[str, Any]] = [("truth", one.pixels[:, 0])]
    methods: list[tuple[str, Method]] = [("last_frame", LastFrame())]
    methods += [(p.parent.name, checkpoint.load(p)[0]) for p in sorted(out.glob("*/model"))]
    for name, method in methods:
        with torch.no_grad():
            rows.append((name, method(frames[:, :INPUT], seen, LEADS).values[0, :, 0].numpy() * 255))
    picture(
        out / f"sequence_{which}.png",
        rows,
        INPUT,
        f"Moving MNIST, test sequence {which}: frames to step 0 are the input",
    )


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m models.experiments.moving_mnist", description=__doc__.splitlines()[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("train", help="train and test one network; goes on where a killed run was")
    one.add_argument("network", choices=sorted(zoo.ZOO), metavar="NETWORK", help="see `nowcast networks list`")
    one.add_argument("--config", type=json.loads, default={}, metavar="JSON", help="changes of its configuration")
    one.add_argument("--steps", type=int, default=100_000)
    one.add_argument("--minutes", type=float, default=1e9)
    one.add_argument("--batch", type=int, default=8)
    one.add_argument("--accumulate", type=int, default=1)
    one.add_argument("--learning-rate", type=float, default=1e-3)
    one.add_argument("--constant-rate", action="store_true", help="no cosine: for runs that end by --minutes")
    one.add_argument("--feed", choices=("own", "teacher", "scheduled"), default="own")
    one.add_argument("--validate-every", type=int, default=1000)
    one.add_argument("--validation-samples", type=int, default=2000)
    one.add_argument("--patience", type=int, default=1000)
    one.add_argument("--test", type=int, default=2000, help="test sequences")
    one.add_argument("--bf16", action="store_true")
    one.add_argument("--threads", type=int, default=1, help="of the CPU")
    listed = commands.add_parser("table", help="all results beside the thesis")
    shown = commands.add_parser("picture", help="a test sequence by all networks, as in figure 4.1")
    shown.add_argument("--which", type=int, default=0)
    for sub in (one, shown):
        sub.add_argument("--mnist", type=Path, required=True, help="train-images-idx3-ubyte, plain or .gz")
    for sub in (one, listed, shown):
        sub.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    data = MovingMNISTConfig()
    try:
        if given.command == "table":
            print(table(given.out))  # noqa: T201
        elif given.command == "picture":
            show(given.mnist, given.out, data, given.which)
        else:
            if given.threads < 1 or given.test < 1:
                raise ValueError("--threads and --test must be at least 1")
            torch.set_num_threads(given.threads)
            config = TrainingConfig(
                INPUT, LEADS, given.batch, given.accumulate, given.steps, given.learning_rate, given.constant_rate,
                feed=given.feed, validate_every=given.validate_every, validation_samples=given.validation_samples,
                patience=given.patience, minutes=given.minutes, bf16=given.bf16,
            )  # fmt: skip
            run(given.network, given.config, given.mnist, given.out, config, data, given.test)
    except (OSError, TypeError, ValueError, checkpoint.CheckpointError) as err:
        parser.exit(2, f"error: {err}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
