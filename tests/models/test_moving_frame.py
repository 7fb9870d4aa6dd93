"""The moving frame: rain that only moves stands still, on one grid for every cadence and spacing."""

import dataclasses

import numpy as np
import pytest
import torch

from models import checkpoint, dataset, zoo
from models.baselines.area_matched import AreaMatched
from models.baselines.motion import estimate_motion
from models.baselines.optical_flow import OpticalFlow
from models.composition import composed
from models.dataset import LEARN, VALIDATE, Series, SeriesFacts, packed_masks
from models.heads import Head
from models.losses import ordinal
from models.memory import _Meter
from models.moving_frame import LATE, MovingFrame
from models.moving_windows import MovingWindows, Rain, reference_times, weights_of
from models.networks.network import Network
from models.recipe import Recipe, make_moving
from models.training_config import TrainingConfig, picked_leads

PLAIN = Rain(200.0, 1.6, -10.0, 60.0)


def rain(time_min: float, size_km: float, spacing_km: float, growth: float = 0.0) -> np.ndarray:
    """Storms that move 36 km/h east and 18 km/h south on a periodic plane of 256 km."""
    centres = (np.arange(round(size_km / spacing_km)) + 0.5) * spacing_km
    x, y = np.meshgrid(centres - 0.6 * time_min, centres - 0.3 * time_min)
    field = np.sin(2 * np.pi * x / 64) * np.sin(2 * np.pi * y / 64) + 0.5 * np.sin(2 * np.pi * (x + y) / 128)
    return np.floor(np.clip(120 * field + growth * time_min, 0, 255) + 0.5).astype(np.uint8)


