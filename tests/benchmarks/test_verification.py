"""Verification against pysteps and scores, alternating in one process, one thread; a day, and a year of sums.

make benchmarks, or: python -m pytest tests/benchmarks/test_verification.py -s
"""

import contextlib
import io
import statistics
import time
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import sqlalchemy as sa
import xarray as xr

from pipeline import catalog as tables
from pipeline import operations, times
from pipeline.catalog import Catalog
from pipeline.domain import ZR, Scale
from pipeline.frames.frame_source import FrameSource
from pipeline.frames.grayscale import make_frame, pixel_of_rate
from pipeline.grids import centred_grid
from pipeline.sources.readers import READERS
from pipeline.storage import Store
from pipeline.verification import files, scores
from pipeline.verification.neighbourhood import FractionSums
from pipeline.verification.pairs import COUNTS, MOMENTS, PixelTables, pair_sums
from pipeline.verification.report import write_report
from pipeline.verification.rules import rules_of
from pipeline.verification.spectrum import bands, rings
from tests.conftest import NOW, brisbane_domain, settings_for, synthetic_domain

RATES = (0.5, 2.0, 5.0, 10.0, 30.0)
LEVELS = tuple(pixel_of_rate(rate, ZR(), Scale()) for rate in RATES)
SIDES = (1, 2, 5, 10, 20, 50)


@pytest.fixture(scope="module")
def frames(sample_data):
    """Forty observed frames of a wet morning, 480 x 480, and as forecasts those of ten minutes earlier."""
    domain = brisbane_domain("x", grid={"native": True, "coarsen": 1})
    reader = READERS["bom_rainfields"]
    paths = sorted((sample_data / "bom_66_prcp-c10_20201031").iterdir())[20:61]
    made = [make_frame(reader.read(path), domain)[0] for path in paths]
    window = np.s_[16:496, 16:496]
    pixels = np.stack([frame.rain[window] for frame in made])
    observed = np.stack([frame.observed[window] for frame in made])
    return pixels[:-1], pixels[1:], observed[:-1] & observed[1:]


