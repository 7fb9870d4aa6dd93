import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from models.adversarial import Adversary
from models.losses import mse
from models.networks.cnn import CNN, CNNConfig
from models.networks.encoder_forecaster import EncoderForecaster, EncoderForecasterConfig
from models.networks.unet import UNet, UNetConfig
from models.recipe import _alone
from models.training import _Run, load_batch, train
from models.training_config import TrainingConfig, learning_rate, taught
from models.windows import TRAIN, VALIDATION, FrameSeries, Windows

PROJECT = Path(__file__).parents[2]


def moving_square(frames: int = 30, size: int = 32) -> FrameSeries:
    pixels = np.zeros((frames, 1, size, size), np.uint8)
    for n in range(frames):
        pixels[n, 0, 8:16, (n % size) : (n % size) + 6] = 200
    return FrameSeries(pixels, np.ones((frames, size, size), bool), np.arange(8), np.arange(20, 24))


def windows(**changes) -> Windows:
    return Windows([moving_square()], **{"length": 5, "crop": 32, "seed": 0, **changes})


def network() -> EncoderForecaster:
    torch.manual_seed(0)
    return EncoderForecaster(EncoderForecasterConfig(widths=(8,), patch=2))


def config(**changes) -> TrainingConfig:
    return TrainingConfig(
        **{"input_frames": 3, "lead_frames": 2, "batch": 2, "steps": 12, "validate_every": 6, **changes}
    )


@pytest.mark.parametrize("feed", ["own", "teacher", "scheduled"])
def test_a_small_network_learns_a_moving_square(feed):
    history = train(network(), windows(augment=False), mse, config(steps=150, validate_every=50, feed=feed))
    # a forecast of the mean frame has an error of about 0.027
    assert history[-1]["validation_loss"] < 0.018
    # the same error in pixels, of clipped values
    assert 0.7 < history[-1]["validation_mse"] / (history[-1]["validation_loss"] * 255**2) <= 1


def test_training_is_reproducible():
    runs = [train(network(), windows(), mse, config()) for _ in range(2)]
    assert [r["train_loss"] for r in runs[0]] == [r["train_loss"] for r in runs[1]]


def test_accumulated_passes_equal_one_large_batch():
    weights = []
    for sizes in ({"batch": 4}, {"batch": 2, "accumulate": 2}, {"batch": 1, "accumulate": 4}):
        one = network()
        train(one, half_observed(), mse, config(steps=3, validate_every=3, **sizes))
        weights.append(one.state_dict())
    for other in weights[1:]:
        for key, value in weights[0].items():
            torch.testing.assert_close(other[key], value, rtol=1e-3, atol=1e-5)


