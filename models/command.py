"""``python -m models.training``: train on exported data where torch, numpy and safetensors are.

nowcast dataset build DATA DOMAIN...         # where the archive is; in the moving frame, or
nowcast train DOMAIN --data-only DATA        # in the fixed frame
python -m models.training DATA --out model   # here; or: torchrun --nproc-per-node 4 -m models.training ...
"""

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist

from models import dataset, losses, zoo
from models.checkpoint import CheckpointError
from models.forecaster import resolved_device
from models.recipe import About, Made, Recipe, make, make_moving
from models.training import Report
from models.training_config import FEEDS, TrainingConfig
from models.windows import load_series


def parser() -> argparse.ArgumentParser:
    """Command line of the engine."""
    given = argparse.ArgumentParser(
        prog="python -m models.training",
        description="Train a network on exported frames.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    task = TrainingConfig()
    given.add_argument("data", type=Path, help="folder that `nowcast dataset build` wrote, or `train --data-only`")
    given.add_argument("--out", type=Path, required=True, help="folder of the model; its name is the model's")
    given.add_argument("--network", default="convlstm", choices=sorted(zoo.ZOO), metavar="NAME")
    given.add_argument("--network-config", type=json.loads, default={}, metavar="JSON", help="changes of its zoo entry")
    given.add_argument("--loss", default="", choices=("", *losses.NAMES), help="empty: what fits the head")
    given.add_argument("--gradient-weight", type=float, default=0.0, help="of a gradient difference term")
    given.add_argument("--crop", type=int, default=128, help="side of the random squares, cells")
    given.add_argument("--input-frames", type=int, default=0, help="0: as exported")
    given.add_argument("--lead-frames", type=int, default=0, help="0: as exported")
    given.add_argument("--batch", type=int, default=task.batch, help="samples in a pass, on each device")
    given.add_argument("--accumulate", type=int, default=1, help="passes in a step")
    given.add_argument("--steps", type=int, default=task.steps)
    given.add_argument("--learning-rate", type=float, default=task.learning_rate)
    given.add_argument("--constant-rate", action="store_true", help="do not let it fall")
    given.add_argument("--clip-norm", type=float, default=task.clip_norm)
    given.add_argument("--feed", choices=FEEDS, default=task.feed, help="own output, truth, or scheduled in between")
    given.add_argument("--validate-every", type=int, default=task.validate_every)
    given.add_argument("--validation-samples", type=int, default=task.validation_samples)
    given.add_argument("--patience", type=int, default=task.patience)
    given.add_argument("--minutes", type=float, default=task.minutes)
    given.add_argument("--leads-in-step", type=int, default=0, help="learn from so many leads a step; 0: all")
    given.add_argument("--seed", type=int, default=task.seed)
    given.add_argument("--bf16", action="store_true")
    given.add_argument("--adversarial", type=float, default=0.0, help="weight of an adversarial term")
    given.add_argument("--threads", type=int, default=0, help="of the CPU; 0: all")
    given.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    return given


def main(arguments: list[str] | None = None) -> int:
    """Train; returns the exit code."""
    given = parser().parse_args(arguments)
    if given.threads < 0:
        return _fail(f"--threads must not be negative, got {given.threads}")
    if given.threads:
        torch.set_num_threads(given.threads)
    try:
        device = str(resolved_device(given.device))
    except ValueError as err:
        return _fail(str(err))
    distributed = "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1
    if distributed:
        if device.startswith("cuda"):
            device = f"cuda:{os.environ['LOCAL_RANK']}"
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    first = not distributed or dist.get_rank() == 0
    try:
        report = reporter(given.steps) if first else lambda step, row: None
        train = _moving if (given.data / "card.json").is_file() else _fixed
        made = train(given, report, device)
        if distributed:
            dist.barrier()  # whoever leaves early tears the others' connections
    except (KeyError, TypeError, ValueError, CheckpointError) as err:
        return _fail(str(err.args[0] if isinstance(err, KeyError) else err))
    except OSError as err:
        return _fail(f"{err.filename or given.out}: {err.strerror}")
    except KeyboardInterrupt:
        _fail("interrupted; the same command goes on from the last validation")
        return 130
    finally:
        if distributed:
            dist.destroy_process_group()
    if first:
        print(made.folder)  # noqa: T201
    return 0


def _fixed(given: argparse.Namespace, report: Report, device: str) -> Made:
    series, told = load_series(given.data)
    try:
        about = About(**{key: value for key, value in told.items() if key != "series"})
    except (TypeError, ValueError) as err:
        raise ValueError(f"{given.data / 'about.json'}: {err}") from err
    return make(_recipe(given, about.window), list(series.values()), about, given.out, given.out.name, report, device)


def _moving(given: argparse.Namespace, report: Report, device: str) -> Made:
    series, card = dataset.load(given.data)
    wanted = [int(card[key]) for key in ("input_frames", "lead_frames")]
    return make_moving(_recipe(given, wanted), series, card, given.out, given.out.name, report, device)


def _recipe(given: argparse.Namespace, window: list[int]) -> Recipe:
    """What the options ask for; input and lead frames as exported, unless they say otherwise."""
    given.input_frames, given.lead_frames = (
        asked or exported for asked, exported in zip((given.input_frames, given.lead_frames), window, strict=True)
    )
    names = {field: getattr(given, field) for field in asdict(TrainingConfig())}
    return Recipe(
        given.network, given.network_config, given.loss, given.gradient_weight, given.crop, TrainingConfig(**names)
    )


def reporter(steps: int) -> Report:
    """A progress bar where rich is and a person looks, else a line for each validation."""

    def lines(step: int, row: dict[str, float]) -> None:
        if "validation_loss" in row:
            figures = ", ".join(f"{key} {value:.5g}" for key, value in row.items() if key != "step")
            print(f"step {step}/{steps}: {figures}", file=sys.stderr, flush=True)  # noqa: T201

    if not sys.stderr.isatty():
        return lines
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        return lines
    bar = Progress(console=Console(stderr=True))
    task = bar.add_task("training", total=steps)
    bar.start()

    def show(step: int, row: dict[str, float]) -> None:
        loss = row.get("validation_loss")
        text = "training" if loss is None else f"validation loss {loss:.5g}"
        bar.update(task, completed=step, description=text)
        if step == steps:
            bar.stop()

    return show


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)  # noqa: T201
    return 2
