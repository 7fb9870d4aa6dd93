import functools

import numpy as np
import pytest
import torch

from models import checkpoint, zoo
from models.losses import balanced, masked_mse
from models.networks.encoder_forecaster import EncoderForecaster, EncoderForecasterConfig
from models.training import FrameSeries, TrainingConfig, draw, train


def moving_square(frames: int = 30, size: int = 32) -> FrameSeries:
    pixels = np.zeros((frames, size, size), np.uint8)
    for n in range(frames):
        pixels[n, 8:16, (n % size) : (n % size) + 6] = 200
    return FrameSeries(pixels[:, None], np.ones(pixels.shape, bool), np.arange(8), np.arange(20, 24))


CONFIG = TrainingConfig(input_frames=3, lead_frames=2, crop=32, batch=2, steps=150, validate_every=50)


def test_a_small_network_learns_a_moving_square():
    torch.manual_seed(0)
    network = EncoderForecaster(EncoderForecasterConfig(widths=(8,), patch=2))
    history = train(network, [moving_square()], masked_mse, CONFIG, lambda step, row: None)
    # a forecast of the mean frame has an error of about 0.027
    assert history[-1]["validation_loss"] < 0.018


def test_training_is_reproducible():
    def run():
        torch.manual_seed(3)
        network = EncoderForecaster(EncoderForecasterConfig(widths=(4,), patch=2))
        return train(
            network, [moving_square()], masked_mse, TrainingConfig(3, 2, 32, 2, steps=5), lambda step, row: None
        )

    assert [r["train_loss"] for r in run()] == [r["train_loss"] for r in run()]


def test_training_without_windows_says_what_is_needed():
    empty = moving_square()
    empty = FrameSeries(empty.pixels, empty.observed, np.array([], np.int64), np.array([], np.int64))
    with pytest.raises(ValueError, match="5 consecutive frames"):
        train(torch.nn.Linear(1, 1), [empty], masked_mse, CONFIG, lambda step, row: None)


def test_pixels_and_mask_turn_together():
    series = moving_square()
    series = FrameSeries(series.pixels, series.pixels[:, 0] > 0, series.train, series.validation)
    pixels, observed = draw([series], "train", np.random.default_rng(0), CONFIG)
    assert torch.equal(pixels > 0, observed)


def test_unobserved_pixels_carry_no_loss_and_no_gradient():
    predicted = torch.tensor([[0.5, 0.5]], requires_grad=True)
    target = torch.tensor([[0.0, float("nan")]])
    loss = masked_mse(predicted, target, torch.tensor([[True, False]]))
    loss.backward()
    assert loss.item() == pytest.approx(0.25)
    assert predicted.grad.tolist() == [[1.0, 0.0]]


def test_balanced_loss_by_hand():
    # truth 0.1 weighs 1, truth 0.9 weighs 30: (0.1^2 + 0.1 + 30 (0.2^2 + 0.2)) / 31
    predicted, target = torch.tensor([0.2, 0.7]), torch.tensor([0.1, 0.9])
    levels = (0.4, 0.5, 0.6, 0.8)
    value = functools.partial(balanced, levels=levels)(predicted, target, torch.tensor([True, True]))
    assert value.item() == pytest.approx((0.01 + 0.1 + 30 * (0.04 + 0.2)) / 31, rel=1e-5)


def card(**changes) -> checkpoint.Card:
    values = {
        "name": "m",
        "network": "convlstm",
        "network_config": {"widths": [4], "patch": 2},
        "dbz_min": -10.0,
        "dbz_max": 60.0,
        "cadences_minutes": [10],
        "spacing_m": [1000.0, 4000.0],
        "product": "surface_rain",
    }
    return checkpoint.Card(**{**values, **changes})


def test_checkpoint_round_trip(tmp_path):
    network = zoo.build("convlstm", {"widths": [4], "patch": 2})
    saved = checkpoint.save(tmp_path / "m", network, card())
    loaded, read = checkpoint.load(tmp_path / "m")
    assert read == saved
    frames = torch.rand(1, 2, 1, 8, 8)
    torch.testing.assert_close(loaded.roll_out(frames, 2), network.roll_out(frames, 2))


def test_damaged_weights_are_refused(tmp_path):
    folder = tmp_path / "m"
    checkpoint.save(folder, zoo.build("convlstm", {"widths": [4], "patch": 2}), card())
    weights = bytearray((folder / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "weights.safetensors").write_bytes(weights)
    with pytest.raises(checkpoint.CheckpointError, match="checksum"):
        checkpoint.load(folder)


def test_weights_of_another_network_are_refused(tmp_path):
    folder = tmp_path / "m"
    checkpoint.save(folder, zoo.build("convlstm", {"widths": [8], "patch": 2}), card())
    with pytest.raises(checkpoint.CheckpointError, match="do not fit"):
        checkpoint.load(folder)


def test_newer_card_is_refused(tmp_path):
    folder = tmp_path / "m"
    checkpoint.save(folder, zoo.build("convlstm", {"widths": [4], "patch": 2}), card())
    text = (folder / "card.json").read_text().replace('"format_version": 1', '"format_version": 2')
    (folder / "card.json").write_text(text)
    with pytest.raises(checkpoint.CheckpointError, match="format 2"):
        checkpoint.load(folder)


def test_shipped_model_is_whole():
    network, shipped = checkpoint.load(checkpoint.find("convlstm"))
    assert sum(p.numel() for p in network.parameters()) == 738_832
    assert shipped.training["command"].startswith("nowcast train")
    assert (checkpoint.find("convlstm") / "weights.safetensors").stat().st_size < 5_000_000
