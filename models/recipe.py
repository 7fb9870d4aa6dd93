"""From training data and a choice of network and loss to a checkpoint with its card."""

import contextlib
import fcntl
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from models import checkpoint, dataset, losses, zoo
from models.calibration import Counted, count
from models.checkpoint import Card
from models.dataset import Series
from models.heads import Head
from models.losses import Loss
from models.moving_windows import SPACING_M, MovingWindows
from models.networks.network import Network
from models.training import Report, train
from models.training_config import TrainingConfig
from models.windows import VALIDATION, FrameSeries, Samples, Windows

FASTEST_RAIN_KM_H = 120.0
MOST_CALIBRATED = 500  # samples
# that fit a head, where none is asked for
_LOSSES = {"categorical": "cross_entropy", "segmentation": "dice", "ordinal": "ordinal"}


@dataclass(frozen=True)
class Recipe:
    """What to train, and how.

    Attributes:
        network: name in the zoo.
        network_config: changes of its configuration.
        loss: see ``models.losses.NAMES``; empty is ``balanced`` for values, ``cross_entropy`` for classes and
            ``dice`` for rain or no rain.
        gradient_weight: of a gradient difference term.
        crop: side of the random squares, in cells.
        training: of the engine.
    """

    network: str = "convlstm"
    network_config: dict[str, Any] = field(default_factory=dict)
    loss: str = ""
    gradient_weight: float = 0.0
    crop: int = 128
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        if not isinstance(self.network_config, dict):
            raise ValueError(f"the network's configuration must be a JSON object, got {self.network_config!r}")
        if self.crop < 8:
            raise ValueError(f"crop must be at least 8 cells, got {self.crop}")
        if not 0 <= self.gradient_weight < math.inf:
            raise ValueError(f"gradient_weight must be 0 or positive and finite, got {self.gradient_weight}")


@dataclass(frozen=True)
class About:
    """What the frames are.

    Attributes:
        dbz_min, dbz_max: reflectivity of pixels 0 and 255.
        cadences_minutes, spacing_m: of the domains; all, and smallest and largest.
        product: what one frame is, or what its channels are.
        classes: pixel values (0-1) of 0.5, 2, 5, 10 and 30 mm/h.
        window: input and lead frames that the windows were chosen for; shorter ones fit into them, longer ones do not.
        notes: where they come from; free text and numbers for the card.
    """

    dbz_min: float
    dbz_max: float
    cadences_minutes: list[int]
    spacing_m: list[float]
    product: str | list[str]
    classes: list[float]
    window: list[int]
    notes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        numbers = (self.dbz_min, self.dbz_max, *self.cadences_minutes, *self.spacing_m, *self.classes, *self.window)
        fits = len(self.spacing_m) == 2 and len(self.classes) == 5 and len(self.window) == 2 and self.cadences_minutes
        if not fits or not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
            raise ValueError(
                "dbz_min and dbz_max, cadences_minutes, two of spacing_m, five classes and two of window must be "
                f"finite numbers, got {numbers}"
            )


@dataclass(frozen=True)
class Made:
    """A trained model on disk."""

    folder: Path
    card: Card
    history: list[dict[str, float]]


def configuration(recipe: Recipe, about: About) -> dict[str, Any]:
    """Changes of the zoo's configuration: those of the recipe, and what the data and the task ask for.

    Raises:
        KeyError: unknown network.
        TypeError, ValueError: no such configuration.
    """
    channels = 1 if isinstance(about.product, str) else len(about.product)
    frames = {"input_frames": recipe.training.input_frames, "lead_frames": recipe.training.lead_frames}
    changes = zoo.fitted(recipe.network, channels=channels, height=recipe.crop, width=recipe.crop, **frames)
    head = recipe.network_config.get("head", getattr(zoo.entry(recipe.network).config, "head", "value"))
    if head in {"categorical", "ordinal"}:
        changes["levels"] = list(about.classes)
    elif head == "segmentation":
        changes["levels"] = list(about.classes[:1])
    changes |= recipe.network_config
    if changes.get("channels", 1) != channels:
        raise ValueError(f"the data have {channels} channels, the configuration says {changes['channels']}")
    try:
        with torch.device("meta"), torch.no_grad():
            network = zoo.build(recipe.network, changes)
            given = torch.zeros(1, recipe.training.input_frames, channels, recipe.crop, recipe.crop)
            network.roll_out(given, recipe.training.lead_frames)
        size = sum(p.numel() * p.element_size() for p in network.parameters())
        if not 0 < size <= checkpoint.MAX_BYTES:
            raise ValueError(f"its weights take {size} bytes, a checkpoint at most {checkpoint.MAX_BYTES}")
    except (TypeError, ValueError, RuntimeError, ArithmeticError, AttributeError, IndexError) as err:
        reason = str(err).splitlines()[0]
        raise ValueError(f"{recipe.network} cannot be built with {json.dumps(changes)}: {reason}") from err
    return changes


