"""Scores by hand, against independent packages where they are right, and by hand where they are not."""

import numpy as np
import pytest
import xarray as xr

from pipeline.domain import ZR, Scale
from pipeline.frames.grayscale import pixel_of_rate, rate_table
from pipeline.verification import probability, scores
from pipeline.verification.neighbourhood import FractionSums
from pipeline.verification.pairs import COUNTS, FAINT_DBZ, MOMENTS, PixelTables, pair_sums
from pipeline.verification.rules import pixel_tables
from pipeline.verification.scoring import Compared
from pipeline.verification.spectrum import band_power, bands, rings, spectrum
from tests.conftest import synthetic_domain

MARSHALL_PALMER, SCALE = ZR(), Scale()


def tables(*thresholds, weights=None, rates=None):
    level = np.arange(256, dtype=float)
    flat = np.ones(256) if weights is None else weights
    return PixelTables(thresholds, level if rates is None else rates, flat, np.zeros(256, bool))


def moments(sums):
    return dict(zip(MOMENTS, sums.moments, strict=True))


def real_fields(sample_data, *names):
    folder = sample_data / "bom_66_prcp-c10_20201031"
    rate = []
    for time in names:
        (path,) = folder.glob(f"*{time}*")
        with xr.open_dataset(path, engine="h5netcdf") as data:
            rate.append(6 * data["precipitation"].values)
    table = rate_table(MARSHALL_PALMER, SCALE, 0.1)
    pixels = [np.searchsorted(table, np.nan_to_num(r), side="right").astype(int) - 1 for r in rate]
    return [
        np.clip(np.where(p < pixel_of_rate(0.1, MARSHALL_PALMER, SCALE), 0, p), 0, 255).astype(np.uint8) for p in pixels
    ]


@pytest.fixture(params=["random", "real"])
def pair(request):
    """Forecast, observation, and which cells have a value."""
    rng = np.random.default_rng(3)
    if request.param == "random":
        forecast, observed = rng.integers(0, 256, (2, 60, 71)).astype(np.uint8)
    else:
        forecast, observed = real_fields(request.getfixturevalue("sample_data"), "20201031_0500", "20201031_0530")
        forecast, observed = forecast[:240, 100:400], observed[:240, 100:400]
    return forecast, observed, rng.random(forecast.shape) > 0.2


def as_nan(pixels, valid):
    return xr.DataArray(np.where(valid, pixels.astype(float), np.nan), dims=("y", "x"))


def test_counts_and_moments_by_hand():
    forecast = np.array([[100, 50, 0], [100, 0, 200]], np.uint8)
    observed = np.array([[100, 0, 60], [40, 0, 99]], np.uint8)
    valid = np.array([[True, True, True], [True, True, False]])
    sums = pair_sums(forecast, observed, valid, tables(50, 100, weights=np.where(np.arange(256) >= 60, 5.0, 1.0)))
    # at 50: hit (100/100), miss (0/60), false alarms (50/0, 100/40), correct negative (0/0)
    assert sums.counts[:, 0].tolist() == [1, 1, 2, 1]
    # at 100, a pixel equal to the threshold is an event
    assert sums.counts[:, 1].tolist() == [1, 0, 1, 3]
    m = moments(sums)
    assert m["pairs"] == 5
    assert m["absolute_error"] == 50 + 60 + 60
    assert (m["forecast_square"], m["observed_square"]) == (100**2 + 50**2 + 100**2, 100**2 + 60**2 + 40**2)
    assert m["product"] == 100 * 100 + 100 * 40
    assert m["balanced_squared_error"] == 50**2 + 5 * 60**2 + 60**2
    assert m["balanced_absolute_error"] == 50 + 5 * 60 + 60
    assert (m["forecast_rain"], m["observed_rain"]) == (250, 200)
    squared = scores.FIELD_SCORES["mse"].of({k: np.array(v) for k, v in m.items()})
    assert float(squared) == (50**2 + 60**2 + 60**2) / 5


