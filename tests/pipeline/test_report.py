"""The page: true sentences, nothing invented, nothing from outside run, and intervals that repeat."""

import re
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa

from pipeline import catalog as tables
from pipeline import nowcast, operations
from pipeline.catalog import Catalog
from pipeline.errors import NotForecast, SettingsError
from pipeline.frames.archive import Archive
from pipeline.issue import Wanted, issue
from pipeline.storage import Store
from pipeline.times import Clock
from pipeline.verification import bootstrap, scores, summary
from pipeline.verification.period import Verified
from pipeline.verification.report import last_whole
from pipeline.verification.summary import Verdict
from pipeline.verification.tables import Estimate
from tests.conftest import NOW, settings_for, synthetic_domain

T0 = datetime(2024, 6, 1, 2, 0, tzinfo=UTC)
STEP = timedelta(minutes=10)


@pytest.fixture
def settings(root):
    return settings_for(root, synthetic_domain(model="optical_flow"))


@pytest.fixture(scope="module")
def day(tmp_path_factory):
    """Twelve hours of short showers, verified; not to be changed."""
    source = {"kind": "synthetic", "seed": 21, "event_hours": 1}
    domain = synthetic_domain(model="optical_flow", source=source)
    settings = settings_for(tmp_path_factory.mktemp("day") / "root", domain)
    operations.backfill(settings, "small", T0, T0 + timedelta(hours=12), NOW)
    return settings


@pytest.fixture
def unpainted(monkeypatch):
    """Figures take seconds; what a page says does not need them."""
    monkeypatch.setattr("pipeline.verification.report._figures", lambda *arguments: [])
    monkeypatch.setattr("pipeline.verification.figures.case_maps", lambda *arguments: "")


def page_of(settings, tmp_path, *period, **arguments):
    start, end = period or (None, None)
    written = operations.report(settings, "small", start, end, tmp_path, NOW, **arguments)
    return written, written.page.read_text()


def verdict(difference, low=np.nan, high=np.nan, value=0.5, lead=30, threshold=0.5):
    return Verdict(lead, threshold, "net", "optical_flow", value, value - difference, difference, low, high, 9)


def test_the_page_is_self_contained_and_the_csv_holds_every_score(day, tmp_path):
    written, page = page_of(day, tmp_path / "out")
    assert written.page.parent == tmp_path / "out"
    assert "http" not in page and "<script" not in page and 'src="data:image/png' in page
    for words in ("CSI", "mm/h", "optical_flow", "Rules of this verification", "73 forecasts were published"):
        assert words in page
    assert "nan" not in re.sub(r"base64,[^\"]*", "", page).lower()
    table = pd.read_csv(written.scores)
    wanted = {"csi", "pod", "far", "pofd", "bias", "hss", "gss", "sedi", "mse", "mae", "correlation", "b_mse", "b_mae"}
    assert wanted | {"rain_mse", "fss"} <= set(table.score)
    assert set(table.pixel_set) == {"common", "all_observed"}
    one = table[(table.score == "csi") & (table.lead_minutes == 30) & (table.threshold_mm_h == 0.5)]
    one = one[one.pixel_set == "common"].set_index(["method", "versus"], drop=False).fillna({"versus": ""})
    value = {(row.method, row.versus): row for row in one.itertuples()}
    difference = value["optical_flow", "last_frame"]
    assert difference.value == pytest.approx(value["optical_flow", ""].value - value["last_frame", ""].value, abs=1e-5)
    assert difference.low < difference.value < difference.high
    assert (table.hours == 13).all() and (table.blocks >= 6).all() and table.coverage.between(0, 1).all()