def make(
    recipe: Recipe,
    series: Sequence[FrameSeries],
    about: About,
    out: Path,
    name: str,
    report: Report,
    device: str = "cpu",
) -> Made:
    """Train and write ``out``; a run that was killed goes on, from ``.NAME.training`` beside it.

    Raises:
        KeyError, TypeError, ValueError: a recipe that does not fit itself or the data.
        models.checkpoint.CheckpointError: ``out`` exists.
    """
    if out.exists():
        raise checkpoint.CheckpointError(f"{out} exists already; choose another name")
    config, task = configuration(recipe, about), recipe.training
    length, longest = task.input_frames + task.lead_frames, sum(about.window)
    if length > longest:
        raise ValueError(f"{length} frames are wanted, the windows were chosen for {longest}; export them anew")
    if not any(len(one.validation) for one in series):
        raise ValueError("there are no validation windows, so nothing could tell a good model; use a longer period")
    torch.manual_seed(task.seed)
    network = zoo.build(recipe.network, config).to(device)
    head: Head = network.output
    loss_name = recipe.loss or _LOSSES.get(head.kind, "balanced")
    loss = losses.named(loss_name, head, about.classes[1:], recipe.gradient_weight)
    refuse_slow_filters(network, about)
    samples = Windows(list(series), length, recipe.crop, task.seed)
    card = Card(
        name=name,
        network=recipe.network,
        network_config=config,
        dbz_min=about.dbz_min,
        dbz_max=about.dbz_max,
        cadences_minutes=about.cadences_minutes,
        spacing_m=about.spacing_m,
        product=about.product,
        training={**about.notes, "loss": loss_name},
    )
    return _trained(recipe, network, samples, loss, fingerprint(series), card, out, report)


def make_moving(
    recipe: Recipe,
    series: dict[str, Series],
    notes: dict[str, Any],
    out: Path,
    name: str,
    report: Report,
    device: str = "cpu",
    initial: Network | None = None,
    calibration: dict[str, Any] | None = None,
    lineage: dict[str, Any] | None = None,
    threads: int = 0,
) -> Made:
    """``make`` in the moving frame, on a dataset of ``models.dataset``; without validation the last weights count.

    Args:
        notes: what the dataset's card says; goes into that of the model.
        initial: begin with its weights, if its architecture is the same.
        calibration: of ``initial``, kept where nothing is validated with.
        lineage: more for the card: parent, version of the software.
        threads: of the CPU; 0 leaves it as it is.
    """
    if threads:
        torch.set_num_threads(threads)
    if out.exists():
        raise checkpoint.CheckpointError(f"{out} exists already; choose another name")
    facts = [one.facts for one in series.values()]
    scales = {(one.dbz_min, one.dbz_max) for one in facts}
    if len(scales) != 1:
        raise ValueError(f"the series have several dBZ scales: {sorted(scales)}")
    [(dbz_min, dbz_max)] = scales
    task = recipe.training
    common = About(
        dbz_min, dbz_max, [10], [SPACING_M, SPACING_M], "surface_rain", list(zoo.RAIN_CLASSES),
        [task.input_frames, task.lead_frames],
    )  # fmt: skip
    config = configuration(recipe, common)
    torch.manual_seed(task.seed)
    network = zoo.build(recipe.network, config).to(device)
    continued = initial is not None and _same_architecture(network, initial)
    if initial is not None and continued:
        network.load_state_dict(initial.state_dict())
    loss_name = recipe.loss or _LOSSES.get(network.output.kind, "balanced")
    loss = losses.named(loss_name, network.output, common.classes[1:], recipe.gradient_weight)
    samples = MovingWindows(list(series.values()), task.input_frames, task.lead_frames, recipe.crop, task.seed)
    told = {key: value for key, value in notes.items() if key not in {"series", "format_version", "command"}}
    card = Card(
        name=name,
        network=recipe.network,
        network_config=config,
        dbz_min=dbz_min,
        dbz_max=dbz_max,
        cadences_minutes=[5, 6, 10],
        spacing_m=[SPACING_M / 2, 2 * SPACING_M],  # larger cells are taken as they are
        product="surface_rain",
        moving=True,
        training={
            "dataset": told,
            "data": {key: one.facts.about.get("source") for key, one in series.items()},
            "terms": {key: one.facts.about.get("license") for key, one in series.items()},
            "periods": {key: one.facts.about.get("period") for key, one in series.items()},
            "inputs": {key: one.facts.about.get("echo_share") for key, one in series.items()},
            "loss": loss_name,
            "continued": continued,
            **(lineage or {}),
        },
    )

    def calibrated() -> dict[str, Any]:
        """What was validated with, and not trained on, calibrates."""
        number = min(samples.count(VALIDATION), MOST_CALIBRATED)
        if not number or network.output.kind != "ordinal":
            return dict(calibration or {}) if continued else {}
        found = Counted(task.lead_frames, network.output.levels)
        count(network, samples, VALIDATION, range(number), (task.input_frames, task.lead_frames), found)
        return asdict(found.fitted())

    return _trained(recipe, network, samples, loss, dataset.fingerprint(series), card, out, report, calibrated)


