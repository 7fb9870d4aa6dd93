import functools

import pytest
import torch
import torch.nn.functional as F

from models import losses
from models.heads import Head
from models.losses import Total, backward_accumulated, balanced, cross_entropy, dice, gradient_difference, mae, mse

NAN = float("nan")
CLASSES = Head("categorical", (0.4, 0.6))
EVENT = Head("segmentation", (0.5,))
ORDINAL = Head("ordinal", (0.4, 0.6))


def frames(*values: float) -> torch.Tensor:
    """One sample, one lead, one channel, one row."""
    return torch.tensor(values).view(1, 1, 1, 1, -1)


def seen(*values: bool) -> torch.Tensor:
    return torch.tensor(values).view(1, 1, 1, 1, -1)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (mse, (0.25 + 0.01) / 2),
        (mae, (0.5 + 0.1) / 2),
        # truth 0.1 weighs 1, truth 0.9 weighs 30
        (functools.partial(balanced, levels=(0.4, 0.5, 0.6, 0.8)), ((0.25 + 0.5) + 30 * (0.01 + 0.1)) / 31),
        (losses.mse_mae, (0.25 + 0.01 + 0.5 + 0.1) / 2),
    ],
)
def test_losses_by_hand_and_what_is_not_observed_does_not_count(loss, expected):
    for hidden in (NAN, 0.95):  # heavy rain, were it observed
        raw = frames(0.6, 0.8, 5.0).requires_grad_()
        total = loss(raw, frames(0.1, 0.9, hidden), seen(True, True, False))
        assert total.mean().item() == pytest.approx(expected, rel=1e-5)
        total.mean().backward()
        assert raw.grad.isfinite().all() and raw.grad[..., 2] == 0 and (raw.grad[..., :2] != 0).all()


def test_rain_at_a_level_weighs_as_much_as_above():
    total = balanced(frames(0.0), frames(0.5), seen(True), (0.4, 0.5, 0.6, 0.8))
    assert total.weight.item() == 5


def test_cross_entropy_of_classes_is_that_of_torch_on_what_is_observed():
    raw = torch.randn(1, 1, 3, 1, 3, requires_grad=True)
    total = cross_entropy(raw, frames(0.4, 0.59, NAN), seen(True, True, False), CLASSES)
    both = F.cross_entropy(raw[0, 0, :, 0, :2].T, torch.tensor([1, 1]), reduction="sum")
    torch.testing.assert_close(total.sum, both)
    total.sum.backward()
    assert (raw.grad[..., 2] == 0).all()


def test_cross_entropy_of_values_and_of_an_event_by_hand():
    value = cross_entropy(frames(0.25), frames(1.0), seen(True), Head())
    assert value.mean().item() == pytest.approx(1.386294, rel=1e-5)  # -log 0.25
    event = cross_entropy(frames(0.0), frames(0.5), seen(True), EVENT)
    assert event.mean().item() == pytest.approx(0.693147, rel=1e-5)  # -log 0.5


def test_dice_by_hand():
    # p = 1, 1, 0 (sure); q = 1, 0, 0: 1 - (2 * 1 + 1) / (2 + 1 + 1)
    total = dice(frames(50, 50, -50, 50), frames(0.9, 0.1, 0.1, NAN), seen(True, True, True, False), EVENT)
    assert total.mean().item() == pytest.approx(0.25, abs=1e-6)
    dry = dice(frames(-50, -50), frames(0.0, 0.0), seen(True, True), EVENT)
    assert dry.mean().item() == pytest.approx(0.0, abs=1e-6)


def test_late_leads_weigh_most_when_losses_are_accumulated_backwards():
    raw = torch.zeros(1, 3, 1, 1, 1)
    target = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1, 1)
    total = backward_accumulated(raw, target, torch.ones_like(target, dtype=torch.bool))
    # sums from the end: 9, 9 + 4, 9 + 4 + 1
    assert total.sum.item() == pytest.approx(9 + 13 + 14) and total.weight.item() == 6


def test_gradient_difference_by_hand():
    # steps of the forecast 0.2 and 0.3, of the truth 0.5 and unknown
    total = gradient_difference(frames(0.0, 0.2, 0.5), frames(0.0, 0.5, NAN), seen(True, True, False))
    assert total.sum.item() == pytest.approx(0.09, rel=1e-5) and total.weight.item() == 1
    flat = gradient_difference(frames(0.3, 0.5), frames(0.1, 0.3), seen(True, True))
    assert flat.sum.item() == pytest.approx(0.0, abs=1e-12)


def test_the_gradient_difference_adds_to_the_loss_by_its_weight():
    raw, target = frames(0.0, 0.2), frames(0.0, 0.5)
    both = losses.named("mse", Head(), (), 0.4)(raw, target, seen(True, True))
    assert both.mean().item() == pytest.approx((0.09 + 0.4 * 0.09 / 2) / 2, rel=1e-5)


def test_further_channels_of_a_categorical_network_count_as_values():
    raw, target = torch.zeros(1, 1, 4, 1, 1), torch.tensor([0.1, 0.3]).view(1, 1, 2, 1, 1)
    total = cross_entropy(raw, target, seen(True), CLASSES)
    assert total.sum.item() == pytest.approx(1.098612 + 0.09, rel=1e-5)


@pytest.mark.parametrize(("name", "edges"), [*((name, 0.0) for name in losses.NAMES), ("mse", 0.3)])
def test_every_loss_adds_up_over_parts_of_a_batch(name, edges):
    torch.manual_seed(0)
    head = {"cross_entropy": CLASSES, "dice": EVENT, "ordinal": ORDINAL}.get(name, Head())
    loss = losses.named(name, head, (0.5, 0.6, 0.7, 0.8), edges)
    raw, target = torch.randn(4, 2, head.outputs(1), 5, 6), torch.rand(4, 2, 1, 5, 6)
    observed = torch.rand(4, 2, 1, 5, 6) > 0.3
    whole = loss(raw, target, observed)
    parts = [loss(raw[n : n + 1], target[n : n + 1], observed[n : n + 1]) for n in range(4)]
    torch.testing.assert_close(whole.sum, sum(p.sum for p in parts))
    torch.testing.assert_close(whole.weight, sum(p.weight for p in parts))


def test_nothing_observed_is_no_loss():
    assert mse(frames(1.0), frames(NAN), seen(False)).mean().item() == 0
    assert Total(torch.zeros(()), torch.zeros(())).mean().item() == 0


@pytest.mark.parametrize(
    ("name", "head", "weight", "says"),
    [
        ("nonesuch", Head(), 0, "there are balanced"),
        ("mse", CLASSES, 0, "is trained with cross_entropy, not mse"),
        ("mse", EVENT, 0, "cross_entropy or dice"),
        ("cross_entropy", ORDINAL, 0, "for an ordinal head"),
        ("ordinal", Head(), 0, "for an ordinal head"),
        ("dice", Head(), 0, "segmentation head"),
        ("cross_entropy", CLASSES, 0.5, "needs a head that gives values"),
    ],
)
def test_a_loss_that_does_not_fit_the_head_is_refused(name, head, weight, says):
    with pytest.raises(ValueError, match=says):
        losses.named(name, head, (0.5, 0.6, 0.7, 0.8), weight)
