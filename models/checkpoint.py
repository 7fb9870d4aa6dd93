"""A trained model on disk: ``weights.safetensors`` beside ``card.json``, which says all it takes to use it."""

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from models import zoo
from models.faults import is_of_machine
from models.networks.network import Network

FORMAT_VERSION = 1
PRETRAINED = Path(__file__).parent / "pretrained"
MAX_BYTES = 2 * 2**30
MAX_CARD_BYTES = 2**20


class CheckpointError(ValueError):
    """The checkpoint is absent, damaged, of a newer format, or does not fit its own card."""


@dataclass(frozen=True)
class Card:
    """What a model is and what it was trained for.

    Attributes:
        name: of the model.
        network: name in the zoo.
        network_config: values that differ from the zoo's.
        dbz_min, dbz_max: reflectivity of pixels 0 and 255.
        cadences_minutes: cadences it was trained for.
        spacing_m: smallest and largest grid spacing it was trained for.
        product: what one frame is (``surface_rain``), or what its channels are.
        sha256: checksum of the weights file.
        moving: it forecasts in the moving frame, see ``models.moving_frame``.
        calibration: of the probabilities of one that forecasts in the moving frame, see ``models.calibration``; empty
            are as they are.
        limits: what a user of its forecasts should know; goes into every product.
        training: command, seed, data, period, duration, scores; free text and numbers for people.
    """

    name: str
    network: str
    network_config: dict[str, Any]
    dbz_min: float
    dbz_max: float
    cadences_minutes: list[int]
    spacing_m: list[float]
    product: str | list[str]
    sha256: str = ""
    moving: bool = False
    calibration: dict[str, Any] = field(default_factory=dict)
    limits: str = ""
    training: dict[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    @property
    def products(self) -> tuple[str, ...]:
        """What the channels are."""
        return (self.product,) if isinstance(self.product, str) else tuple(self.product)

    def refusal(
        self, *, dbz_min: float, dbz_max: float, cadence_minutes: int, spacing_m: float, products: tuple[str, ...]
    ) -> str:
        """Why the model must not be used on such frames; empty if it may."""
        scale = [self.dbz_min, self.dbz_max]
        wanted: list[tuple[str, Any, Any, bool]] = [
            ("dBZ scale", scale, [dbz_min, dbz_max], scale == [dbz_min, dbz_max]),
            ("cadence (minutes)", self.cadences_minutes, cadence_minutes, cadence_minutes in self.cadences_minutes),
            # spacing is a mean over a map: a tenth of tolerance, not an exact number
            (
                "grid spacing (m)",
                self.spacing_m,
                round(spacing_m),
                0.9 * self.spacing_m[0] <= spacing_m <= 1.1 * self.spacing_m[1],
            ),
            ("product", list(self.products), list(products), self.products == products),
        ]  # fmt: skip
        for what, trained, asked, fits in wanted:
            if not fits:
                return f"model {self.name} was trained for {what} {trained}, the domain has {asked}"
        return ""

    @property
    def checksum(self) -> str:
        """SHA-256 of everything that changes a forecast: weights, architecture and scale."""
        parts = [self.sha256, self.network, self.network_config, self.dbz_min, self.dbz_max, self.product]
        parts += ["moving"] * self.moving + [self.calibration] * bool(self.calibration)
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def save(folder: Path, network: nn.Module, card: Card) -> Card:
    """Write weights and the card that names their checksum, both or neither; return that card.

    Raises:
        CheckpointError: the folder exists (a model that forecasts were made with is never overwritten), or weights
            are not finite.
    """
    if folder.exists():
        raise CheckpointError(f"{folder} exists already; choose another name")
    refuse_broken(network, folder)
    weights = save_tensors({name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()})
    card = Card(**{**asdict(card), "sha256": hashlib.sha256(weights).hexdigest()})
    text = json.dumps(asdict(card), indent=2, allow_nan=False) + "\n"
    half = folder.with_name(f".{folder.name}.{os.getpid()}")
    half.mkdir(parents=True)
    (half / "weights.safetensors").write_bytes(weights)
    (half / "card.json").write_text(text, encoding="utf-8")
    half.rename(folder)
    return card


def replace(folder: Path, network: nn.Module, card: Card) -> Card:
    """``save``, in place of what is there; for experiments, whose models make no products."""
    if folder.exists():
        shutil.rmtree(folder)
    return save(folder, network, card)


def find(model: str, folders: tuple[Path, ...] = ()) -> Path:
    """The folder of a model: a path, or a name in ``folders`` or among the shipped ones.

    Raises:
        CheckpointError: lists the names that exist.
    """
    if "/" in model:
        return Path(model)
    places = (*folders, PRETRAINED)
    for place in places:
        if (place / model / "card.json").is_file():
            return place / model
    known = sorted({p.parent.name for place in places for p in place.glob("*/card.json")})
    raise CheckpointError(f"no model {model!r}; there are: {', '.join(known) or 'none'}")


def read_card(folder: Path) -> Card:
    """Read ``card.json``.

    Raises:
        CheckpointError: absent, not a card, or written by a newer version.
        OSError: the machine cannot read it now.
    """
    path = folder / "card.json"
    try:
        if path.stat().st_size > MAX_CARD_BYTES:
            raise CheckpointError(f"{path}: {path.stat().st_size} bytes, a card has at most {MAX_CARD_BYTES}")
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as err:
        if isinstance(err, CheckpointError) or is_of_machine(err):
            raise
        raise CheckpointError(f"{path}: not a readable model card: {err}") from err
    version = data.get("format_version") if isinstance(data, dict) else None
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{path}: card format {version!r}, this version reads {FORMAT_VERSION}")
    try:
        card = Card(**data)
    except TypeError as err:
        raise CheckpointError(f"{path}: {err}") from err
    if not isinstance(card.product, str | list):
        raise CheckpointError(f"{path}: product must be a name or a list of names, found {card.product!r}")
    texts = (card.name, card.network, card.sha256, card.limits)
    if not all(isinstance(text, str) for text in texts) or not isinstance(card.network_config, dict):
        raise CheckpointError(f"{path}: name, network, sha256 and limits must be texts, network_config an object")
    if not isinstance(card.calibration, dict):
        raise CheckpointError(f"{path}: calibration must be an object")
    numbers = [card.dbz_min, card.dbz_max, *_list(card.cadences_minutes), *_list(card.spacing_m)]
    if not all(isinstance(n, int | float) for n in numbers) or len(_list(card.spacing_m)) != 2:
        raise CheckpointError(f"{path}: scale, cadences_minutes and spacing_m [smallest, largest] must be numbers")
    return card


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [None]


def load(folder: Path) -> tuple[Network, Card]:
    """Build the network of a checkpoint and load its weights; ready to forecast.

    Raises:
        CheckpointError: the weights are absent or not those that the card names, or do not fit the network.
        OSError: the machine cannot read them now.
    """
    card = read_card(folder)
    path = folder / "weights.safetensors"
    try:
        if path.stat().st_size > MAX_BYTES:
            raise CheckpointError(f"{path}: {path.stat().st_size} bytes, more than the {MAX_BYTES} allowed")
        weights = path.read_bytes()
    except OSError as err:
        if is_of_machine(err):
            raise
        raise CheckpointError(f"{path}: cannot be read: {err.strerror}") from err
    found = hashlib.sha256(weights).hexdigest()
    if found != card.sha256:
        raise CheckpointError(f"{path}: checksum {found[:12]}, the card says {card.sha256[:12]}")
    try:
        with torch.device("meta"):  # no memory for what a card may claim: the weights have theirs
            network = zoo.build(card.network, card.network_config)
        network.load_state_dict(load_tensors(weights), assign=True)
    except (KeyError, TypeError, RuntimeError, ValueError, AttributeError, IndexError, SafetensorError) as err:
        raise CheckpointError(f"{folder}: the weights do not fit network {card.network!r}: {err}") from err
    refuse_broken(network, folder)
    return network.eval(), card


def refuse_broken(network: nn.Module, folder: Path) -> None:
    """Weights that are not numbers forecast "no rain" without a word.

    Raises:
        CheckpointError: names the first such tensor.
    """
    for name, tensor in network.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{folder}: {name} holds values that are not finite")
