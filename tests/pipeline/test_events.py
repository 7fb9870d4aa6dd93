"""Warnings and onsets verified as events, and what a product says of its own quality."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from pipeline import operations, packing, times
from pipeline.domain import Domain
from pipeline.frames.archive import Archive
from pipeline.storage import Store
from pipeline.verification import events, files
from pipeline.verification.period import Verified, read_period
from pipeline.verification.quality import known_quality
from tests.conftest import NOW, settings_for, synthetic_domain

T0 = datetime(2024, 6, 1, 2, 0, tzinfo=UTC)
STEP = timedelta(minutes=10)
RULE = {"place": "mill", "amount_mm": 10.0, "minutes": 60, "clear_mm": 7.0}


def verified(places):
    stamps = np.array([times.seconds(T0 + n * STEP) for n in range(len(places))])
    return Verified("m", "issued", ("m", "last_frame"), {}, np.array([0]), {}, 600, 3600, stamps, {}, places)


def domain(**changes) -> Domain:
    return synthetic_domain(model="optical_flow", lead_frames=6, points={"mill": [5.0, 51.0]}, **changes)


def score(forecast, observed):
    series = [{"mill": {"amount_mm": {"60": [f, o]}, "onset": None}} for f, o in zip(forecast, observed, strict=True)]
    (made,) = events.warning_scores(domain(warnings=[RULE]), verified(series))
    return made


def test_a_warning_before_the_rain_gains_time():
    # from cycle 3 on 10 mm lie ahead, so they have fallen 60 minutes later; warned from cycle 2 on
    made = score([0, 8, 11, 12, 12, 3, 3, 0, 0], [0, 0, 2, 10, 12, 11, 2, 0, 0])
    assert (made.cycles, made.events, made.detected, made.warnings, made.false) == (9, 1, 1, 1, 0)
    assert made.gained_minutes == 70
    assert made.pod == 1 and made.far == 0


def test_a_warning_that_comes_late_gains_less_and_one_after_all_nothing():
    late = score([0, 0, 0, 0, 11, 11, 0, 0, 0], [0, 0, 10, 12, 12, 11, 0, 0, 0])
    assert late.detected == 1 and late.gained_minutes == 40
    after = score([0, 0, 0, 0, 0, 0, 0, 0, 0, 11], [0, 10, 0, 0, 0, 0, 0, 0, 0, 0])
    assert (after.events, after.detected, after.warnings, after.false) == (1, 0, 1, 1)
    assert after.pod == 0 and after.far == 1


def test_hysteresis_makes_one_warning_of_a_wavering_forecast():
    made = score([11, 8, 11, 6, 8, 11, 0, 0, 0], [10, 10, 10, 0, 0, 10, 0, 0, 0])
    assert made.warnings == 1 and made.false == 0 and made.events == 1  # 20 minutes apart are one event


def test_one_warning_over_two_events_gains_for_the_second_no_more_than_two_windows():
    made = score([11] * 20, [10] + [0] * 16 + [10, 10, 0])
    assert (made.events, made.detected, made.warnings, made.false) == (2, 2, 1, 0)
    assert made.gained_minutes == (60 + 120) / 2  # at its first cycle; and 60 minutes before the other's first


def test_a_warning_when_the_amount_is_no_longer_ahead_is_false():
    made = score([0, 0, 0, 11, 11, 0, 0], [10, 10, 0, 0, 0, 0, 0])
    assert (made.events, made.detected, made.warnings, made.false) == (
        1,
        1,
        1,
        1,
    )  # in time for the last of it, yet false


def test_the_replay_sees_forecasts_without_an_observation():
    made = score([11, 11, 11], [None, 10, 10])
    assert made.cycles == 2 and made.gained_minutes == 70


def test_nothing_happened_is_not_measured():
    made = score([0, 0], [0, 0])
    assert made.events == made.warnings == 0
    assert np.isnan(made.pod) and np.isnan(made.far) and np.isnan(made.gained_minutes)
    unknown = score([11, None, 11], [None, 12, 10])
    assert unknown.cycles == 1


def test_onset_errors_by_hand():
    onsets = [[20, 10], [10, 30], [None, 20], [30, None], [None, None], None]
    places = [{"mill": {"amount_mm": {}, "onset": onset}} for onset in onsets]
    (made,) = events.onset_scores(verified(places))
    assert (made.forecasts, made.both, made.missed, made.false) == (5, 2, 1, 1)
    assert made.mean_error == -5 and made.mean_size == 15


@pytest.fixture
def settings(root):
    return settings_for(root, domain(warnings=[RULE]))


def test_places_are_verified_against_what_the_archive_shows_there(settings):
    operations.backfill(settings, "small", T0, T0 + 3 * STEP, NOW)
    store, catalog = operations.open_root(settings)
    archive = Archive(store, settings.domain("small"))
    (found,) = read_period(store, catalog, settings.domain("small"), T0, T0 + 3 * STEP)
    record = found.places[0]["mill"]
    # a point in the middle of the grid; synthetic frames are instants, so the trapezoid is near
    from pipeline.frames.grayscale import rate_table

    rates = rate_table(settings.domain("small").zr, settings.domain("small").scale, 0.1)
    cell = [float(rates[archive.read(T0 + n * STEP).rain[32, 32]]) for n in range(7)]
    trapezoid = sum(cell) / 6 - (cell[0] + cell[-1]) / 12
    assert record["amount_mm"]["60"][1] == pytest.approx(trapezoid, rel=0.5, abs=0.5)
    product = settings.root / "products/small/hindcast/2024/06/01/small_20240601T020000Z_r1.places.json"
    assert f'"60": {record["amount_mm"]["60"][0]}' in product.read_text()
    page = operations.report(settings, "small", None, None, None, NOW).page.read_text()
    assert "Warnings as events" in page and "mill" in page


def test_a_lost_observation_leaves_the_amount_unknown(settings):
    operations.ingest(settings, "small", T0 - 4 * STEP, T0 + 2 * STEP, NOW)
    operations.run(settings, "small", T0, NOW)
    operations.verify(settings, "small", None, None, NOW)
    (path,) = (settings.root / "verification").rglob("*.nc")
    (record,) = files.places(files.read(path))
    assert record["mill"]["amount_mm"]["60"][1] is None and record["mill"]["onset"] is None


def test_a_product_says_how_good_such_forecasts_were_and_knows_nothing_later(settings):
    operations.backfill(settings, "small", T0, T0 + 8 * STEP, NOW)
    store, catalog = operations.open_root(settings)
    small = settings.domain("small")
    said = known_quality(small, store, catalog, "optical_flow", T0 + 8 * STEP)
    assert said["verified_skill_24h"].startswith("CSI of optical_flow at 0.5 mm/h, 8 hindcast forecasts known by")
    assert "30 min" in said["verified_skill_24h"] and "last frame" in said["verified_skill_30d"]
    # references are compared in a file of their own, and do not hide the model
    early = known_quality(small, store, catalog, "optical_flow", T0)
    assert early["verified_skill_24h"] == "not measured: no forecast of optical_flow was verified in this time" or (
        "0 hindcast" in early["verified_skill_24h"]
    )
    operations.run(settings, "small", T0 + 9 * STEP, NOW)
    path = next((Store(settings.root).root / "products").rglob("*T033000Z_r1.nc"))
    attrs = packing.read_arrays(path, ())[1]
    assert "forecasts known by 2024-06-01T03:30:00Z, without intervals" in attrs["verified_skill_24h"]
    packing.read_digest(path)  # it is no part of the digest


def test_scores_that_cannot_be_read_never_harm_a_forecast(settings):
    operations.backfill(settings, "small", T0, T0, NOW)
    (path,) = (settings.root / "verification").rglob("*.nc")
    path.write_bytes(b"garbage")
    assert operations.run(settings, "small", T0 + STEP, NOW).cycles == {"published": 1}