def half_observed() -> Windows:
    """Samples that are observed to different shares: a mean of means would differ from the mean."""
    series = moving_square()
    observed = series.observed.copy()
    observed[: len(observed) // 2, :, 5:] = False
    return Windows([FrameSeries(series.pixels, observed, series.train, series.validation)], 5, 32, 0)


def test_the_best_weights_are_kept_and_patience_ends_the_run():
    one = network()
    history = train(one, windows(), mse, config(steps=400, validate_every=5, learning_rate=0.5, patience=3))
    assert len(history) < 80
    best = min(history, key=lambda row: row["validation_loss"])
    assert history.index(best) == len(history) - 4
    again = train(one, windows(), mse, config(steps=1, validate_every=1, learning_rate=1e-12))
    assert again[0]["validation_loss"] == pytest.approx(best["validation_loss"], rel=1e-4)


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_good_weights(tmp_path):
    calls = []

    def breaking(raw, target, observed):
        calls.append(1)
        total = mse(raw, target, observed)
        return total if len(calls) < 12 else type(total)(total.sum * float("nan"), total.weight)

    one = network()
    with pytest.raises(ValueError, match=r"loss is nan at step .*lower learning rate"):
        train(one, windows(), breaking, config(steps=50, validate_every=3), folder=tmp_path)
    best = {k: v for k, v in load_file(tmp_path / "state.safetensors").items() if k.startswith("best/")}
    assert best and all(torch.isfinite(v).all() for v in best.values())


def test_a_validation_that_is_no_number_is_no_gain():
    def nan_in_validation(raw, target, observed):
        total = mse(raw, target, observed)
        return total if torch.is_grad_enabled() else type(total)(total.sum * float("nan"), total.weight)

    history = train(network(), windows(), nan_in_validation, config(steps=100, validate_every=2, patience=3))
    assert len(history) == 3


def test_gradients_are_clipped_and_precision_is_as_asked():
    before = network().state_dict()
    moved = {}
    for clip in (1e-12, 1.0):
        one = network()
        train(one, windows(), mse, config(steps=1, clip_norm=clip))
        moved[clip] = max((one.state_dict()[k] - v).abs().max().item() for k, v in before.items())
    assert moved[1e-12] < 0.1 * moved[1.0]  # Adam's epsilon then holds the step back
    exact, rough = (train(network(), windows(), mse, config(bf16=b))[-1]["train_loss"] for b in (False, True))
    assert exact != rough and rough == pytest.approx(exact, rel=0.05)


def test_batch_normalisation_learns_in_training_and_rests_in_validation():
    torch.manual_seed(0)
    net = CNN(CNNConfig(base=2, input_frames=3, lead_frames=2))
    seen = []

    def watched(raw, target, observed):
        seen.append((net.training, torch.is_grad_enabled()))
        return mse(raw, target, observed)

    samples = windows()
    train(net, samples, watched, config(steps=4, validate_every=2))
    assert set(seen) == {(True, True), (False, False)} and not net.training
    assert net.encoder[1].num_batches_tracked > 0


def test_the_adversarial_term_pulls_towards_what_is_taken_for_rain():
    """Alone (the other loss is nothing), it must raise what the discriminator says of the forecast."""
    one, samples = network(), windows()

    def nothing(raw, target, observed):
        return type(mse(raw, target, observed))(raw.sum() * 0, observed.sum().float())

    run = _Run(one, samples, nothing, config(adversarial=1.0))
    run.adversary.learn = lambda *_: 0.0  # a judge that does not change
    pixels, _ = load_batch(samples, TRAIN, range(8), torch.device("cpu"))
    past = pixels[:, :3].float() / 255

    def verdict() -> float:
        with torch.no_grad():
            made = one.output.values(one.roll_out(past, 2))
            return run.adversary.network(torch.cat((past, made), dim=1)).mean().item()

    before = verdict()
    for step in range(1, 13):
        run.step(step)
    assert verdict() > before


def test_the_rate_falls_along_a_half_cosine():
    c = config(steps=100, learning_rate=1.0)
    assert learning_rate(1, c) == 1.0
    assert learning_rate(51, c) == pytest.approx(0.525)
    assert learning_rate(100, c) == pytest.approx(0.05, abs=1e-3)
    assert learning_rate(77, config(constant_rate=True, learning_rate=0.3)) == 0.3


def test_scheduled_sampling_goes_from_truth_to_own_output():
    shares = [
        taught(step, range(500), config(feed="scheduled", steps=100), torch.device("cpu")).float().mean().item()
        for step in (1, 50, 100)
    ]
    assert shares == pytest.approx([0.99, 0.5, 0.0], abs=0.05)
    assert taught(1, range(2), config(), torch.device("cpu")) is None


def test_a_teacher_is_refused_where_nothing_is_fed_back():
    net = UNet(UNetConfig(widths=(4, 4), input_frames=3, lead_frames=2))
    with pytest.raises(ValueError, match="does not feed on its output"):
        train(net, windows(), mse, config(feed="teacher"))
    with pytest.raises(ValueError, match="there are own, teacher, scheduled"):
        config(feed="nonesuch")


def test_the_discriminator_learns_and_pushes_the_forecast():
    torch.manual_seed(0)
    adversary = Adversary(3, 1, 1e-3, torch.device("cpu"))
    past, true = torch.rand(4, 2, 1, 32, 32), torch.rand(4, 1, 1, 32, 32)
    made = torch.full_like(true, 0.5).requires_grad_()  # the mean: blurred
    seen = torch.ones_like(true, dtype=torch.bool)
    seen[..., 16:] = False
    losses = [adversary.learn(past, made, true, seen) for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]
    adversary.of_forecast(past, made, seen).backward()
    assert made.grad[..., :16].abs().max() > 0 and made.grad[..., 16:].abs().max() == 0


def test_training_with_an_adversary_runs_and_saves_it(tmp_path):
    train(network(), windows(), mse, config(adversarial=0.05), folder=tmp_path)
    assert any(key.startswith("judge/") for key in load_file(tmp_path / "state.safetensors"))


def test_metrics_and_curve_are_written(tmp_path):
    history = train(network(), windows(), mse, config(), folder=tmp_path)
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["validation_loss"]) for row in rows] == [row["validation_loss"] for row in history]
    assert (tmp_path / "loss.png").read_bytes()[:4] == b"\x89PNG"


