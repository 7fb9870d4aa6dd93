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
from pipeline.storage import Store
from pipeline.verification import bootstrap, summary
from pipeline.verification.report import last_whole
from pipeline.verification.summary import Verdict
from tests.conftest import NOW, settings_for, synthetic_domain

T0 = datetime(2024, 6, 1, 2, 0, tzinfo=UTC)
STEP = timedelta(minutes=10)


@pytest.fixture
def settings(root):
    return settings_for(root, synthetic_domain(model="optical_flow"))


@pytest.fixture(scope="module")
def day(tmp_path_factory):
    """Eight hours of forecasts, verified; not to be changed."""
    settings = settings_for(tmp_path_factory.mktemp("day") / "root", synthetic_domain(model="optical_flow"))
    operations.backfill(settings, "small", T0, T0 + timedelta(hours=8), NOW)
    return settings


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
    for words in ("CSI", "mm/h", "optical_flow", "Rules of this verification", "49 forecasts were published"):
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
    assert (table.hours == 9).all() and table.coverage.between(0, 1).all()


def test_the_summary_says_what_the_table_says(day, tmp_path):
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
    assert any("rather than" in one for one in written.summary)  # optical flow beats the last frame: the rain moves


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
    low, high = bootstrap.interval(drawn["hits"] / (drawn["hits"] + drawn["misses"]))
    assert low[0] == pytest.approx(0.5 - 1.96 * 0.05, abs=0.012)
    assert high[0] == pytest.approx(0.5 + 1.96 * 0.05, abs=0.012)


def test_a_difference_is_drawn_in_pairs():
    """Hours differ a lot, methods by the same in each: the difference is certain although the scores are not."""
    hours = np.random.default_rng(0).uniform(1, 9, (30, 1))
    weights = bootstrap.draws(30, seed=0)
    pairs = bootstrap.resampled({"pairs": np.ones((30, 1))}, weights)["pairs"]
    one, other = (bootstrap.resampled({"e": hours + shift}, weights)["e"] / pairs for shift in (0, 1))
    low, high = bootstrap.interval(one)
    assert high[0] - low[0] > 1
    assert np.array(bootstrap.interval(other - one))[:, 0] == pytest.approx([1, 1])


def test_draws_without_an_event_give_no_interval():
    samples = np.full((100, 2), 0.3)
    samples[:4, 0], samples[:6, 1] = np.nan, np.nan
    low, _ = bootstrap.interval(samples)
    assert low[0] == 0.3 and np.isnan(low[1])


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


def test_what_changed_is_said_only_beyond_both_intervals():
    now, before = [verdict(-0.10, -0.12, -0.08)], [verdict(0.0, -0.02, 0.02)]
    (said,) = summary.about_change(now, before, "last week")
    assert "fell" in said and "from +0.000 to -0.100" in said
    assert "beyond chance" in summary.about_change(now, [verdict(-0.05, -0.11, 0.01)], "last week")[0]
    assert "no verified forecast" in summary.about_change(now, [], "last week")[0]


def test_any_pair_of_methods_and_names_that_do_not_exist(day, tmp_path):
    written, _ = page_of(day, tmp_path, pair=("last_frame", "optical_flow"))
    assert "last_frame_optical_flow" in written.page.name
    assert any(one.startswith("Believe optical_flow rather than last_frame") for one in written.summary)
    with pytest.raises(SettingsError, match=r"'nobody'.*optical_flow \(hindcast\): optical_flow, last_frame"):
        page_of(day, tmp_path, pair=("nobody", "last_frame"))
    with pytest.raises(SettingsError, match="the same"):
        page_of(day, tmp_path, pair=("last_frame", "last_frame"))


def test_a_part_of_the_period_is_compared_with_the_part_before(day, tmp_path):
    middle = T0 + timedelta(hours=4)
    written, _ = page_of(day, tmp_path, middle, T0 + timedelta(hours=8))
    assert any("Since the period before" in one or "beyond chance" in one for one in written.summary) or any(
        "too few" in one for one in written.summary
    )
    assert not any("no verified forecast of the period before" in one for one in written.summary)


def test_an_empty_period_and_one_single_forecast(day, tmp_path):
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


def test_a_forecast_without_observations_is_listed_with_the_reason(settings, tmp_path):
    operations.ingest(settings, "small", T0 - 4 * STEP, T0, NOW)
    operations.run(settings, "small", T0, NOW)
    report = operations.verify(settings, "small", None, None, NOW)
    assert (report.verify.scored, report.verify.waiting) == (0, 1)
    _, page = page_of(settings, tmp_path)
    assert "No forecast has been verified yet" in page
    assert "2024-06-01T02:00:00Z (hindcast), not yet: no observation of its lead times has arrived" in page


def test_the_page_does_not_call_it_dry_when_there_was_nothing_to_compare(settings, tmp_path):
    # before T0 there is no frame, so that only the last frame can serve
    operations.ingest(settings, "small", T0, T0 + 4 * STEP, NOW)
    store, catalog = operations.open_root(settings)
    domain = settings.domain("small")
    nowcast.issue(
        domain, store, catalog, lambda m: nowcast.load_methods(domain, store, settings, m), [T0], "hindcast", NOW
    )
    operations.verify(settings, "small", None, None, NOW)
    written, page = page_of(settings, tmp_path)
    assert sum("no pixel where last_frame, optical_flow and the observation" in s for s in written.summary) == 4
    assert "no event was observed" not in page


def test_the_page_escapes_what_comes_from_outside(settings, tmp_path):
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