def alternating(repeats, **functions):
    seconds = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            started = time.process_time()
            function()
            seconds[name].append(time.process_time() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def test_contingency_tables_mse_and_mae_of_40_frames(frames):
    forecast, observed, valid = frames
    with contextlib.redirect_stdout(io.StringIO()):
        from pysteps.verification import detcatscores, detcontscores
    from scores.categorical import ThresholdEventOperator
    from scores.continuous import mae, mse

    one = PixelTables(LEVELS, np.arange(256.0), np.ones(256), np.zeros(256, bool))

    def ours():
        return [pair_sums(f, o, v, one) for f, o, v in zip(forecast, observed, valid, strict=True)]

    floats = [(f.astype(float), o.astype(float)) for f, o in zip(forecast, observed, strict=True)]

    def pysteps():
        for f, o in floats:
            for level in LEVELS:
                detcatscores.det_cat_fct(f, o, level - 0.5, scores=["CSI", "POD", "FAR"])
            detcontscores.det_cont_fct(f, o, scores=["MSE", "MAE"])

    arrays = [tuple(xr.DataArray(v, dims=("y", "x")) for v in pair) for pair in floats[:4]]

    def scores_package():
        for f, o in arrays:
            for level in LEVELS:
                operator = ThresholdEventOperator(default_event_threshold=level - 0.5)
                table = operator.make_contingency_manager(f, o).transform()
                for score in (table.critical_success_index, table.probability_of_detection, table.false_alarm_ratio):
                    float(score())
            float(mse(f, o)), float(mae(f, o))

    seconds = alternating(5, ours=ours, pysteps=pysteps, scores=scores_package)
    seconds["scores"] *= len(floats) / len(arrays)  # of four frames only, it takes long
    print(f"\n5 thresholds + MSE + MAE, 40 frames of 480 x 480, CPU time: ours {1e3 * seconds['ours']:.0f} ms")
    for peer in ("pysteps", "scores"):
        print(f"  {peer} {seconds[peer]:.2f} s, {seconds[peer] / seconds['ours']:.0f} x as long")
    hits = sum(part.counts[COUNTS.index("hits"), 2] for part in ours())
    assert hits == ((forecast >= LEVELS[2]) & (observed >= LEVELS[2]) & valid).sum()


def test_fss_of_5_thresholds_and_6_scales(frames):
    forecast, observed, valid = (part[10] for part in frames)
    with contextlib.redirect_stdout(io.StringIO()):
        from pysteps.verification import spatialscores
    everything = np.ones(valid.shape, bool)
    fractions = FractionSums([(side, side) for side in SIDES])
    f, o = forecast.astype(float), observed.astype(float)

    def ours():
        return fractions([forecast], observed, everything, LEVELS)

    def pysteps():
        return [[spatialscores.fss(f, o, level - 0.5, side) for side in SIDES] for level in LEVELS]

    seconds = alternating(7, ours=ours, pysteps=pysteps)
    print(f"\nFSS 5 x 6, 480 x 480: ours {1e3 * seconds['ours']:.1f} ms, pysteps {1e3 * seconds['pysteps']:.0f} ms")
    print(f"  {seconds['pysteps'] / seconds['ours']:.1f} x as long")
    # in the middle of zeros the two conventions for windows at the border are one
    wide = [np.pad(v, 60) for v in (forecast, observed)]
    ring = np.ones(wide[0].shape, bool)
    found = scores.fss(*np.moveaxis(fractions([wide[0]], wide[1], ring, LEVELS), -1, 0))[0]
    a, b = (v.astype(float) for v in wide)
    theirs = np.array([[spatialscores.fss(a, b, level - 0.5, side) for side in SIDES] for level in LEVELS])
    difference = np.nanmax(np.abs(found - theirs))
    print(f"  largest difference with the same windows {difference:.1e}")
    assert difference <= 1e-6


def test_a_day_of_forecasts(sample_data, tmp_path):
    """144 forecasts to two hours of 512 x 512 cells, optical flow and last frame beside what issued them."""
    folder = str(sample_data / "bom_66_prcp-c10_20201031")
    domain = brisbane_domain(folder, grid={"native": True, "coarsen": 1}, lead_frames=12, model="rover_linear")
    settings = settings_for(tmp_path / "root", domain)
    start = datetime(2020, 10, 31, tzinfo=UTC)
    # forecasts of every hour, to save the time that making them takes
    for hour in range(24):
        time_of = start + timedelta(hours=hour, minutes=40)
        operations.backfill(settings, "brisbane", time_of, time_of, NOW)
    for path in (settings.root / "verification").rglob("*.nc"):
        path.unlink()
    started = time.process_time(), time.perf_counter()
    scored = operations.verify(settings, "brisbane", None, None, NOW).verify.scored
    cpu, wall = time.process_time() - started[0], time.perf_counter() - started[1]
    print(f"\n{scored} forecasts x 12 leads x 512 x 512 x 3 methods: {cpu:.1f} s CPU, {wall:.1f} s")
    print(f"  a day of 144: {144 * cpu / scored:.0f} s of CPU")
    assert scored == 24


def test_a_year_of_sums_for_ten_domains_and_a_monthly_report(tmp_path):
    """Made-up sums with rain in a fifth of the hours; every five minutes, 24 leads, three methods."""
    store = Store(tmp_path / "root")
    catalog = Catalog(f"sqlite:///{store.root / 'catalog.sqlite'}")
    domain = synthetic_domain(cadence_minutes=5, lead_frames=24)
    rng = np.random.default_rng(0)
    source = FrameSource(centred_grid(domain.grid.crs, (480, 480), 1000.0, (5.0, 51.0)), 0.1, 0.0)
    rules = rules_of(domain, source)
    first = datetime(2025, 1, 1, tzinfo=UTC)
    days, sizes = 31, []
    methods = ["convlstm", "optical_flow", "last_frame"]
    with catalog.write() as connection:
        for n in range(days):
            day = first + timedelta(days=n)
            made = [forecast_sums(rng, rules, day + k * domain.cadence) for k in range(288)]
            path = store.scores(domain.name, "issued", "convlstm", day)
            with store.publish(path) as temporary:
                digest = files.write(files.to_dataset(made, methods, rules), temporary)
            sizes.append(path.stat().st_size)
            row = {"domain": domain.name, "kind": "issued", "model": "convlstm", "day": times.seconds(day)}
            catalog.upsert(connection, tables.scores, [row | {"path": store.relative(path), "content_digest": digest}])
            cycle = {column.name: "" for column in tables.cycles.columns} | {
                "domain": domain.name, "kind": "issued", "revision": 1, "state": "published", "method": "convlstm",
                "verified": "fully", "correlation": None, "issue_time": 0.0,
            }  # fmt: skip
            stamps = [times.seconds(day + k * domain.cadence) for k in range(288)]
            catalog.upsert(connection, tables.cycles, [cycle | {"reference_time": stamp} for stamp in stamps])
    started = time.perf_counter()
    written = write_report(domain, store, catalog, first, first + timedelta(days=days), tmp_path / "out", NOW)
    seconds = time.perf_counter() - started
    year = 365 * 10 * statistics.mean(sizes) / 2**30
    print(f"\na day of sums {statistics.mean(sizes) / 2**20:.2f} MiB; a year of ten domains {year:.1f} GiB")
    size = written.page.stat().st_size / 2**20
    print(f"  report of {days} days, {288 * days} forecasts: {seconds:.1f} s, page {size:.1f} MiB")
    assert catalog.read(sa.select(sa.func.count().label("n")).select_from(tables.scores))[0]["n"] == days


def forecast_sums(rng, rules, time_of):
    """Sums with the shape and spread of real ones; dry in four of five hours."""
    leads, thresholds, sets = len(rules.leads_minutes), len(rules.thresholds_mm_h), 2
    structure, scales = len(rules.structure_leads), len(rules.windows)
    count = len(bands(rings(rules.grid.shape, rules.grid.ground_spacing_km))[1])
    wet = (time_of.hour * 7 + time_of.day) % 5 == 0
    cells = 480 * 480

    def both(values):
        return np.repeat(np.asarray(values)[..., None], sets, axis=-1)

    share = wet * 0.2 * np.array([1, 0.3, 0.1, 0.03, 0.005])[:thresholds]
    events = rng.poisson(cells * np.broadcast_to(share, (3, leads, thresholds)) * rng.uniform(0.5, 1.5))
    hits = rng.binomial(events, np.linspace(0.8, 0.2, leads)[:, None])
    misses, alarms = events - hits, rng.binomial(events, 0.4)
    sums = dict(
        zip(
            COUNTS,
            (both(v.astype(np.int32)) for v in (hits, misses, alarms, cells - hits - misses - alarms)),
            strict=True,
        )
    )
    for name in MOMENTS:
        sums[name] = both(wet * rng.uniform(1e5, 1e8, (3, leads)))
    sums["pairs"] = both(np.full((3, leads), float(cells)))
    for name in ("forecast", "observed", "product"):
        values = wet * rng.uniform(1, 1e4, (3, structure, thresholds, scales))
        sums[f"fraction_{name}"] = both(values.astype(np.float32))
    sums["power"] = (wet * rng.uniform(0, 10, (3, structure, count))).astype(np.float32)
    sums["observed_power"] = (wet * rng.uniform(0, 10, (structure, count))).astype(np.float32)
    sums["observed"] = np.ones(leads, np.int8)
    return files.ForecastSums(times.seconds(time_of), "0" * 64, sums)
