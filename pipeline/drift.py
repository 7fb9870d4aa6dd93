"""How far today's rain is from what the model in use was trained on."""

from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import sqlalchemy as sa

from pipeline import catalog as tables
from pipeline import times
from pipeline.catalog import Catalog
from pipeline.domain import Domain, model_name
from pipeline.promotion import candidates
from pipeline.storage import Store

SPAN = timedelta(hours=24)


@dataclass(frozen=True)
class Inputs:
    """Echo in the frames of the last day, and in those of the training.

    Attributes:
        model: that serves.
        frames: of the last day.
        beyond: share of them with more echo than all but one in a hundred of the training.
        median: share of the observed cells with echo, of the frames of the last day.
        most: what 99 % of the training frames stay below.
        own: the model was trained on this domain; else on others, and ``most`` is the highest of theirs.
    """

    model: str
    frames: int
    beyond: float
    median: float
    most: float
    own: bool


def read_inputs(domain: Domain, store: Store, catalog: Catalog, now: datetime) -> Inputs | None:
    """What the catalog knows of the last day; None if there are no frames, or the model's card says nothing."""
    from models import checkpoint

    serving = candidates(catalog, domain)[0].name
    try:
        card = checkpoint.read_card(checkpoint.find(serving, (store.models(serving),)))
        known = {key: value for key, value in card.training.get("inputs", {}).items() if value}
        own = domain.name in known
        most = float(known[domain.name][2]) if own else max(float(value[2]) for value in known.values())
    except (checkpoint.CheckpointError, AttributeError, ValueError, TypeError, IndexError):
        return None  # no network, or one that does not say what it was trained on
    f = tables.frames.c
    lately = f.valid_time.between(times.seconds(now - SPAN), times.seconds(now))
    rows = catalog.read(sa.select(f.echo, f.coverage).where(f.domain == domain.name, lately, f.coverage > 0))
    if not rows:
        return None
    shares = np.array([row["echo"] / row["coverage"] for row in rows])
    beyond, median = float((shares > most).mean()), float(np.median(shares))
    return Inputs(model_name(serving), len(shares), beyond, median, most, own)
