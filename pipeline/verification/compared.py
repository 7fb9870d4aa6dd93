"""What is compared: a published forecast, the baselines stored beside it, and references made on request."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline import packing, product
from pipeline.catalog import Row
from pipeline.domain import Domain
from pipeline.frames.archive import Archive
from pipeline.frames.grayscale import NO_COVERAGE
from pipeline.storage import Store
from pipeline.verification import references
from pipeline.verification.scoring import Compared

BASELINES = ("optical_flow", "last_frame")


def model_key(method: str, checksum: str) -> str:
    """Name of what made a forecast: the method, with the checksum of its weights if it has some."""
    return f"{method}-{checksum[:8]}" if checksum else method


def made_by(row: Row) -> str:
    """``model_key`` of a published forecast."""
    return model_key(row["method"], row["model_checksum"])


def scores_key(row: Row, domain: Domain) -> str:
    """Under which name forecasts are scored together: what made them, and what else than the baselines is compared."""
    others = ".".join(domain.verification.references)
    return f"{made_by(row)}.with.{others}" if others else made_by(row)


def methods_of(row: Row, domain: Domain) -> list[str]:
    """Names of all that is compared; a method that issued the product itself is not compared with itself."""
    others = (*BASELINES, *domain.verification.references)
    return [row["method"], *(name for name in others if name != row["method"])]


def of_product(domain: Domain, store: Store, archive: Archive, row: Row) -> list[Compared]:
    """The forecasts of one cycle, in the order of ``methods_of``.

    Raises:
        ValueError, OSError: the product is damaged, is not the recorded one, or was made with other settings.
    """
    path = store.get(store.root / row["path"])
    pixels, state, attrs = product.read_forecast(path, domain)
    if attrs["content_digest"] != row["content_digest"]:
        raise ValueError(f"{path} is not the product that the catalog recorded ({row['content_digest'][:12]})")
    if len(pixels) != domain.lead_frames or int(attrs["cadence_minutes"]) != domain.cadence_minutes:
        raise ValueError(
            f"{path} has {len(pixels)} leads every {attrs['cadence_minutes']} minutes, the settings now give "
            f"{domain.lead_frames} every {domain.cadence_minutes}: verify it with the settings it was made with"
        )
    covered = state != NO_COVERAGE
    found = [Compared(str(attrs["method"]), pixels, covered, exceedance(path, domain))]
    baselines = product.read_baselines(store.get(store.baselines(path)))
    for name in methods_of(row, domain)[1:]:
        if name in references.NAMES:
            found.append(references.reference(name, domain, store, archive, row))
            continue
        frames = baselines[name]
        nothing = np.zeros_like(pixels)
        found.append(Compared(name, nothing, None) if frames is None else Compared(name, frames, covered))
    return found


def exceedance(path: Path, domain: Domain) -> NDArray[np.float32] | None:
    """Probabilities at the domain's thresholds; None if the product does not have them all."""
    found, _ = packing.read_arrays(path, ("probability_of_exceedance", "threshold"))
    if len(found) < 2:
        return None
    levels = [round(float(v), 6) for v in found["threshold"]]
    wanted = [round(t, 6) for t in domain.thresholds_mm_h]
    if not set(wanted) <= set(levels):
        return None
    raw = found["probability_of_exceedance"][[levels.index(t) for t in wanted]]
    return np.where(raw == packing.FILL, 0, raw * product.PROBABILITY_STEP).astype(np.float32)
