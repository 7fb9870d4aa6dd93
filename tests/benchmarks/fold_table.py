"""The table of the event folds: ``python -m tests.benchmarks.fold_table ROOT``, after ``tests.benchmarks.event_folds``.

All methods are scored together, on the pixels where each of them has a value, from the products that the runs wrote.
Writes ``table.csv``, and prints it by event and for all events together: sums are added up, blocks of all events are
drawn together (90 % intervals of paired differences).
"""

import argparse
import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline import catalog as tables
from pipeline import times
from pipeline.catalog import Catalog
from pipeline.frames.archive import Archive
from pipeline.settings import load
from pipeline.storage import Store
from pipeline.verification import bootstrap, scores
from pipeline.verification.compared import of_product
from pipeline.verification.files import ForecastSums, to_dataset
from pipeline.verification.period import Verified, of_sums
from pipeline.verification.rules import nearest, pixel_tables, rules_of
from pipeline.verification.scoring import Compared, Scorer
from pipeline.verification.sums_files import Observations, published
from tests.benchmarks.event_folds import CONTROLS, FOLDS, NETWORKS, PERIODS, REFERENCES
from tests.conftest import PROJECT

LEADS = (30, 60, 90, 120)
RATES = (0.5, 2.0, 5.0, 10.0, 30.0)
SCALES = (10.0, 20.0)
LEVEL, SEED = 0.9, 0
# of an interval by itself
FEWEST_HOURS = 6


def scored(root: Path, name: str, runs: list[str]) -> Verified:
    """All methods of one event, on their common pixels."""
    start, end = (times.parse_time(text) for text in PERIODS[name])
    by_time: dict[int, list[Compared]] = {}
    for run in runs:
        changes = {"root": str(root / f"run_{run}")}
        if run == runs[0]:
            changes[f"domains.{name}.verification.references"] = json.dumps(REFERENCES)
        settings = load(PROJECT / "infra" / "domains" / "folds.toml", changes)
        domain, store = settings.domain(name), Store(settings.root)
        archive = Archive(store, domain)
        with closing(Catalog(settings.catalog)) as catalog:
            for row in published(catalog, domain, start, end):
                found = of_product(domain, store, archive, row)
                found = [replace(found[0], name=run, exceedance=None), *(found[1:] if run == runs[0] else [])]
                by_time.setdefault(row["reference_time"], []).extend(found)
            source = archive.source()
            assert source is not None
            rules = rules_of(domain, source)
            scorer, observations = Scorer(rules, pixel_tables(domain, rules)), Observations(domain, archive, catalog)
            if run == runs[-1]:
                methods = [one.name for one in max(by_time.values(), key=len)]
                rows = [
                    ForecastSums(time, "00" * 32, scorer.sums(found, observations.of(tables.from_seconds(time))))
                    for time, found in sorted(by_time.items())
                    if [one.name for one in found] == methods
                ]
    return of_sums(domain, "hindcast", to_dataset(rows, methods, rules))


def chosen(verified: Verified) -> dict[str, NDArray[np.float64]]:
    """Sums by block on the common pixels at ``LEADS`` (0 where the event has no such lead), the axis after method."""
    blocks, found = verified.blocks, {}
    lead, structure = verified.axes["lead"], verified.axes["structure_lead"]
    at = {name: [int(np.abs(axis - m).argmin()) for m in LEADS] for name, axis in (("l", lead), ("s", structure))}
    there = np.array([np.abs(lead - m).min() <= 6 for m in LEADS], np.float64)
    rates = nearest(verified.axes["threshold"], RATES)
    for key in ("hits", "misses", "false_alarms"):
        found[key] = blocks[key][..., 0][:, :, at["l"]][..., rates] * there[:, None]
    for key in (
        "pairs", "frames", "absolute_error", "forecast_square", "observed_square", "product", "rain_squared_error",
        "balanced_squared_error", "balanced_absolute_error", "forecast_rain", "observed_rain",
    ):  # fmt: skip
        found[key] = blocks[key][..., 0][:, :, at["l"]] * there
    scale = [int(np.abs(verified.axes["scale"] - km).argmin()) for km in SCALES]
    fives = nearest(verified.axes["threshold"], (5.0,))[0]
    for key in ("forecast", "observed", "product"):
        part = blocks[f"fraction_{key}"][..., 0][:, :, at["s"]][:, :, :, fives]
        found[f"fraction_{key}"] = part[..., scale] * there[:, None]
    band = (verified.axes["band"] >= 4) & (verified.axes["band"] < 16)
    found["power"] = blocks["power"][:, :, at["s"]][..., band].sum(axis=-1) * there
    return {key: np.asarray(value, np.float64) for key, value in found.items()}