def test_a_state_of_another_run_is_refused_and_with_a_damaged_one_training_begins_anew(tmp_path, caplog):
    fresh = train(network(), windows(), mse, config(), folder=tmp_path)
    with pytest.raises(ValueError, match="batch was 2, is 3"):
        train(network(), windows(), mse, config(batch=3), folder=tmp_path)
    state = tmp_path / "state.safetensors"
    whole = state.read_bytes()
    flipped = bytearray(whole)
    flipped[-50] ^= 1
    for damaged in (whole[:-100], bytes(flipped)):
        state.write_bytes(damaged)
        again = train(network(), windows(), mse, config(), folder=tmp_path)
        assert [row["validation_loss"] for row in again] == [row["validation_loss"] for row in fresh]
        assert "which starts anew" in caplog.text and state.read_bytes() != damaged


def test_a_run_may_be_lengthened_and_ended_by_time(tmp_path):
    first = train(network(), windows(), mse, config(minutes=1e-9), folder=tmp_path)
    assert [row["step"] for row in first] == [1]
    assert train(network(), windows(), mse, config(minutes=9), folder=tmp_path)[-1]["step"] == 12


def test_one_process_trains_a_model(tmp_path):
    folder = tmp_path / ".m.training"
    with _alone(folder), pytest.raises(ValueError, match="another process trains this model"), _alone(folder):
        pass
    with _alone(folder):
        pass


def test_windows_turn_pixels_and_mask_together_and_hide_what_is_not_observed():
    series = moving_square()
    pixels = np.maximum(series.pixels, 7)  # something everywhere, also where nothing was observed
    samples = Windows([FrameSeries(pixels, series.pixels[:, 0] > 0, series.train, series.validation)], 5, 20, 0)
    for n in range(20):
        one = samples.sample(TRAIN, n)
        assert np.array_equal(one.pixels[:, 0] > 0, one.observed)
    starts = {int(samples.sample(VALIDATION, n).pixels[0, 0].argmax() % 20) for n in range(4)}
    assert len(starts) > 1
    assert samples.count(TRAIN) == 8 and samples.count(VALIDATION) == 4
    assert np.array_equal(samples.sample(TRAIN, 3).pixels, samples.sample(TRAIN, 3).pixels)


def test_validation_takes_every_window_once_and_leaves_it_as_it_is():
    s = moving_square()
    samples = Windows([s, FrameSeries(s.pixels, s.observed, s.train[:1], s.validation[1:3])], 5, 32, 0)
    found = [samples.sample(VALIDATION, n).pixels for n in range(6)]
    for pixels, first in zip(found, [20, 21, 22, 23, 21, 22], strict=True):
        assert np.array_equal(pixels, s.pixels[first : first + 5])


def test_no_window_and_too_small_a_grid_are_refused():
    s = moving_square()
    none = FrameSeries(s.pixels, s.observed, np.array([], np.int64), np.array([], np.int64))
    with pytest.raises(ValueError, match="5 consecutive frames"):
        Windows([none], 5, 32, 0)
    with pytest.raises(ValueError, match="smallest grid has a side of 32"):
        Windows([s], 5, 64, 0)


@pytest.mark.parametrize("field", ["batch", "accumulate", "steps", "validate_every", "lead_frames", "patience"])
def test_numbers_that_train_nothing_are_refused(field):
    with pytest.raises(ValueError, match=f"{field} must be at least 1, got 0"):
        config(**{field: 0})