def test_counts_with_many_thresholds_are_those_of_each_alone(pair):
    forecast, observed, valid = pair
    levels = (1, 66, 103, 138, 161, 211, 255)
    counts = pair_sums(forecast, observed, valid, tables(*levels)).counts
    for n, level in enumerate(levels):
        f, o = forecast[valid] >= level, observed[valid] >= level
        assert counts[:, n].tolist() == [(f & o).sum(), (~f & o).sum(), (f & ~o).sum(), (~f & ~o).sum()]


def test_hko7_scores_of_a_hand_made_frame():
    zr = ZR(a=58.53, b=1.56)
    domain = synthetic_domain(zr=zr, verification={"ignore_faint_echo": True})
    # dBZ by HKO-7's own relation, so that pixels are p x 255
    pixel = {rate: pixel_of_rate(rate, zr, SCALE) for rate in (0.5, 2, 5, 10, 30)}
    assert list(pixel.values()) == [84, 118, 141, 158, 185]  # p x 255 = 83.7, 117.9, 140.5, 157.6, 184.8
    assert pytest.approx(9.49, abs=0.01) == FAINT_DBZ
    source = make_source(domain)
    from pipeline.verification.rules import rules_of

    made = pixel_tables(domain, rules_of(domain, source))
    assert made.faint.nonzero()[0].tolist() == list(range(1, 71))  # 1 to 70 are masked; 0 and 71 are kept
    assert [made.weights[p] for p in (0, 84, 117, 118, 141, 158, 184, 185, 255)] == [1, 1, 1, 2, 5, 10, 10, 30, 30]
    observed = np.array([[0, 70, 71, 118], [141, 158, 185, 0]], np.uint8)
    forecast = np.array([[90, 200, 71, 100], [141, 148, 200, 0]], np.uint8)
    valid = ~made.faint[observed]
    assert valid.sum() == 7  # rain over faint observed echo is no false alarm
    sums = pair_sums(forecast, observed, valid, made)
    m = moments(sums)
    squares = 1 * 90**2 + 2 * 18**2 + 10 * 10**2 + 30 * 15**2
    sizes = 1 * 90 + 2 * 18 + 10 * 10 + 30 * 15
    assert m["balanced_squared_error"] == squares and m["balanced_absolute_error"] == sizes
    frames = {k: np.array([2 * v]) for k, v in m.items()} | {"frames": np.array([2])}  # two such frames: their mean
    assert scores.FIELD_SCORES["b_mse"].of(frames)[0] == pytest.approx(squares / 255**2)
    assert scores.FIELD_SCORES["b_mae"].of(frames)[0] == pytest.approx(sizes / 255)
    counts = dict(zip(COUNTS, sums.counts, strict=True))
    # events at 0.5, 2, 5, 10, 30 mm/h
    assert counts["hits"].tolist() == [4, 3, 3, 1, 1]
    assert counts["misses"].tolist() == [0, 1, 0, 1, 0]
    assert counts["false_alarms"].tolist() == [1, 0, 0, 0, 0]


def make_source(domain):
    from pipeline.frames.frame_source import FrameSource
    from pipeline.grids import centred_grid

    grid = domain.grid
    return FrameSource(centred_grid(grid.crs, grid.shape, grid.spacing_m, grid.centre), 0.1, 0.0)


def test_nothing_valid_is_not_measured_and_not_zero():
    empty = pair_sums(np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint8), np.zeros((2, 2), bool), tables(50))
    sums = {k: v[:1] for k, v in zip(COUNTS, empty.counts, strict=True)}
    sums |= {k: np.array([v]) for k, v in zip(MOMENTS, empty.moments, strict=True)} | {"frames": np.array([0])}
    assert sums["hits"].tolist() == [0]
    with np.errstate(all="raise"):
        for name, score in {**scores.EVENT_SCORES, **scores.FIELD_SCORES}.items():
            assert np.isnan(score.of(sums)).all(), name
    assert np.isnan(scores.fss(np.zeros(1), np.zeros(1), np.zeros(1)))


def test_events_that_nobody_forecast_or_saw():
    h, m, f, c = (np.array([v]) for v in (0, 0, 0, 9))  # dry and forecast dry
    assert np.isnan(scores.csi(h, m, f)) and np.isnan(scores.far(h, f)) and scores.pofd(f, c) == 0
    assert np.isnan(scores.gss(h, m, f, c)) and np.isnan(scores.hss(h, m, f, c))
    h, m, f, c = (np.array([v]) for v in (0, 4, 0, 9))  # missed altogether
    assert scores.csi(h, m, f) == 0 and np.isnan(scores.far(h, f)) and np.isnan(scores.sedi(h, m, f, c))


