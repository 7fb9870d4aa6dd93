"""The short form of the simulated day; ``make soak`` runs the long one."""

from tests.soak.day import soak


def test_half_an_hour_under_faults_with_a_process_that_is_killed(tmp_path):
    summary = soak(tmp_path, seed=5, hours=0.5, kills=3)
    assert summary["killed"] >= 1
    for name in ("composites", "radars"):
        assert sum(summary[name]["published"].values()) >= 3
