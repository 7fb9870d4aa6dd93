"""The forecast of each place, as a JSON document and a CSV table beside the product."""

import csv
import io
import json
import math
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pipeline import packing, product, times
from pipeline.domain import DRIZZLE_FLOOR_MM_H, Domain
from pipeline.frames.sequences import InputSequence
from pipeline.warnings.places import Place, maxima, values

FORMAT_VERSION = 1

Floats = NDArray[np.floating[Any]]


def describe(
    domain: Domain, sequence: InputSequence, built: xr.Dataset, places: Sequence[Place], issue_time: datetime
) -> dict[str, Any]:
    """What a product says of places; None where fewer than half of the cells of a place are covered.

    Args:
        built: the packed product, see ``product.build``.
    """
    now = np.round(product.analysis(domain, sequence) / product.RATE_STEP_MM_H) * product.RATE_STEP_MM_H
    rates = np.concatenate((now[None], _unpacked(built["rainfall_rate"])))
    amounts = _unpacked(built["rainfall_amount"])
    chances = _unpacked(built["probability_of_exceedance"]) if "probability_of_exceedance" in built else None
    thresholds = built["threshold"].values.tolist() if chances is not None else []
    reference = times.seconds(sequence.reference_time)
    minutes = [f"{(end - reference) / 60:g}" for end in built["accumulation_time"].values]
    valid_times = [times.iso(sequence.reference_time + (n + 1) * domain.cadence) for n in range(len(rates) - 1)]
    described = []
    for place in places:
        rate = values(place, rates)
        onset, end = spell(np.round(rate, 2).tolist())
        found = {
            "name": place.name,
            "kind": place.kind,
            **_where(place),
            "rate_mm_h_now": _plain(rate[0], 2),
            "rate_mm_h": _plain(rate[1:], 2),
            "amount_mm": dict(zip(minutes, _plain(values(place, amounts), 2), strict=True)),
            "onset": valid_times[onset - 1] if onset else None,
            "end": valid_times[end - 1] if end else None,
        }
        if place.kind == "area":
            largest, wet = maxima(place, rates), values(place, _wet(rates))
            found |= {
                "maximum_mm_h_now": _plain(largest[0], 2),
                "maximum_mm_h": _plain(largest[1:], 2),
                "wet_share_now": _plain(wet[0], 3),
                "wet_share": _plain(wet[1:], 3),
                "maximum_amount_mm": dict(zip(minutes, _plain(maxima(place, amounts), 2), strict=True)),
            }
        if chances is not None:
            levels = (f"{threshold:g}" for threshold in thresholds)
            found["probability"] = dict(zip(levels, _plain(values(place, chances), 3), strict=True))
        described.append(found)
    about = built.attrs
    return {
        "format_version": FORMAT_VERSION,
        "domain": domain.name,
        "reference_time": times.iso(sequence.reference_time),
        "issue_time": times.iso(issue_time),
        **{name: str(about[name]) for name in ("kind", "method", "fallback_reason")},
        "valid_times": valid_times,
        "wet_from_mm_h": DRIZZLE_FLOOR_MM_H,
        "places": described,
    }


def spell(rates: list[float]) -> tuple[int, int]:
    """When rain begins and ends.

    Args:
        rates: mm/h to two digits, of now and of each lead; NaN is not known.

    Returns:
        Onset: the first wet lead if it is dry now. End: the first dry lead after rain that falls now or in two leads
        in a row. 0 if there is none.
    """
    onset, end, run = 0, 0, 0
    for n, rate in enumerate(rates):
        if rate >= DRIZZLE_FLOOR_MM_H:
            run += 2 if n == 0 else 1
            onset = onset or (n if rates[0] < DRIZZLE_FLOOR_MM_H else 0)
        else:
            end = end or (n if run >= 2 and not math.isnan(rate) else 0)
            run = 0
    return onset, end


def to_json(document: dict[str, Any]) -> str:
    """The document as text."""
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def to_csv(document: dict[str, Any]) -> str:
    """One row per place and valid time; what is not covered, or not given at that time, is empty."""
    reference = times.parse_time(document["reference_time"])
    thresholds = list(dict.fromkeys(level for place in document["places"] for level in place.get("probability", {})))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    head = ["domain", "reference_time", "place", "kind", "valid_time", "lead_minutes", "rate_mm_h", "maximum_mm_h"]
    amounts = ["amount_mm", "maximum_amount_mm"]
    table.writerow([*head, "wet_share", *amounts, *(f"probability_{level}_mm_h" for level in thresholds)])
    for place in document["places"]:
        for n, valid_time in enumerate(document["valid_times"]):
            minutes = f"{(times.parse_time(valid_time) - reference).total_seconds() / 60:g}"
            table.writerow(
                [
                    *(document["domain"], document["reference_time"], place["name"], place["kind"]),
                    *(valid_time, minutes),
                    *(place[key][n] if key in place else None for key in ("rate_mm_h", "maximum_mm_h", "wet_share")),
                    *(place.get(key, {}).get(minutes) for key in amounts),
                    *(place["probability"][level][n] for level in thresholds),
                ]
            )
    return text.getvalue()


def _where(place: Place) -> dict[str, Any]:
    if place.position is not None:
        return {"longitude": place.position[0], "latitude": place.position[1]}
    return {"rings": [[[round(v, 5) for v in position] for position in ring] for ring in place.rings]}


def _unpacked(variable: xr.Variable | xr.DataArray) -> Floats:
    step = float(variable.attrs["scale_factor"])
    raw = variable.values
    return np.where(raw == packing.FILL, np.nan, raw * step)


def _wet(rates: Floats) -> Floats:
    # a rate of the floor itself may be a rounding error below it
    return np.where(np.isnan(rates), np.nan, rates >= DRIZZLE_FLOOR_MM_H - 1e-6)


def _plain(numbers: Floats, digits: int) -> Any:
    """Rounded, as numbers and lists that JSON knows; NaN becomes None."""
    if numbers.ndim:
        return [_plain(one, digits) for one in numbers]
    return None if np.isnan(numbers) else round(float(numbers), digits)
