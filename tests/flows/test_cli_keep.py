"""The commands that keep house, as a person and a script use them."""

import json
import os

import pytest

from tests.flows.test_cli import here, nowcast  # noqa: F401

KEEP = "--set retention.frames_days=1 --set retention.products_days=1"


def test_a_root_is_backed_up_explained_compacted_and_cleared(here):  # noqa: F811
    nowcast("backfill small --from 2024-06-01T02:00Z --to 2024-06-01T02:10Z")
    said = nowcast("explain small 2024-06-01T02:00Z")
    assert said.exit_code == 0
    assert said.stdout.startswith("small 2024-06-01T02:00:00Z: published: hindcast r1 by optical_flow")
    found = json.loads(nowcast("explain small 2024-06-01T02:00Z --json").stdout)
    assert found["verdict"] == "published: hindcast r1 by optical_flow" and len(found["frames"]) == 5
    assert "small: 1 days, 9 objects before, 1 after" in nowcast("compact").stdout
    assert "2 cycles" in nowcast(f"catalog backup {here / 'b.sqlite'}").stdout
    for path in (here / "data").rglob("*.*"):
        os.utime(path, (1.7e9, 1.7e9))
    for path in (here / "data" / "archive").rglob("*"):
        os.utime(path, (1.7e9, 1.7e9))
    assert json.loads(nowcast("housekeeping --json").stdout)["gone"] == []
    shown = nowcast(f"housekeeping --dry-run {KEEP}")
    assert "would go: products small hindcast 2024-06-01T02:00:00Z" in shown.stdout
    assert "the newest hindcast product" in shown.stdout and "kept for ever (retention.scores_days = 0)" in shown.stdout
    gone = json.loads(nowcast(f"housekeeping --json {KEEP}").stdout)
    assert [one["part"] for one in gone["gone"]] == ["products", "frames"]
    assert "restored" in nowcast(f"catalog restore {here / 'b.sqlite'}").stdout
    rebuilt = json.loads(nowcast("catalog rebuild --json").stdout)
    assert (rebuilt["frames"], rebuilt["forecasts"]) == (0, 1)
    assert "it was removed by retention" in nowcast("explain small 2024-06-01T02:00Z").stdout
    assert "0 of 0 not looked at" in nowcast("quarantine list").stdout


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("quarantine drop nothing", "no such thing is in quarantine"),
        ("quarantine list nowhere", "no domain 'nowhere'"),
        ("explain small yesterday", "not an ISO 8601 time"),
        ("compact nowhere", "no domain 'nowhere'"),
        ("catalog restore absent.sqlite", "no backup at"),
        ("catalog backup b --set catalog=postgresql://me:secret@h/n", "pg_dump --format=custom"),
        ("housekeeping --set retention.frames_days=-1", "retention.frames_days"),
    ],
)
def test_mistakes_are_usage_errors_in_words(here, line, said):  # noqa: F811
    done = nowcast(line)
    assert done.exit_code == 2 and said in done.output and "secret" not in done.output
