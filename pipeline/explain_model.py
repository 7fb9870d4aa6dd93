"""Where the model of a product comes from: its card, and whether its weights are still those of the product."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

from pipeline.catalog import Row
from pipeline.domain import Domain
from pipeline.storage import Store

# what a card says of the training; the rest is for those who read the card
TOLD = ("trained_at", "command", "seed", "steps", "loss", "data", "periods", "parent", "software_version")


@dataclass(frozen=True)
class Lineage:
    """Lineage of a model.

    Attributes:
        checksum: that the product names.
        matches: what its checkpoint is now: the same, another, or why it cannot be read.
        training: of ``TOLD`` what the card has.
    """

    name: str
    checksum: str
    matches: str
    network: str = ""
    weights_sha256: str = ""
    training: dict[str, Any] = field(default_factory=dict)


def lineage(domain: Domain, store: Store, name: str, row: Row) -> Lineage:
    """Lineage of the model that made a product."""
    from models import checkpoint

    wanted = row["model_checksum"]
    try:
        where = domain.model if name == domain.model_name else name
        folder = checkpoint.find(where, (store.models(where),))
        card = checkpoint.read_card(folder)
        weights = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    except (checkpoint.CheckpointError, OSError) as err:
        return Lineage(name, wanted, f"NOT FOUND: {err}")
    if card.checksum != wanted:
        matches = f"ANOTHER: {folder.name} has checksum {card.checksum[:12]} now"
    elif weights != card.sha256:
        matches = f"DAMAGED: the weights have {weights[:12]}, the card says {card.sha256[:12]}"
    else:
        matches = "the same"
    training = {key: card.training[key] for key in TOLD if card.training.get(key) not in (None, "", {})}
    return Lineage(name, wanted, matches, card.network, card.sha256, training)