def series(cadence: int = 10, spacing_km: float = 2.0, frames: int = 20, size_km: float = 256, **changes) -> Series:
    pixels = np.stack([rain(n * cadence, size_km, spacing_km) for n in range(frames)])
    observed = np.ones(pixels.shape, bool)
    masks, mask_of = packed_masks(observed)
    cells = [-(-side // dataset.MOTION_CELLS) for side in pixels.shape[1:]]
    motion = np.zeros((frames, 2, *cells), np.float16)
    motion[:, 0], motion[:, 1] = 0.6 * cadence / spacing_km, 0.3 * cadence / spacing_km
    one = Series(
        SeriesFacts(cadence, 1000 * spacing_km, 200.0, 1.6, -10.0, 60.0), pixels, masks, mask_of, motion,
        np.arange(frames), np.full(frames, LEARN, np.uint8), np.zeros(0, np.int64), np.zeros(0, np.int64),
        weights_of(pixels, observed),
    )  # fmt: skip
    one = dataclasses.replace(one, **changes)
    return dataclasses.replace(one, train=reference_times(one, LEARN, 3), validation=reference_times(one, VALIDATE, 3))


@pytest.mark.parametrize("of", [(200.0, 1.6), (223.0, 1.53), (316.0, 1.5)])
def test_a_rain_rate_has_one_pixel_whatever_the_relation_of_its_domain(of):
    there = Rain(*of, -10.0, 60.0)
    for rate, level in zip((0.5, 2.0, 5.0, 10.0, 30.0), zoo.RAIN_CLASSES, strict=True):
        dbz = 10 * np.log10(of[0]) + 10 * of[1] * np.log10(rate)
        pixel = torch.tensor([(dbz + 10) / 70])
        assert there.common(pixel).item() == pytest.approx(level, abs=5e-4)
        assert there.own(there.common(pixel)).item() == pytest.approx(pixel.item(), abs=1e-5)
    assert there.common(torch.zeros(1)).item() == there.own(torch.zeros(1)).item() == 0


@pytest.mark.parametrize(("cadence", "spacing_km"), [(10, 2.0), (5, 2.0), (5, 1.0), (6, 1.0)])
def test_rain_that_only_moves_stands_still_in_a_sample(cadence, spacing_km):
    one = series(cadence, spacing_km, frames=30)
    windows = MovingWindows([one], 3, 4, 64, seed=1)
    for corner in (0.1, 0.25, 0.4):
        made = windows._at(one, 12, *(int(corner * side) for side in one.shape))
        seen = made.observed.all(axis=0)
        assert seen.mean() > 0.5
        now = made.pixels[2, 0].astype(float)
        for n, frame in enumerate(made.pixels[:, 0].astype(float)):
            # 10 minutes are two frames of 5; of 6 the step is 12; the future is by the nearest cell
            assert np.abs(frame - now)[seen].mean() < (3 if n < 3 else 10), n
        assert now[seen].std() > 30


def test_samples_repeat_and_validation_is_neither_turned_nor_learnt_from():
    part = np.array([LEARN] * 12 + [VALIDATE] * 10, np.uint8)
    one = series(frames=22, part=part)
    assert one.train.max() < 12 <= one.validation.min()
    windows = MovingWindows([one], 3, 6, 64, seed=1)
    first, again = windows.sample("validation", 4), windows.sample("validation", 4)
    assert np.array_equal(first.pixels, again.pixels)
    count, now = windows.count("validation"), []
    windows._at = lambda series, time, *place: now.append(time)
    for number in range(2 * count):
        windows.sample("validation", number)
    del windows._at
    assert sorted(now[:count]) == sorted(now[count:]) == one.validation.tolist()
    # the last time to learn from has one frame after it in its part; what comes later is another part
    last = windows._at(one, 10, 0, 0)
    assert last.observed[3].any() and not last.observed[4:].any()


def test_nothing_is_learnt_across_a_gap():
    slots = np.arange(20)
    slots[10:] += 1
    one = series(slots=slots)
    assert all(not one.together(t - 3, t + 1) or (t + 1 < 10 or t - 3 >= 10) for t in one.train)
    assert not one.together(9, 10) and one.together(10, 19) and not one.together(0, 25)


def test_leads_that_are_picked_are_those_of_all():
    torch.manual_seed(0)
    network = zoo.build("growth_decay", {"widths": [8, 8], "lead_frames": 6})
    torch.nn.init.normal_(network.head.weight, std=0.5)
    frames, seen = torch.rand(2, 3, 1, 40, 52), torch.rand(2, 3, 1, 40, 52) > 0.2
    whole = network.roll_out(frames, 6, observed=seen)
    torch.testing.assert_close(network.roll_out(frames, 6, observed=seen, picked=[1, 4]), whole[:, [1, 4]])
    assert not torch.allclose(network.roll_out(frames, 6), whole), "where nothing was observed matters"
    chances = network.output.exceedance(whole)
    assert (chances.diff(dim=2) <= 0).all() and chances.min() >= 0 and chances.max() <= 1
    config = TrainingConfig(lead_frames=6, leads_in_step=2)
    drawn = [picked_leads(step, config) for step in range(200)]
    assert drawn == [picked_leads(step, config) for step in range(200)]
    counts = np.bincount(np.concatenate(drawn), minlength=6)
    assert counts.min() > 20 and counts[0] > counts[-1]


def test_ordinal_loss_by_hand():
    head = Head("ordinal", (0.4, 0.6))
    raw = torch.zeros(1, 1, 3, 1, 2)
    raw[0, 0, 0, 0, 0], raw[0, 0, 2, 0, 0] = 2.0, 0.3
    target = torch.tensor([[[[[0.5, 0.9]]]]])
    seen = torch.tensor([[[[[True, False]]]]])
    total = ordinal(raw, target, seen, head)
    wanted = np.log1p(np.exp(-2.0)) + 2 * np.log(2) + 10 * 0.2**2
    assert (total.sum.item(), total.weight.item()) == (pytest.approx(wanted, rel=1e-5), 1.0)
    # a pixel that is rounded to the level reaches it
    near = ordinal(raw, torch.full_like(target, 0.4 - 0.4 / 255), seen, head).sum.item()
    far = ordinal(raw, torch.full_like(target, 0.4 - 0.6 / 255), seen, head).sum.item()
    assert far - near > 1


class Still(Network):
    """Says that all stays as it is."""

    min_frames = 3

    def __init__(self) -> None:
        super().__init__(1, Head())

    def unroll(self, frames, leads, feed):
        return frames[:, -1:].repeat(1, leads, 1, 1, 1)


@pytest.mark.parametrize(("cadence", "spacing_km", "most"), [(10, 2.0, 5e-3), (5, 2.0, 5e-3), (5, 1.0, 0.02)])
def test_a_network_that_changes_nothing_is_optical_flow(cadence, spacing_km, most):
    frames = np.stack([rain(n * cadence, 256, spacing_km) for n in range(5)])
    x = torch.from_numpy(frames).float().view(1, 5, 1, *frames.shape[1:]) / 255
    seen = torch.ones_like(x, dtype=torch.bool)
    seen[..., :20, :20] = False
    flow = OpticalFlow()(x, seen, 6)
    made = MovingFrame(Still(), cadence, 1000 * spacing_km, PLAIN)(x, seen, 6)
    inside = (~flow.extrapolated & seen[:, -1:])[..., 40:, 40:]
    error = (made.values - flow.values).abs()[..., 40:, 40:][inside]
    assert error.mean() < most
    assert torch.equal(made.extrapolated, flow.extrapolated)


def test_past_frames_are_taken_from_where_the_rain_was():
    given = []

    class Looks(Still):
        def unroll(self, frames, leads, feed):
            given.append(frames)
            return super().unroll(frames, leads, feed)

    frames = np.stack([rain(n * 5, 256, 2.0) for n in range(5)])
    x = torch.from_numpy(frames).float().view(1, 5, 1, *frames.shape[1:]) / 255
    seen = torch.ones_like(x, dtype=torch.bool)
    assert estimate_motion(x[:, :, 0], seen[:, :, 0])[0, 0].mean() == pytest.approx(1.5, abs=0.1)
    MovingFrame(Looks(), 5, 2000.0, PLAIN)(x, seen, 2)
    middle = given[0][0, :, 0, 20:-20, 20:-20]
    assert (middle - middle[-1]).abs().mean() < 0.02 < (x[0, 0] - x[0, -1]).abs().mean()


def test_composed_rain_keeps_its_area_and_goes_where_it_is_likely():
    levels = (0.4, 0.5, 0.6, 0.7, 0.8)
    levels = tuple(round(v * 255) / 255 for v in levels)
    moved = torch.zeros(1, 1, 20, 20)
    moved[0, 0, 5:10, 5:10] = 0.55
    moved[0, 0, 7, 7] = 0.75
    logits = torch.full((1, 5, 20, 20), -5.0)
    logits[0, :2, 5:10, 8:13] = 2.0  # rain of two levels a little further
    seen = torch.ones(1, 1, 20, 20, dtype=torch.bool)
    made = composed(moved, moved, logits, moved, seen, levels, LATE, 10.0)
    # cells of equal rank go together
    assert 25 == (moved >= levels[1]).sum() <= (made >= levels[1]).sum() <= 26
    assert (made[0, 0, 5:10, 8:13] >= levels[1]).float().mean() > 0.9
    assert made[0, 0, 7, 7] >= levels[3], "heavy rain stays where the moved frame has it"
    amounts = [float(((10 * v).exp() * (v > 0)).sum()) for v in (made, moved)]
    assert amounts[0] == pytest.approx(amounts[1], rel=0.02), "as much rain as in the moved frame"
    assert made[0, 0, 5, 5] < levels[0]
    dry = torch.zeros_like(moved)
    assert not composed(dry, dry, logits, dry, seen, levels, LATE, 10.0).any(), (
        "the newest frame says how much rain there is"
    )
    nowhere = composed(moved, moved, logits, moved, ~seen, levels, LATE, 10.0)
    assert (nowhere < levels[0]).all()


def test_the_control_keeps_the_area_of_every_level_and_smooths_its_shape():
    frames = np.stack([rain(n * 10, 256, 2.0) for n in range(5)])
    noise = np.random.default_rng(1).integers(-30, 31, frames.shape[1:])
    frames = np.clip(frames + np.where(frames > 0, noise, 0), 0, 255)
    x = torch.from_numpy(frames).float().view(1, 5, 1, *frames.shape[1:]) / 255
    seen = torch.ones_like(x, dtype=torch.bool)
    levels = (60 / 255, 100 / 255)
    made, flow = AreaMatched(10, 2000.0, levels, 10.0)(x, seen, 6), OpticalFlow()(x, seen, 6)
    for level in levels:
        area, moved = ((one.values[0, :, 0] >= level - 0.5 / 255).sum(dim=(1, 2)) for one in (made, flow))
        assert ((area - moved).abs() <= 3).all()

    def edges(values):
        wet = (values[0, -1, 0] >= levels[1]).float()
        return wet.diff(dim=0).abs().sum() + wet.diff(dim=1).abs().sum()

    assert edges(made.values) < 0.8 * edges(flow.values)


def test_a_dataset_is_read_as_it_was_written_and_what_is_wrong_is_named(tmp_path):
    one = series(frames=8)
    dataset.save(tmp_path / "data", {"here": one}, {"made_at": "now"})
    found, card = dataset.load(tmp_path / "data")
    assert card["made_at"] == "now" and found["here"].facts == one.facts
    for key in dataset._ARRAYS:
        assert np.array_equal(getattr(found["here"], key), getattr(one, key)), key
    assert found["here"].observed(3).all()
    assert dataset.fingerprint(found) == dataset.fingerprint({"here": one})
    np.save(tmp_path / "data" / "here.slots.npy", np.arange(3))
    with pytest.raises(ValueError, match=r"here.slots.npy: \(3,\), expected \(8,\)"):
        dataset.load(tmp_path / "data")
    np.save(tmp_path / "data" / "here.slots.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(ValueError, match="not a readable array"):
        dataset.load(tmp_path / "data")
    (tmp_path / "data" / "card.json").write_text('{"format_version": 1, "series": {"../x": {}}}')
    with pytest.raises(ValueError, match="not the card of a dataset"):
        dataset.load(tmp_path / "data")


def test_growth_is_learnt_in_the_moving_frame(tmp_path):
    """Rain that grows as it moves: after a short training the mean is nearer than the rain as it was."""
    growing = series(frames=30)
    pixels = np.stack([rain(n * 10, 256, 2.0, growth=0.3) for n in range(30)])
    growing = dataclasses.replace(growing, pixels=pixels)
    recipe = Recipe(
        "growth_decay", {"widths": [8, 16]}, crop=64,
        training=TrainingConfig(input_frames=3, lead_frames=4, batch=4, steps=60, learning_rate=5e-3, leads_in_step=2),
    )  # fmt: skip
    made = make_moving(recipe, {"here": growing}, {}, tmp_path / "model", "model", lambda step, row: None)
    assert made.card.moving and made.card.cadences_minutes == [5, 6, 10]
    from models import checkpoint

    network, _card = checkpoint.load(tmp_path / "model")
    method = MovingFrame(network, 10, 2000.0, PLAIN)
    x = torch.from_numpy(pixels[10:15]).float().view(1, 5, 1, 128, 128) / 255
    seen = torch.ones_like(x, dtype=torch.bool)
    true = torch.from_numpy(pixels[15:19]).float().view(1, 4, 1, 128, 128) / 255
    with torch.no_grad():
        forecast, flow = method(x, seen, 4), OpticalFlow()(x, seen, 4)
    inside = ~flow.extrapolated
    error = [((one.values - true) ** 2)[inside].mean() for one in (forecast, flow)]
    assert error[0] < error[1]
    assert forecast.exceedance is not None and forecast.exceedance.shape == (1, 4, 5, 128, 128)
    assert len(method.levels) == 5


@pytest.mark.parametrize(
    ("name", "config", "most"),
    [
        ("convlstm", {"widths": [8], "from_newest": True}, 1e-6),
        ("convlstm", {"widths": [8], "from_newest": True, "head": "ordinal", "levels": list(zoo.RAIN_CLASSES)}, 1e-6),
        ("dc", {"input_frames": 3, "taps": 21, "from_newest": True}, 0.05),
    ],
)
def test_networks_that_start_from_the_newest_frame_start_as_persistence(name, config, most):
    torch.manual_seed(3)
    network = zoo.build(name, config).eval()
    frames = torch.from_numpy(np.stack([rain(n * 10, 128, 2.0) for n in range(3)])).float().view(1, 3, 1, 64, 64) / 255
    with torch.no_grad():
        own = network.output.values(network.roll_out(frames, 2))
        taught = network.output.values(network.roll_out(frames, 2, teacher=frames[:, :2]))
    assert (own - frames[:, -1:]).abs().mean() < most
    assert (taught[:, 1] - frames[:, 0]).abs().mean() < most, "a taught frame is what the next one starts from"


def test_only_heads_that_say_what_persistence_is_start_from_it():
    with pytest.raises(ValueError, match="from_newest needs a head"):
        zoo.build("convlstm_classes", {"from_newest": True})


def test_it_says_how_much_memory_it_takes():
    """The estimate holds what a pass takes, and is not so large that a GPU would be left idle."""
    frames, seen = torch.zeros(1, 5, 1, 256, 300), torch.ones(1, 5, 1, 256, 300, dtype=torch.bool)
    frames[..., 50:200, 60:220], seen[..., :20, :20] = 0.6 * torch.rand(1, 1, 1, 150, 160), False
    for name in ("champion", "dc"):
        network, card = checkpoint.load(checkpoint.find(name))
        for spacing_m in (1000.0, 2000.0):
            method = MovingFrame(network, 5, spacing_m, PLAIN, int(card.training["input_frames"]))
            with torch.no_grad(), _Meter() as meter:
                method(frames, seen, 12)
            estimate = method.peak_bytes(1, 5, 12, 256, 300)
            assert meter.peak < estimate < 4 * meter.peak
            assert method.peak_bytes(8, 5, 12, 256, 300) == pytest.approx(8 * estimate, rel=0.01)


def test_its_network_works_in_tiles_where_the_budget_asks_for_them(monkeypatch):
    torch.manual_seed(1)
    network, card = checkpoint.load(checkpoint.find("champion"))
    frames, seen = torch.zeros(1, 5, 1, 700, 620), torch.ones(1, 5, 1, 700, 620, dtype=torch.bool)
    frames[0, :, 0] = torch.from_numpy(np.stack([rain(n * 5, 700, 1.0)[:, :620] for n in range(5)])) / 255
    seen[..., 300:340, 200:260] = False
    made, sizes = {}, []
    roll_out = Network.roll_out

    def counted(self, x, *arguments, **named):
        if x.device.type == "cpu":
            sizes.append(tuple(x.shape[-2:]))
        return roll_out(self, x, *arguments, **named)

    monkeypatch.setattr(Network, "roll_out", counted)
    count = int(card.training["input_frames"])
    needed = MovingFrame(network, 5, 2000.0, PLAIN, count).peak_bytes(1, 5, 4, 700, 620)
    too_little = (needed - network.peak_bytes(1, count, 2, 700, 620) // 3) // 2**20
    for memory_mb in (4096, too_little):
        sizes.clear()
        method = MovingFrame(network, 5, 2000.0, PLAIN, count, memory_mb=memory_mb)
        assert method.peak_bytes(1, 5, 4, 700, 620) <= memory_mb * 2**20
        with torch.no_grad():
            made[memory_mb] = method(frames, seen, 4)
        assert (len(sizes) > 1) == (memory_mb == too_little), sizes
    assert max(height * width for height, width in sizes) < 700 * 620
    whole, tiled = made[4096], made[too_little]
    assert torch.allclose(whole.exceedance, tiled.exceedance, atol=1e-4)
    assert (whole.values - tiled.values).abs().mean() < 1e-4