def test_the_summary_says_what_the_table_says(day, tmp_path, unpainted):
    written, page = page_of(day, tmp_path)
    table = pd.read_csv(written.scores)
    row = table[
        (table.score == "csi") & (table.lead_minutes == 30) & (table.threshold_mm_h == 0.5)
        & (table.pixel_set == "common") & (table.method == "optical_flow") & (table.versus == "last_frame")
    ].iloc[0]  # fmt: skip
    (said,) = [one for one in written.summary if one.startswith("30 min, 0.5 mm/h")]
    assert f"{row.value:+.3f} [{row.low:+.3f}, {row.high:+.3f}]" in said
    assert ("better" in said) == (row.low > 0)
    assert said.replace("'", "&#39;") in page
    assert not np.isnan(row.low) and "too few" not in said


def test_intervals_repeat_and_depend_on_the_seed():
    weights = bootstrap.draws(12, seed=0, count=200)
    assert (weights == bootstrap.draws(12, seed=0, count=200)).all()
    assert (weights != bootstrap.draws(12, seed=1, count=200)).any()
    assert (weights.sum(axis=1) == 12).all()


def test_an_interval_by_hand():
    """Two kinds of hours, all alike within a kind: the draws are binomial."""
    hits = np.array([[10.0]] * 50 + [[0.0]] * 50)
    sums = {"hits": hits, "misses": 10 - hits, "false_alarms": 0 * hits}
    drawn = bootstrap.resampled(sums, bootstrap.draws(100, seed=0, count=4000))
    low, high = bootstrap.interval(drawn["hits"] / (drawn["hits"] + drawn["misses"]), np.array([0.5]), 100)
    assert low[0] == pytest.approx(0.5 - 1.98 * 0.05, abs=0.012)
    assert high[0] == pytest.approx(0.5 + 1.98 * 0.05, abs=0.012)


@pytest.mark.parametrize(("hours", "memory_h", "least"), [(12, 0.0, 0.9), (96, 1.0, 0.84), (168, 3.0, 0.88)])
def test_intervals_hold_what_they_promise_when_hours_resemble_each_other(hours, memory_h, least):
    """Differences that remember, every ten minutes: of many periods, how many intervals hold the true mean, 0."""
    rng = np.random.default_rng(1)
    count, periods, inside, given = 6 * hours, 120, 0, 0
    r = float(np.exp(-1 / (6 * memory_h))) if memory_h else 0.0
    stamps = np.arange(count, dtype=np.int64) * 600
    for n in range(periods):
        noise = rng.normal(size=count)
        series = np.empty(count)
        series[0] = noise[0] / np.sqrt(1 - r * r)
        for k in range(1, count):
            series[k] = r * series[k - 1] + noise[k]
        by_hour = {"d": series.reshape(hours, 6).sum(axis=1)[:, None], "n": np.full((hours, 1), 6.0)}
        size = bootstrap.effective_size(series, stamps, 600)
        length = bootstrap.block_hours(np.array([size]), count, hours, 600, 7200)
        blocks = bootstrap.in_blocks(by_hour, np.arange(hours), length)
        if len(blocks["d"]) < bootstrap.FEWEST_BLOCKS:
            continue
        drawn = bootstrap.resampled(blocks, bootstrap.draws(len(blocks["d"]), seed=n, count=300))
        value = by_hour["d"].sum(axis=0) / by_hour["n"].sum(axis=0)
        low, high = bootstrap.interval(drawn["d"] / drawn["n"], value, len(blocks["d"]))
        given += 1
        inside += bool(low[0] <= 0 <= high[0])
    assert given > periods / 2
    assert inside / given >= least


def test_a_difference_is_drawn_in_pairs():
    """Hours differ a lot, methods by the same in each: the difference is certain although the scores are not."""
    hours = np.random.default_rng(0).uniform(1, 9, (30, 1))
    weights = bootstrap.draws(30, seed=0)
    pairs = bootstrap.resampled({"pairs": np.ones((30, 1))}, weights)["pairs"]
    one, other = (bootstrap.resampled({"e": hours + shift}, weights)["e"] / pairs for shift in (0, 1))
    low, high = bootstrap.interval(one, hours.mean(axis=0), 30)
    assert high[0] - low[0] > 1
    assert np.array(bootstrap.interval(other - one, np.ones(1), 30))[:, 0] == pytest.approx([1, 1])