def test_event_scores_equal_those_of_the_scores_package(pair):
    peer = pytest.importorskip("scores.categorical", reason="comparison package; `make test` installs it")
    forecast, observed, valid = pair
    threshold = 138
    made = pair_sums(forecast, observed, valid, tables(threshold))
    sums = {k: v[0] for k, v in zip(COUNTS, made.counts, strict=True)}
    # NaN in one only: the pair is left out of both
    manager = peer.ThresholdEventOperator(default_event_threshold=threshold).make_contingency_manager(
        as_nan(forecast, valid), as_nan(observed, valid | (observed > 0))
    )
    table = manager.transform()
    for name, theirs in (
        ("csi", table.critical_success_index()),
        ("pod", table.probability_of_detection()),
        ("far", table.false_alarm_ratio()),
        ("pofd", table.probability_of_false_detection()),
        ("bias", table.frequency_bias()),
        ("hss", table.heidke_skill_score()),
        ("gss", table.gilberts_skill_score()),
        ("sedi", table.symmetric_extremal_dependence_index()),
    ):
        assert float(scores.EVENT_SCORES[name].of(sums)) == pytest.approx(float(theirs), rel=1e-9), name


def test_pysteps_counts_missing_pixels_as_dry_and_we_do_not():
    peer = pytest.importorskip("pysteps.verification", reason="comparison package; `make test` installs it")
    forecast = np.array([[100.0, 100.0, 0.0, np.nan]])
    observed = np.array([[100.0, np.nan, 0.0, 0.0]])
    theirs = peer.detcatscores.det_cat_fct(forecast, observed, 50, scores=["CSI"])["CSI"]
    valid = ~np.isnan(forecast) & ~np.isnan(observed)
    counts = pair_sums(*(np.nan_to_num(v).astype(np.uint8) for v in (forecast, observed)), valid, tables(50)).counts
    assert theirs == 0.5  # rain over a pixel that nobody measured is their false alarm
    assert float(scores.csi(*counts[:3, 0])) == 1.0


WINDOWS = ((1, 1), (2, 2), (3, 3), (5, 5), (10, 10), (16, 16))


def test_fss_equals_that_of_the_scores_package_in_its_windows(pair):
    peer = pytest.importorskip("scores.spatial", reason="comparison package; `make test` installs it")
    forecast, observed, _ = pair
    everything = np.ones(forecast.shape, bool)
    levels = (66, 138, 161)
    sums = FractionSums(WINDOWS)([forecast, observed], observed, everything, levels)
    ours = scores.fss(*np.moveaxis(sums, -1, 0))
    for t, level in enumerate(levels):
        for s, window in enumerate(WINDOWS):
            theirs = peer.fss_2d(
                as_nan(forecast, everything),
                as_nan(observed, everything),
                event_threshold=level - 0.5,
                window_size=window,
                spatial_dims=("y", "x"),
            )
            assert ours[0, t, s] == pytest.approx(float(theirs), abs=1e-6), (level, window)
    assert ours[1] == pytest.approx(1.0, abs=1e-6)  # a forecast that is the observation


def test_fss_of_a_single_cell_equals_that_of_pysteps(pair):
    peer = pytest.importorskip("pysteps.verification", reason="comparison package; `make test` installs it")
    forecast, observed, _ = pair
    sums = FractionSums([(1, 1), (5, 5)])([forecast], observed, np.ones(forecast.shape, bool), (138,))
    ours = scores.fss(*np.moveaxis(sums, -1, 0))[0, 0]
    wide = [np.pad(v, 40) for v in (forecast, observed)]  # far from the border its zeros and our grid's end are one
    for n, scale in enumerate((1, 5)):
        theirs = peer.spatialscores.fss(*(v.astype(float) for v in wide), 138, scale)
        padded = FractionSums([(scale, scale)])([wide[0]], wide[1], np.ones(wide[0].shape, bool), (138,))
        assert float(scores.fss(*np.moveaxis(padded, -1, 0))[0, 0, 0]) == pytest.approx(theirs, abs=1e-6)
        if scale == 1:
            assert ours[n] == pytest.approx(theirs, abs=1e-6)


