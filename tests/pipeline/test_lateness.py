"""When a cycle starts, is given up or issued again: the rules alone."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from pipeline.lateness import Frames, decide
from tests.conftest import synthetic_domain

T0 = datetime(2024, 6, 1, 2, 0, tzinfo=UTC)
STEP = timedelta(minutes=10)
RULES = {"deadline_s": 300, "grace_s": 1500}


def domain(**changes):
    return synthetic_domain(input_frames=3, lateness={**RULES, **changes})


def frame(time, *radars, arrived=60.0, framed=70.0):
    inputs = [{"radar": radar, "carried": False} for radar in radars]
    at = time.timestamp()
    return {"inputs": json.dumps(inputs), "arrived_at": at + arrived, "framed_at": at + framed}


def frames(*newest, radars=("a", "b"), **when):
    """Four frames of all radars before T0, and one of some at T0."""
    before = {T0 - n * STEP: frame(T0 - n * STEP, *radars) for n in range(1, 5)}
    return {**before, T0: frame(T0, *newest, **when)}


def row(state, after, **more):
    return {"state": state, "issue_time": T0.timestamp() + after, **more}


def decided(now_s, standing=None, found=None, of=None):
    rows = Frames(found if found is not None else frames("a", "b"))
    one = decide(of or domain(), T0, T0 + timedelta(seconds=now_s), standing, rows)
    return one.state, one.cause.split(":")[0]


@pytest.mark.parametrize(
    ("now_s", "newest", "expected"),
    [
        (80, ("a", "b"), ("due", "complete")),
        (80, ("a",), ("wait", "")),
        (299, ("a",), ("wait", "")),
        (300, ("a",), ("due", "deadline")),
        (420, ("a",), ("due", "deadline")),
        (1500, ("a",), ("due", "made up for")),
        (1501, ("a",), ("missed", "nothing was at work until 2024-06-01T02")),
    ],
)
def test_a_cycle_waits_for_its_radars_until_the_deadline(now_s, newest, expected):
    assert decided(now_s, found=frames(*newest)) == expected


def test_without_a_frame_it_waits_until_the_grace_is_over():
    nothing = {time: one for time, one in frames().items() if time < T0}
    assert decided(1500, found=nothing) == ("wait", "") and decided(1501, found=nothing)[0] == "missed"
    assert decided(1501, row("skipped", 900), nothing) == ("settled", "")


def test_what_arrived_after_the_deadline_says_so():
    assert decided(700, found=frames("a", "b", arrived=650.0, framed=660.0)) == ("due", "late")


def test_a_skipped_cycle_is_tried_again_only_with_another_frame():
    assert decided(200, row("skipped", 100)) == ("settled", "")
    assert decided(200, row("skipped", 100), frames("a", "b", framed=150.0)) == ("due", "complete")


def test_a_published_cycle_is_settled_unless_reissues_are_wanted():
    better = frames("a", "b", framed=400.0)
    assert decided(500, row("published", 310), better) == ("settled", "")
    assert decided(500, row("published", 310), better, domain(reissue=True)) == ("due", "reissue")
    assert decided(500, row("published", 410), better, domain(reissue=True)) == ("wait", "")


def test_a_reissue_waits_for_the_radars_that_are_lacking_and_ends_with_the_grace():
    partly = frames("a", framed=400.0)
    of = domain(reissue=True)
    assert decided(500, row("published", 310), partly, of) == ("wait", "")
    assert decided(1500, row("published", 310), partly, of) == ("due", "reissue")
    assert decided(1500 + 601, row("published", 310), partly, of) == ("settled", "")


def test_an_input_before_the_newest_frame_that_came_later_counts_too():
    found = frames("a", "b")
    found[T0 - 2 * STEP] = frame(T0 - 2 * STEP, "a", "b", framed=1200.0 + 400)
    assert decided(500, row("published", 310), found, domain(reissue=True)) == ("due", "reissue")
    found[T0 - 3 * STEP] = frame(T0 - 3 * STEP, "a", "b", framed=1800.0 + 400)  # no input
    assert decided(500, row("published", 450), found, domain(reissue=True)) == ("wait", "")


def test_what_was_there_all_the_time_is_made_up_for():
    assert decided(420) == ("due", "complete") and decided(421) == ("due", "made up for")
    assert decided(360, found=frames("a", "b", arrived=-30.0)) == ("due", "complete")
    assert decided(700, found=frames("a", "b", arrived=650.0, framed=660.0)) == ("due", "late")


def test_a_month_of_instants_is_decided_in_a_moment():
    """Each decision looked through all frames; after 28 days of pause that took 4.6 s a domain."""
    count = 30 * 144
    rows = {T0 - n * STEP: frame(T0 - n * STEP, "a", "b") for n in range(count)}
    of, counted = domain(), []

    class Counted(dict):
        def __iter__(self):
            counted.append(len(self))
            return super().__iter__()

    known = Frames(Counted(rows))
    states = {decide(of, time, T0, None, known).state for time in rows}
    assert states == {"due", "missed"} and sum(counted) <= count


def test_only_the_newest_frames_before_tell_which_radars_are_waited_for():
    rows = {T0 - n * STEP: frame(T0 - n * STEP, "a" if n < 5 else "old") for n in range(1, 20)}
    before = Frames(rows).before(T0)
    assert before == [rows[T0 - n * STEP] for n in (4, 3, 2, 1)]
    assert Frames(rows).before(T0 - 19 * STEP) == []