def _same_architecture(one: Network, other: Network) -> bool:
    of_one, of_other = ({key: value.shape for key, value in n.state_dict().items()} for n in (one, other))
    return type(one) is type(other) and of_one == of_other and one.output == other.output


def _trained(
    recipe: Recipe,
    network: Network,
    samples: Samples,
    loss: Loss,
    data: str,
    card: Card,
    out: Path,
    report: Report,
    calibrated: Callable[[], dict[str, Any]] = dict,
) -> Made:
    """Train, calibrate, and write checkpoint and metrics."""
    task = recipe.training
    state = out.with_name(f".{out.name}.training")
    told = {"recipe": json.loads(json.dumps(asdict(recipe))), "data": data}
    with _alone(state):
        history = train(network, samples, loss, task, report, folder=state, about=told)
    measured = [row for row in history if np.isfinite(row["validation_loss"])]
    training = {
        **card.training,
        "gradient_weight": recipe.gradient_weight,
        "crop": recipe.crop,
        **{key: value for key, value in asdict(task).items() if key != "minutes"},
        "steps": int(history[-1]["step"]),
        "duration_minutes": round(history[-1]["seconds"] / 60, 1),
        "best": min(measured, key=lambda row: row["validation_loss"]) if measured else None,
    }
    card = replace(card, training=training)
    if not dist.is_initialized() or dist.get_rank() == 0:
        card = checkpoint.save(out, network, replace(card, calibration=calibrated()))
        for file in ("metrics.csv", "loss.png"):
            if (state / file).is_file():
                shutil.copy(state / file, out / file)
        shutil.rmtree(state)
    return Made(out, card, history)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder of a run, so that no second one writes there; the first of several processes does.

    Raises:
        ValueError: another run holds it.
    """
    if dist.is_initialized() and dist.get_rank():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            raise ValueError(f"another process trains this model now, in {folder}") from err
        yield


def refuse_slow_filters(network: Any, about: About) -> None:
    """Refuse a network whose filters do not reach as far as fast rain moves in a frame.

    Raises:
        ValueError: says how far it reaches, and how far rain at 120 km/h goes.
    """
    reach = too_short_reach(network, max(about.cadences_minutes), about.spacing_m[0])
    if reach:
        raise ValueError(reach)


def too_short_reach(network: Any, cadence_minutes: int, spacing_m: float) -> str:
    """Why a network cannot follow rain at 120 km/h at that cadence and spacing; empty if it can, or has no limit."""
    reach = getattr(network, "reach", None)
    needed = FASTEST_RAIN_KM_H * 1000 * cadence_minutes / 60 / spacing_m
    # spacing is a mean over a map, as in the check of a model's card
    if reach is None or needed <= 1.1 * reach:
        return ""
    return (
        f"the filters of this network move rain by at most {reach} cells a frame; at {cadence_minutes} minutes and "
        f"{spacing_m:.0f} m rain of {FASTEST_RAIN_KM_H:.0f} km/h moves by {needed:.0f}"
    )


def fingerprint(series: Sequence[FrameSeries]) -> str:
    """Tells one set of data from another, without reading all of it."""
    digest = hashlib.sha256()
    for one in series:
        digest.update(repr((one.pixels.shape, one.train.tolist(), one.validation.tolist())).encode())
        digest.update(np.ascontiguousarray(one.pixels[:: max(len(one.pixels) // 8, 1)]).tobytes())
    return digest.hexdigest()