def test_fss_leaves_missing_cells_out_of_the_fractions():
    # one window of 2 x 2: an event on the one of three valid cells that both see, and one beside it
    forecast = np.array([[9, 0], [9, 9]], np.uint8)
    observed = np.array([[9, 0], [0, 9]], np.uint8)
    valid = np.array([[True, True], [True, False]])
    (f, o, fo) = FractionSums([(2, 2)])([forecast], observed, valid, (5,))[0, 0, 0]
    assert (f, o, fo) == pytest.approx(((2 / 3) ** 2, (1 / 3) ** 2, 2 / 9))
    less_than_half = np.array([[True, False], [False, False]])
    assert FractionSums([(2, 2)])([forecast], observed, less_than_half, (5,)).sum() == 0
    assert FractionSums([(3, 3)])([forecast], observed, valid, (5,)).sum() == 0  # larger than the grid


def test_fss_with_holes_equals_slow_loops():
    rng = np.random.default_rng(5)
    forecast, observed = rng.integers(0, 10, (2, 13, 17)).astype(np.uint8)
    forecast[:, 9:], observed[:, 11:] = 0, 0  # so that the windows are looked for around the events only
    for share in (0.6, 0.97):
        valid = rng.random(forecast.shape) < share
        sums = FractionSums([(3, 4), (7, 2)])([forecast], observed, valid, (4, 8, 200))
        for t, level in enumerate((4, 8, 200)):
            for s, (high, wide) in enumerate(((3, 4), (7, 2))):
                expected = np.zeros(3)
                for y in range(13 - high + 1):
                    for x in range(17 - wide + 1):
                        at = (slice(y, y + high), slice(x, x + wide))
                        if 2 * valid[at].sum() >= high * wide:
                            p, q = ((v[at] >= level)[valid[at]].mean() for v in (forecast, observed))
                            expected += p * p, q * q, p * q
                assert sums[0, t, s] == pytest.approx(expected, rel=1e-5)


def test_fractions_are_exact_where_running_sums_overflow():
    wet = np.full((400, 400), 255, np.uint8)  # 160,000 events: more than 16 bits
    sums = FractionSums([(100, 100)])([wet], wet, np.ones(wet.shape, bool), (1,))
    assert sums[0, 0, 0] == pytest.approx([301 * 301] * 3, rel=1e-6)


@pytest.mark.parametrize("shape", [(64, 64), (101, 101), (128, 128)])
def test_spectrum_equals_that_of_pysteps_on_squares(shape):
    peer = pytest.importorskip("pysteps.utils.spectral", reason="comparison package; `make test` installs it")
    field = np.random.default_rng(1).random(shape)
    theirs = peer.rapsd(field, fft_method=np.fft)
    assert spectrum(field, rings(shape, (1.0, 1.0)))[: len(theirs)] == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize(("axis", "shape"), [(0, (60, 120)), (1, (60, 120)), (0, (120, 40)), (1, (120, 40))])
def test_a_wave_has_its_wavelength_along_both_axes_of_any_grid(axis, shape):
    """pysteps counts coefficients instead, so that on a grid twice as wide as high one wave has two wavelengths."""
    spacing = (2.0, 1.0)  # rows 2 km apart
    km = np.arange(shape[axis]) * spacing[axis]
    wave = np.cos(2 * np.pi * km / 20)
    field = np.broadcast_to(wave[:, None] if axis == 0 else wave, shape)
    of = rings(shape, spacing)
    assert of.wavelength_km[spectrum(field, of).argmax()] == pytest.approx(20, rel=0.05)
    power = band_power(field, of)
    assert bands(of)[1][power.argmax()] == pytest.approx(20, rel=0.13)
    assert power.sum() == pytest.approx(0.5, rel=1e-6)  # Parseval: the mean square of a cosine