def test_draws_without_an_event_give_no_interval():
    samples = np.full((100, 2), 0.3)
    samples[:4, 0], samples[:6, 1] = np.nan, np.nan
    low, _ = bootstrap.interval(samples, np.full(2, 0.3), 9)
    assert low[0] == 0.3 and np.isnan(low[1])


def test_hours_are_drawn_together_as_long_as_forecasts_resemble_each_other():
    # of 24 hours twelve forecasts are worth something: twice two hours, and in shorter periods less, but not below two
    assert bootstrap.block_hours(np.array([12.0, 48.0]), 144, 24, 600, 7200) == 4
    assert bootstrap.block_hours(np.array([12.0]), 144, 18, 600, 7200) == 3
    assert bootstrap.block_hours(np.array([12.0]), 144, 6, 600, 7200) == 2
    assert bootstrap.block_hours(np.array([144.0]), 144, 24, 600, 7200) == 1
    assert bootstrap.block_hours(np.array([np.nan]), 4, 4, 600, 7200) == 2  # not known: the last lead time
    blocks = bootstrap.in_blocks({"a": np.arange(5)}, np.array([10, 11, 12, 15, 16]), 2)
    assert blocks["a"].tolist() == [0 + 1, 2, 3, 4]  # hours 10 and 11, 12, (13 is missing), 15, 16


def test_the_effective_size_of_a_series_that_remembers():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=20000)
    memory = np.zeros_like(noise)
    for n in range(1, len(noise)):
        memory[n] = 0.8 * memory[n - 1] + noise[n]
    times = np.arange(20000, dtype=np.int64) * 600
    assert bootstrap.effective_size(noise, times, 600) == pytest.approx(20000, rel=0.05)
    assert bootstrap.effective_size(memory, times, 600) == pytest.approx(20000 * 0.2 / 1.8, rel=0.1)
    assert np.isnan(bootstrap.effective_size(noise[:8], times[:8], 600))
    assert np.isnan(bootstrap.effective_size(noise[:50], times[:50] * 2, 600))  # no neighbours


@pytest.mark.parametrize(
    ("one", "word"),
    [
        (verdict(0.04, 0.01, 0.07), "better"),
        (verdict(-0.04, -0.07, -0.01), "worse"),
        (verdict(0.04, -0.01, 0.07), "no difference shown"),
        (verdict(0.0, 0.0, 0.0), "no difference shown"),
        (verdict(0.04), "higher"),
        (verdict(-0.04), "lower"),
        (verdict(0.0), "equal"),
        (verdict(np.nan, value=np.nan), "not measured"),
    ],
)
def test_words_for_a_difference(one, word):
    assert one.word == word
    said = summary.sentence(one)
    assert word in said and "nan" not in said


def test_which_method_to_believe():
    better, worse, none = verdict(0.04, 0.01, 0.07), verdict(-0.04, -0.07, -0.01, lead=60), verdict(0.01, -0.1, 0.1)
    assert summary.belief([better, none]).startswith("Believe net rather than optical_flow")
    assert summary.belief([worse, none]).startswith("Believe optical_flow rather than net")
    assert summary.belief([none]).startswith("No difference between net and optical_flow is shown")
    assert "better than optical_flow at 30 min" in summary.belief([better, worse])
    assert "too few hours" in summary.belief([verdict(0.04)])
    assert "Nothing was measured" in summary.belief([verdict(np.nan, value=np.nan)])


@pytest.mark.parametrize(
    ("ahead", "said"),
    [
        ([True, True, True, True], "at all lead times"),
        ([False, True, True, True], "from 20 to 40 min"),
        ([True, False, True, True], "at 10 min and from 30 to 40 min"),
        ([False, False, False, False], ""),
    ],
)
def test_where_a_forecast_is_better(ahead, said):
    assert summary.better_leads(np.array([10, 20, 30, 40]), np.array(ahead)) == said


