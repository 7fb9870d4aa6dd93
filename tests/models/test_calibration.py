"""Calibration: a known line is found again, is applied between lead times, and is left alone where nothing is known."""

import pytest
import torch

from models.calibration import FEWEST, Calibration, Counted


def drawn(slope: float, offset: float, cells: int = 60000) -> Counted:
    """Events that come with the chance of ``slope * logit + offset`` at the first of two leads, never at the other."""
    generator = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(1, 2, 1, cells // 100, 100, generator=generator)
    chance = torch.sigmoid(slope * logits + offset)
    target = (torch.rand(chance.shape, generator=generator) < chance).float() * 0.8
    target[:, 1] = 0.0
    found = Counted(2, (0.5,))
    found.add(logits, target, torch.ones_like(target, dtype=torch.bool))
    return found


@pytest.mark.parametrize(("slope", "offset"), [(1.0, 0.0), (0.6, -1.0), (1.5, 0.7)])
def test_a_known_line_is_found_again(slope, offset):
    found = drawn(slope, offset).fitted()
    assert found.slope[0][0] == pytest.approx(slope, abs=0.05)
    assert found.offset[0][0] == pytest.approx(offset, abs=0.05)


def test_with_too_few_events_it_stays_as_it_is():
    found = drawn(0.6, -1.0)
    assert found.events[1].sum() < FEWEST
    assert (found.fitted().slope[1], found.fitted().offset[1]) == ((1.0,), (0.0,))


def test_cells_that_were_not_observed_do_not_count():
    found = Counted(1, (0.5,))
    found.add(torch.zeros(1, 1, 1, 4, 4), torch.ones(1, 1, 1, 4, 4), torch.zeros(1, 1, 1, 4, 4, dtype=torch.bool))
    assert not found.cells.any()


def test_between_lead_times_the_line_is_between_and_behind_the_last_it_is_the_last():
    line = Calibration(((2.0,), (3.0,)), ((1.0,), (-1.0,)))
    logits = torch.ones(1, 1, 2, 2)
    for steps, wanted in ((0.0, 1.0), (0.5, 2.0), (1.0, 3.0), (1.5, 2.5), (2.0, 2.0), (7.5, 2.0)):
        assert line.applied(logits, steps).unique().item() == pytest.approx(wanted), steps


@pytest.mark.parametrize(
    "found",
    [{}, {"slope": [[1.0]]}, {"slope": [[0.0]], "offset": [[0.0]]}, {"slope": [[1.0, 2.0]], "offset": [[0.0]]},
     {"slope": [[float("nan")]], "offset": [[0.0]]}, {"slope": 1, "offset": 1}],
)  # fmt: skip
def test_what_is_no_calibration_is_refused(found):
    with pytest.raises(ValueError, match="calibration"):
        Calibration.of_card(found)