def test_thesis_correlation_by_hand():
    p, q = np.array([3.0, 0.0, 4.0]), np.array([3.0, 1.0, 0.0])
    value = scores.correlation((p * q).sum(), (p * p).sum(), (q * q).sum(), 3)
    assert float(value) == pytest.approx(9 / np.sqrt(25 * 10))
    assert np.isnan(scores.correlation(0.0, 0.0, 25.0, 3))  # a dry forecast is neither like nor unlike


def ensemble_sums(members, observed, mask, rates):
    domain = synthetic_domain(lead_frames=1)
    from pipeline.verification.rules import rules_of

    rules = rules_of(domain, make_source(domain))
    one = tables(*(pixel_tables(domain, rules).thresholds), rates=rates)
    exceedance = np.stack([(members >= t).mean(axis=0, dtype=np.float32) for t in one.thresholds])[:, None]
    forecast = Compared("e", members[0][None], np.ones((1, *observed.shape), bool), exceedance, members[:, None])
    sums = probability.empty(forecast, rules, 1)
    probability.add(sums, 0, 0, forecast, 0, observed, mask, one)
    return sums, one


def test_crps_of_an_ensemble_equals_that_of_the_scores_package(pair):
    peer = pytest.importorskip("scores.probability", reason="comparison package; `make test` installs it")
    _, observed, valid = pair
    rng = np.random.default_rng(9)
    members = np.clip(observed.astype(int) + rng.integers(-60, 60, (7, *observed.shape)), 0, 255).astype(np.uint8)
    rates = np.linspace(0, 50, 256)
    sums, _ = ensemble_sums(members, observed, valid, rates)
    ours = {name: float(s.of({k: v[0, 0] for k, v in sums.items()})) for name, s in scores.ENSEMBLE_SCORES.items()}
    fields = xr.DataArray(rates[members], dims=("m", "y", "x"))
    truth = as_nan(observed, valid).copy(data=np.where(valid, rates[observed], np.nan))
    for name, method in (("crps", "ecdf"), ("crps_fair", "fair")):
        theirs = float(peer.crps_for_ensemble(fields, truth, "m", method=method).mean())
        assert ours[name] == pytest.approx(theirs, rel=1e-9)


def test_brier_reliability_and_roc_by_hand():
    members = np.array([[[200, 200, 0, 0]], [[200, 0, 0, 0]]], np.uint8)  # probabilities 1, 0.5, 0, 0
    observed = np.array([[200, 200, 0, 200]], np.uint8)
    mask = np.array([[True, True, True, True]])
    sums, _ = ensemble_sums(members, observed, mask, np.arange(256.0))
    first = {k: v[0, 0, ..., 0] for k, v in sums.items() if k.startswith(("bin", "probability"))}
    assert first["bin_pairs"].tolist() == [2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]
    assert first["bin_events"].tolist() == [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]
    assert float(scores.brier(first)) == (0 + 0.25 + 0 + 1) / 4
    assert float(scores.brier_skill(first)) == pytest.approx(1 - (1.25 / 4) / (0.75 * 0.25))
    false_rate, rate = scores.roc(first)
    assert rate[1] == pytest.approx(1 / 3) and rate[6] == pytest.approx(2 / 3) and rate[-1] == 1
    assert false_rate[6] == 0 and false_rate[-1] == 1
    # triangle and trapezoid by hand: from (0, 2/3) to (1, 1)
    assert float(scores.roc_area(first)) == pytest.approx(5 / 6)


def test_a_probability_where_there_is_no_forecast_says_that_rain_is_impossible():
    members = np.array([[[200, 200]]], np.uint8)
    observed = np.array([[200, 200]], np.uint8)
    domain = synthetic_domain(lead_frames=1)
    from pipeline.verification.rules import rules_of

    rules = rules_of(domain, make_source(domain))
    one = pixel_tables(domain, rules)
    said = np.ones((len(one.thresholds), 1, 1, 2), np.float32)
    half = np.array([[[True, False]]])
    forecast = Compared("e", members[0][None], half, said, members[:, None])
    sums = probability.empty(forecast, rules, 1)
    probability.add(sums, 0, 0, forecast, 0, observed, np.ones((1, 2), bool), one)
    assert sums["probability_squared_error"][0, 0, 0] == 1.0
    assert sums["ensemble_distance"][0, 0] == pytest.approx(one.rates[200])
