"""Everything a training run needs to go on after it was killed, in one file that is replaced whole."""

import hashlib
import json
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from models.faults import is_of_machine

log = logging.getLogger(__name__)

FILE = "state.safetensors"


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        step: steps done.
        best: lowest validation loss.
        stale: validations since.
        losses: training losses since the last validation.
        seconds: time spent, over all starts.
        history: a row for each validation.
    """

    step: int = 0
    best: float = float("inf")
    stale: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)


def save(folder: Path, run: dict[str, Any], progress: Progress, parts: dict[str, nn.Module | torch.optim.Adam]) -> None:
    """Write the state of modules and optimisers; a reader sees the old file or the new one, never a part."""
    tensors: dict[str, Tensor] = {}
    for name, part in parts.items():
        if isinstance(part, nn.Module):
            tensors |= {f"{name}/{key}": value for key, value in part.state_dict().items()}
        else:
            for number, values in part.state_dict()["state"].items():
                tensors |= {f"{name}/{number}/{key}": value for key, value in values.items()}
    folder.mkdir(parents=True, exist_ok=True)
    half = folder / f".{FILE}.{os.getpid()}"
    tensors = {key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}
    told = {"run": json.dumps(run, sort_keys=True), "progress": json.dumps(vars(progress))}
    save_file(tensors, half, metadata={**told, "sha256": _digest(tensors, told)})
    with half.open("rb") as file:
        os.fsync(file.fileno())
    half.replace(folder / FILE)


def _digest(tensors: dict[str, Tensor], told: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps([told["run"], told["progress"]]).encode())
    for key in sorted(tensors):
        digest.update(key.encode())
        digest.update(tensors[key].contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load(folder: Path, run: dict[str, Any], parts: dict[str, nn.Module | torch.optim.Adam]) -> Progress | None:
    """Go on from what ``save`` wrote; None if there is nothing, or nothing that can be read.

    Raises:
        ValueError: the file belongs to another run; says what differs.
        OSError: the machine cannot read it now.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        with path.open("rb") as probe:  # safetensors calls a file absent that the machine cannot open
            probe.read(1)
        with safe_open(path, "pt") as file:
            told = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a dict
        if _digest(tensors, told) != told["sha256"]:
            raise ValueError("its checksum is wrong")
        begun, progress = json.loads(told["run"]), Progress(**json.loads(told["progress"]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as err:
        if is_of_machine(err):
            raise
        log.warning("%s: not a readable state of training, which starts anew: %s", path, err)
        return None
    differing = [key for key in sorted({*begun, *run}) if begun.get(key) != run.get(key)]
    if differing:
        both = "; ".join(f"{key} was {begun.get(key)!r}, is {run.get(key)!r}" for key in differing)
        raise ValueError(f"{path} is of another run ({both}); remove its folder to start anew")
    for name, part in parts.items():
        mine = {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}
        if isinstance(part, nn.Module):
            part.load_state_dict(mine)
        else:
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in mine.items():
                number, what = key.split("/")
                state.setdefault(int(number), {})[what] = value
            part.load_state_dict({**part.state_dict(), "state": state})
    return progress
