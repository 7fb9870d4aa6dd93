"""Status and alerts over what the live process itself wrote, under a simulated clock."""

from datetime import timedelta

from pipeline.alerts import check
from pipeline.status import read_status
from tests.pipeline.test_live import STEP, T0, Office
from tests.simulation import live_until

MINUTE = timedelta(minutes=1)


def test_status_and_alerts_of_hours_that_were_lived(tmp_path):
    office = Office(tmp_path)
    office.history()
    for n in (0, 1, 5, 6, 7):
        office.comes(T0 + n * STEP)
    told = []
    for minutes in range(5, 80, 5):
        live_until(office.live, office.clock, office.script, T0 + minutes * MINUTE, every=MINUTE)
        told += check(office.settings, office.store, office.catalog, office.clock.now())
    with office.catalog.lease("live"):
        found = read_status(office.settings, office.store, office.catalog, office.clock.now())
    (one,) = found.domains
    assert (one.timeline.counts["skipped"], "unaccounted" in one.timeline.counts) == (3, False)
    assert [gap.text for gap in one.timeline.gaps] == [
        "02:20 to 02:40, 3 cycles: no frame within 25 minutes: nothing arrived for it"
    ]
    assert found.level == "good" and one.newest_forecast == T0 + 7 * STEP
    # 02:10 is the newest, and 02:20 and 02:30 should be out 6 minutes after them; 02:50 comes at 02:51
    raised, ended = (one for one in told if one.kind == "no_forecast")
    assert raised.text.endswith("no frame has come since 02:10 UTC")
    assert 36 * MINUTE <= raised.time - T0 <= 41 * MINUTE and 51 * MINUTE <= ended.time - T0 <= 56 * MINUTE
    # files come a minute after their time, and the clock stands while a forecast is made
    assert 60 <= one.latency["total"].median < 125