def hand_made(forecast_rain=100.0, power=1.0, csi_net=(5, 50, 50, 50), csi_last=(5, 10, 10, 10)):
    """One threshold, four lead times to 60 minutes, two methods, in one hour."""
    hits = np.array([csi_net, csi_last])[None, :, :, None, None] * np.ones(2)
    leads, zeros = np.array([15, 30, 45, 60]), np.zeros_like(hits)
    by_hour = {
        "hits": hits,
        "misses": 100 - hits,
        "false_alarms": zeros,
        "correct_negatives": zeros,
        "pairs": np.full((1, 2, 4, 2), 100.0),
        "observed": np.full((1, 4), 7),
        "forecast_rain": np.full((1, 2, 4, 2), forecast_rain),
        "observed_rain": np.full((1, 2, 4, 2), 100.0),
        "power": np.array([[[[power, 9.0]], [[1.0, 9.0]]]]),
        "observed_power": np.array([[[1.0, 9.0]]]),
    }
    axes = {
        "lead": leads,
        "threshold": np.array([0.5]),
        "structure_lead": np.array([60]),
        "band": np.array([8.0, 80.0]),
    }
    each = {name: np.repeat(by_hour[name][..., 0], 7, axis=0) for name in ("hits", "misses", "false_alarms")}
    stamps = np.arange(7, dtype=np.int64) * 600
    return Verified("net", "issued", ("net", "last_frame"), axes, np.array([0]), by_hour, 600, 3600, stamps, each, [])


def csi_of(verified):
    total = {name: verified.total[name][..., 0] for name in ("hits", "misses", "false_alarms")}
    value = scores.EVENT_SCORES["csi"].of(total)
    unknown = np.full_like(value, np.nan)
    difference = (value - value[1:], unknown, unknown)
    return Estimate("csi", ("lead", "threshold"), value, unknown, unknown, {"last_frame": difference})


def test_a_tie_at_the_first_lead_time_is_not_called_worse_than_the_last_frame():
    (said,) = summary.about_last_frame(one := hand_made(), csi_of(one), "net")
    assert said.startswith("At 0.5 mm/h, net is better than simply keeping the last frame from 30 to 60 min")
    (said,) = summary.about_last_frame(one := hand_made(csi_net=(1, 1, 1, 1)), csi_of(one), "net")
    assert "net is at no lead time better than simply keeping the last frame" in said


@pytest.mark.parametrize(
    ("rain", "power", "said"),
    [(100.0, 0.9, "of last"), (100.0, 0.2, "it is blurred"), (20.0, 0.2, "it is too weak, too smooth or both")],
)
def test_blur_is_blamed_only_where_the_amount_is_about_right(rain, power, said):
    amount, structure = summary.about_amount_and_blur(hand_made(rain, power), "net")
    assert amount == f"At 60 min net forecasts {rain / 100:.2f} times the rain that was observed."
    assert structure.startswith(f"At 60 min it keeps {100 * power:.0f} % of the observed structure")
    assert "(the last frame 100 %)" in structure
    assert (said in structure) or (said == "of last" and "blur" not in structure and "weak" not in structure)


def test_what_ends_early_is_shown_at_the_last_lead_time_that_was_measured():
    verified = hand_made()
    assert (verified.measured_lead("lead", 60), verified.measured_lead("structure_lead", 60)) == (3, 0)
    verified.total["pairs"][:, 2:] = 0  # a foreign forecast that ends at 30 minutes
    assert verified.measured_lead("lead", 60) == 1
    amount, *_ = summary.about_amount_and_blur(verified, "net")
    assert amount.startswith("At 30 min")
    verified.total["pairs"][:] = 0
    assert verified.measured_lead("lead", 60) == 3