def columns(sums: dict[str, NDArray[np.float64]], last: int) -> dict[str, NDArray[np.float64]]:
    """Every score, (..., method, lead).

    Args:
        last: index of the last frame among the methods.
    """
    made = {}
    csi, bias = (
        scores.EVENT_SCORES[name].of(sums) for name in ("csi", "bias")
    )  # fmt: skip
    for n, rate in enumerate(RATES):
        made[f"csi {rate:g}"] = csi[..., n]
    made["bias 0.5"] = bias[..., 0]
    for name in ("mse", "rain_mse", "mae", "b_mse", "b_mae", "rain_ratio"):
        made[name] = scores.FIELD_SCORES[name].of(sums)
    fss = scores.FSS["fss"].of(sums)
    for n, km in enumerate(SCALES):
        made[f"fss 5 {km:g} km"] = fss[..., n]
    with np.errstate(divide="ignore", invalid="ignore"):
        made["power dB"] = 10 * np.log10(sums["power"] / sums["power"][..., last : last + 1, :])
    return made


def table(sums: dict[str, NDArray[np.float64]], methods: list[str], hours: int, event: str) -> pd.DataFrame:
    """Scores of an event, and the differences from each of the others with their intervals."""
    last = methods.index("last_frame")
    value = columns({key: v.sum(axis=0) for key, v in sums.items()}, last)
    blocks = len(sums["pairs"])
    drawn = None
    if hours >= FEWEST_HOURS and blocks >= 4:
        drawn = columns(bootstrap.resampled(sums, bootstrap.draws(blocks, SEED)), last)
    rows = []
    for name, of in value.items():
        for m, method in enumerate(methods):
            for k, lead in enumerate(LEADS):
                row = {"event": event, "method": method, "lead": lead, "score": name, "value": of[m, k]}
                rows.append({**row, "versus": "", "low": np.nan, "high": np.nan, "blocks": blocks})
                for o, other in enumerate(methods):
                    if o == m:
                        continue
                    difference, low, high = of[m, k] - of[o, k], np.nan, np.nan
                    if drawn is not None:
                        samples = drawn[name][:, m, k] - drawn[name][:, o, k]
                        low, high = bootstrap.interval(samples, np.asarray(difference), blocks, LEVEL)
                    rows.append(
                        {**row, "versus": other, "value": difference, "low": low, "high": high, "blocks": blocks}
                    )
    return pd.DataFrame(rows)


def main() -> None:
    """Score, pool, write and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--events", default=",".join(name for fold in FOLDS.values() for name in fold))
    parser.add_argument("--runs", default=",".join((*NETWORKS, *CONTROLS)))
    given = parser.parse_args()
    runs, events = given.runs.split(","), given.events.split(",")
    found, pooled, hours, methods = [], [], 0, []
    for name in events:
        kept = given.root / f"{name}.sums.npz"
        if not kept.is_file():  # what is there already is not done again
            verified = scored(given.root, name, runs)
            about = {"methods": np.array(verified.methods), "hours": len(verified.hours)}
            np.savez(kept, forecasts=len(verified.reference_times), **about, **chosen(verified))  # type: ignore[arg-type]
        with np.load(kept, allow_pickle=False) as held:
            sums = {key: held[key] for key in held.files}
        methods, count, own = sums.pop("methods").tolist(), int(sums.pop("forecasts")), int(sums.pop("hours"))
        found.append(table(sums, methods, own, name))
        pooled.append(sums)
        hours += own
        print(f"{name}: {count} forecasts, {len(sums['pairs'])} blocks", flush=True)
    together = {key: np.concatenate([one[key] for one in pooled]) for key in pooled[0]}
    found.append(table(together, methods, hours, "all"))
    every = pd.concat(found)
    every.to_csv(given.root / "table.csv", index=False)
    for event in [*events, "all"]:
        for lead in LEADS:
            here = every[(every.event == event) & (every.lead == lead) & (every.versus == "")]
            wide = here.pivot_table(index="method", columns="score", values="value", sort=False)
            if not wide.empty:
                print(f"\n{event}, {lead} min\n{wide.to_string(float_format='%.3f')}")
    print("\nall events, first method minus the others, 90 % intervals")
    first = every[(every.event == "all") & (every.method == methods[0]) & (every.versus != "")]
    for (lead, score), part in first.groupby(["lead", "score"], sort=False):
        said = "  ".join(f"{r.versus} {r.value:+.4g} [{r.low:+.4g}, {r.high:+.4g}]" for r in part.itertuples())
        print(f"{lead:4d} {score:12s} {said}")


if __name__ == "__main__":
    main()