def test_few_hours_are_said_to_be_few():
    said = summary.about_certainty(hand_made())
    assert (
        said.startswith("7 forecasts in 1 hour. As long as they resemble each other")
        and "too few for intervals" in said
    )


def test_what_changed_is_said_only_beyond_both_intervals():
    now, before = [verdict(-0.10, -0.12, -0.08)], [verdict(0.0, -0.02, 0.02)]
    (said,) = summary.about_change(now, before, "last week")
    assert "fell" in said and "from +0.000 to -0.100" in said
    assert "beyond chance" in summary.about_change(now, [verdict(-0.05, -0.11, 0.01)], "last week")[0]
    assert "no forecast of last week that was verified in the same way" in summary.about_change(now, [], "last week")[0]
    assert "cannot be told" in summary.about_change([verdict(0.3)], [verdict(-0.3)], "last week")[0]


def test_any_pair_of_methods_and_names_that_do_not_exist(day, tmp_path, unpainted):
    written, _ = page_of(day, tmp_path, pair=("last_frame", "optical_flow"))
    assert "last_frame_optical_flow" in written.page.name
    assert any(one.startswith("30 min") and "of optical_flow; " in one for one in written.summary)
    with pytest.raises(SettingsError, match=r"'nobody'.*optical_flow \(hindcast\): optical_flow, last_frame"):
        page_of(day, tmp_path, pair=("nobody", "last_frame"))
    with pytest.raises(SettingsError, match="the same"):
        page_of(day, tmp_path, pair=("last_frame", "last_frame"))


def test_a_part_of_the_period_is_compared_with_the_part_before(day, tmp_path, unpainted):
    middle = T0 + timedelta(hours=4)
    written, _ = page_of(day, tmp_path, middle, T0 + timedelta(hours=8))
    assert any("cannot be told" in one for one in written.summary)  # four hours each


def test_cases_are_the_best_and_the_worst_and_show_what_they_say(day, monkeypatch):
    from pipeline.verification import cases as module
    from pipeline.verification.period import read_period

    drawn = []
    monkeypatch.setattr(module.figures, "case_maps", lambda lines, columns, grid: drawn.append((lines, columns)) or "x")
    store, catalog = operations.open_root(day)
    verified = read_period(store, catalog, day.domain("small"), T0, T0 + timedelta(days=1))[0]
    best, worst = module.cases(day.domain("small"), store, catalog, verified)
    assert best.title.startswith("Best") and worst.title.startswith("Worst")
    assert float(best.title.split()[-1]) > float(worst.title.split()[-1])
    archive = Archive(store, day.domain("small"))
    for case, (lines, columns) in zip((best, worst), drawn, strict=True):
        time = datetime.fromisoformat(case.title.split()[2].rstrip(","))
        observed, forecast, _, difference = lines["+30 min"]
        assert columns == ["observed", "optical_flow", "last_frame", "optical_flow - observed"]
        np.testing.assert_array_equal(difference, forecast - observed)
        assert (observed > 0).sum() == (archive.read(time + 3 * STEP).rain > 0).sum()


def test_the_effective_size_and_the_pairs_are_those_of_each_lead_time(day):
    from pipeline.verification.period import read_period
    from pipeline.verification.tables import estimates, score_table

    store, catalog = operations.open_root(day)
    verified = read_period(store, catalog, day.domain("small"), T0, T0 + timedelta(days=1))[0]
    assert len(set(verified.effective_forecasts.round(6))) == 4
    verified.total["pairs"][:, :, 0] -= np.array([1, 2, 3, 4])  # as if some cells were not common
    table = score_table(verified, {name: estimates(verified, name, 0) for name in ("common", "all_observed")})
    part = table[(table.score == "mae") & (table.versus == "") & (table.method == "last_frame")]
    pairs = part.pivot(index="lead_minutes", columns="pixel_set", values="pairs")
    assert (pairs.all_observed - pairs.common).tolist() == [1, 2, 3, 4]
    effective = part[part.pixel_set == "common"].effective_forecasts
    assert effective.to_numpy() == pytest.approx(verified.effective_forecasts)


def test_an_empty_period_and_one_single_forecast(day, tmp_path, unpainted):
    later = T0 + timedelta(days=30)
    with pytest.raises(NotForecast, match="no forecast of small in the period"):
        page_of(day, tmp_path, later, later + STEP)
    written, page = page_of(day, tmp_path, T0, T0)
    assert "1 forecast was published" in page
    assert any("too few" in one for one in written.summary)
    assert pd.read_csv(written.scores).low.isna().all()


def test_only_dry_days_give_sentences_and_no_number(root, tmp_path):
    domain = synthetic_domain(model="optical_flow")
    settings = settings_for(root, domain)
    operations.ingest(settings, "small", T0 - 4 * STEP, T0 + 12 * STEP, NOW)
    archive = Archive(Store(root), domain)
    for n in range(-4, 13):
        frame = archive.read(T0 + n * STEP)
        frame.pixels[:], frame.state[:] = 0, 2
        archive.write(T0 + n * STEP, frame, archive.source())
    operations.backfill(settings, "small", T0, T0 + 8 * STEP, NOW)
    written, page = page_of(settings, tmp_path)
    assert any("Nothing was measured" in one for one in written.summary)
    assert sum("no event was observed or forecast" in one for one in written.summary) == 4
    assert "No case is shown" in page
    assert "nan" not in re.sub(r"base64,[^\"]*", "", page).lower()


def test_a_forecast_without_observations_is_listed_with_the_reason(settings, tmp_path, unpainted):
    operations.ingest(settings, "small", T0 - 4 * STEP, T0, NOW)
    operations.run(settings, "small", T0, NOW)
    report = operations.verify(settings, "small", None, None, NOW)
    assert (report.verify.scored, report.verify.waiting) == (0, 1)
    _, page = page_of(settings, tmp_path)
    assert "No forecast has been verified yet" in page
    assert "2024-06-01T02:00:00Z (hindcast), not yet: no observation of its lead times has arrived" in page


def test_the_page_does_not_call_it_dry_when_there_was_nothing_to_compare(settings, tmp_path, unpainted):
    # before T0 there is no frame, so that only the last frame can serve
    operations.ingest(settings, "small", T0, T0 + 4 * STEP, NOW)
    store, catalog = operations.open_root(settings)
    domain = settings.domain("small")
    wanted = [Wanted(domain, T0)]
    list(issue(store, catalog, nowcast.Loader(store, settings, catalog).methods, wanted, "hindcast", Clock(NOW)))
    operations.verify(settings, "small", None, None, NOW)
    written, page = page_of(settings, tmp_path)
    assert sum("no pixel where last_frame, optical_flow and the observation" in s for s in written.summary) == 4
    assert "no event was observed" not in page


def test_the_page_escapes_what_comes_from_outside(settings, tmp_path, unpainted):
    operations.backfill(settings, "small", T0, T0, NOW)
    with Catalog(settings.catalog).write() as connection:
        connection.execute(sa.update(tables.cycles).values(reason="<script>alert(1)</script>"))
    _, page = page_of(settings, tmp_path)
    assert "<script>" not in page and "&lt;script&gt;" in page


@pytest.mark.parametrize(
    ("period", "start", "end"),
    [
        ("day", datetime(2024, 2, 29, tzinfo=UTC), datetime(2024, 2, 29, 23, 59, 59, tzinfo=UTC)),
        ("week", datetime(2024, 2, 19, tzinfo=UTC), datetime(2024, 2, 25, 23, 59, 59, tzinfo=UTC)),
        ("month", datetime(2024, 2, 1, tzinfo=UTC), datetime(2024, 2, 29, 23, 59, 59, tzinfo=UTC)),
    ],
)
def test_the_last_whole_period(period, start, end):
    assert last_whole(period, datetime(2024, 3, 1, 7, tzinfo=UTC)) == (start, end)
