import pytest
import torch
import torch.nn.functional as F

from models import zoo
from models.heads import Head
from models.networks.cnn import CNN, CNNConfig
from models.networks.dynamic_conv_net import DynamicConvConfig, DynamicConvNet
from models.networks.encoder_forecaster import EncoderForecaster, EncoderForecasterConfig
from models.networks.strided_gru import _coordinates

PUBLISHED = {  # Wu 2019 tables 4.1 and 4.2; De Brabandere 2016 and Shi 2017 by their code
    "wu2019_radar_1l": 1_191_937,
    "wu2019_radar_2l": 894_465,
    "wu2019_radar_3l": 670_209,
    "wu2019_mnist_1l": 3_311_617,
    "wu2019_mnist_2l": 2_475_521,
    "wu2019_mnist_3l": 1_858_049,
    "fc_lstm_mnist": 92_295_168,
    "fc_lstm_radar": 154_816_473,
    "dfn": 637_361,
    "hko7_convgru": 13_649_081,
    "hko7_trajgru": 12_150_053,
    "mnistpp_convgru_k3d2": 2_604_817,
    "mnistpp_convgru_k5": 4_767_505,
    "mnistpp_convgru_k7": 8_011_537,
    "mnistpp_trajgru_l5": 2_842_157,
    "mnistpp_trajgru_l9": 3_421_277,
    "mnistpp_trajgru_l13": 4_000_397,
    "mnistpp_trajgru_l17": 4_579_517,
}
STATED = {  # ours: nothing is published to hold them against, but they must not change unseen
    "hko7_cnn2d": 8_986_270,
    "hko7_cnn3d": 89_830_777,
    "dc": 377_938,
    "convlstm": 738_832,
}
# small relatives, so that every architecture is run whole in seconds
SMALL = {
    "convlstm": {"widths": (8, 8), "patch": 2},
    "convlstm_attention": {"widths": (8, 8), "patch": 2},
    "convlstm_classes": {"widths": (8, 8), "patch": 2},
    "fc_lstm_mnist": {"widths": (64,), "height": 33, "width": 47},
    "dc": {"input_frames": 3, "taps": 11, "widths": (8, 8, 16, 32)},
    "dfn": {"side": 7, "widths": (8, 16, 16)},
    "hko7_convgru": {"down": ((4, 7, 5), (16, 5, 3), (16, 3, 2)), "widths": (8, 16, 16)},
    "hko7_trajgru": {"down": ((4, 7, 5), (16, 5, 3), (16, 3, 2)), "widths": (8, 16, 16), "links": (3, 3, 2)},
    "hko7_cnn2d": {"base": 16, "input_frames": 3, "lead_frames": 2},
    "hko7_cnn3d": {"base": 16, "input_frames": 3, "lead_frames": 2},
    "unet": {"widths": (8, 16, 16), "input_frames": 3, "lead_frames": 2},
    "unet_dilated": {"widths": (8, 16, 16), "input_frames": 3, "lead_frames": 2},
    "unet_segmentation": {"widths": (8, 16, 16), "input_frames": 3, "lead_frames": 2},
    "advection_diffusion": {"input_frames": 3, "widths": (8, 16, 32)},
}


def small(name: str, **changes):
    torch.manual_seed(0)
    return zoo.build(name, {**SMALL[name], **changes})


@pytest.mark.parametrize("name", [*PUBLISHED, *STATED])
def test_parameters_are_those_of_the_source(name):
    assert zoo.describe(name)["parameters"] == {**PUBLISHED, **STATED}[name]


@pytest.mark.parametrize("name", zoo.ZOO)
def test_every_configuration_gives_the_shapes_it_is_listed_with(name):
    listed = zoo.describe(name)
    with torch.device("meta"), torch.no_grad():
        made = zoo.build(name).roll_out(torch.zeros(listed["input_shape"]), listed["output_shape"][1])
    assert list(made.shape) == listed["output_shape"]


@pytest.mark.parametrize("name", SMALL)
def test_any_batch_grid_channels_and_leads(name):
    network = small(name, channels=2).eval()
    frames = torch.rand(2, 4, 2, 33, 47)
    with torch.no_grad():
        made = network(frames, torch.ones(2, 4, 1, 33, 47, dtype=torch.bool), leads=5)
        alone = network(frames[1:], torch.ones(1, 4, 1, 33, 47, dtype=torch.bool), leads=5)
    assert made.values.shape == (2, 5, 2, 33, 47)
    assert made.extrapolated.shape == (2, 5, 1, 33, 47)
    assert made.values.min() >= 0 and made.values.max() <= 1
    torch.testing.assert_close(made.values[1:], alone.values, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_with_and_without_gradients_the_forecast_is_the_same(name):
    network = small(name).eval()
    if name == "convlstm_attention":  # which starts as the identity
        torch.nn.init.normal_(network.attention.mix.weight)
    frames = torch.rand(1, 4, 1, 33, 47)
    with torch.no_grad():
        quick = network.roll_out(frames, 3)
    torch.testing.assert_close(network.roll_out(frames, 3), quick, atol=1e-5, rtol=1e-4)


def blob(time: int, height: int, width: int) -> torch.Tensor:
    """Two samples: a smooth cell that moves right by two pixels a frame, and one that moves up."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    right = [0.8 * torch.exp(-((y - 14) ** 2 + (x - 10 - 2 * t) ** 2) / 18) for t in range(time)]
    up = [0.6 * torch.exp(-((y - 20 + 2 * t) ** 2 + (x - 30) ** 2) / 24) for t in range(time)]
    return torch.stack((*right, *up)).view(2, time, 1, height, width)


@pytest.mark.parametrize("name", SMALL)
def test_one_batch_is_learnt_by_heart(name):
    network = small(name)
    frames = blob(5, 33, 47)
    target = frames[:, 3:]
    network.train()

    def loss() -> torch.Tensor:
        raw = network.roll_out(frames[:, :3], 2)
        if network.output.kind == "categorical":
            borders = torch.tensor(network.output.levels)
            return F.cross_entropy(raw.transpose(1, 2), torch.bucketize(target[:, :, 0], borders, right=True))
        if network.output.kind == "segmentation":
            return F.binary_cross_entropy_with_logits(raw, (target >= network.output.levels[0]).float())
        return F.mse_loss(raw, target)

    optimizer = torch.optim.Adam(network.parameters(), lr=4e-3)
    first = loss().item()
    lowest = first
    for _ in range(800):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        lowest = min(lowest, value.item())
        if lowest < first / 10:
            break
    assert lowest < first / 10, f"{first:.5f} fell to {lowest:.5f} only"


@pytest.mark.parametrize("name", [n for n in SMALL if zoo.ZOO[n].build.takes_teacher])
def test_forecaster_feeds_on_its_own_output_unless_taught(name):
    network = small(name)
    frames, truth = torch.rand(1, 4, 1, 33, 47), torch.rand(1, 4, 1, 33, 47)
    free, taught = network.roll_out(frames, 4), network.roll_out(frames, 4, teacher=truth)
    torch.testing.assert_close(free[:, 0], taught[:, 0])  # nothing was fed yet
    assert not torch.allclose(free[:, 1], taught[:, 1])
    own = network.output.values(free).detach()
    torch.testing.assert_close(free, network.roll_out(frames, 4, teacher=own))
    never = torch.zeros(1, 4, dtype=torch.bool)
    torch.testing.assert_close(free, network.roll_out(frames, 4, teacher=truth, taught=never))
    torch.testing.assert_close(taught, network.roll_out(frames, 4, teacher=truth, taught=~never))


@pytest.mark.parametrize("name", [n for n in SMALL if not zoo.ZOO[n].build.takes_teacher])
def test_a_network_without_feedback_refuses_a_teacher(name):
    with pytest.raises(ValueError, match="no teacher"):
        small(name).roll_out(torch.rand(1, 4, 1, 33, 47), 2, teacher=torch.rand(1, 2, 1, 33, 47))


def test_a_teacher_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"teacher must be \(1, 3, 1, 33, 47\)"):
        small("convlstm").roll_out(torch.rand(1, 4, 1, 33, 47), 3, teacher=torch.rand(1, 1, 1, 33, 47))


def test_a_direct_network_goes_on_from_its_own_output():
    network = small("unet").eval()
    frames = torch.rand(1, 3, 1, 16, 16)
    with torch.no_grad():
        long, first = network.roll_out(frames, 4), network.roll_out(frames, 2)
        again = network.roll_out(torch.cat((frames, first.clamp(0, 1)), dim=1), 2)
    torch.testing.assert_close(long, torch.cat((first, again), dim=1))


def dc(**changes) -> DynamicConvNet:
    torch.manual_seed(1)
    network = DynamicConvNet(DynamicConvConfig(widths=(4, 4, 8, 16), **changes))
    torch.nn.init.normal_(network.filters[-1].weight, std=20)  # sharp filters, different in each place
    return network.eval()


@torch.no_grad()
def test_dc_without_blending_is_the_patch_wise_network_of_the_paper():
    network, frames = dc(blend=False), torch.rand(2, 4, 1, 30, 50)
    made = network.roll_out(frames, 1)[:, 0]
    padded = F.pad(frames, (30, 30, 30, 30))
    for n in range(2):
        for r in range(3):
            for c in range(5):
                patch = padded[n : n + 1, :, 0, 10 * r : 10 * r + 70, 10 * c : 10 * c + 70]
                v, h = network.filters(patch)[0, :, 0, 0].split(41)
                moved = F.conv2d(patch[:, -1:], F.softmax(v, 0).view(1, 1, 41, 1))
                moved = F.conv2d(moved, F.softmax(h, 0).view(1, 1, 1, 41))  # 30 x 30
                centre = moved[0, 0, 10:20, 10:20]
                torch.testing.assert_close(made[n, 0, 10 * r : 10 * r + 10, 10 * c : 10 * c + 10], centre)


@torch.no_grad()
def test_dc_blending_is_the_mean_of_neighbouring_filters_and_shows_no_seams():
    network, frames = dc(), torch.rand(1, 4, 1, 40, 40)
    made = network.roll_out(frames, 1)[0, 0, 0]
    padded = F.pad(frames, (30, 30, 30, 30))
    v, h = network.filters(padded[:, :, 0])[0].split(41)
    last = F.pad(frames[0, -1, 0], (20, 20, 20, 20))
    for y, x in [(17, 22), (3, 36), (20, 20), (39, 0)]:
        total = weights = 0.0
        for r in range(4):
            for c in range(4):
                weight = max(0.0, 1 - abs(y - 4.5 - 10 * r) / 10) * max(0.0, 1 - abs(x - 4.5 - 10 * c) / 10)
                kernel = torch.outer(F.softmax(v[:, r, c], 0), F.softmax(h[:, r, c], 0))
                total += weight * (kernel * last[y : y + 41, x : x + 41]).sum().item()
                weights += weight
        assert made[y, x].item() == pytest.approx(total / weights, abs=1e-5)
    # the newest frame is smooth; where the filter changes at once, a step shows between pixels 9 and 10
    frames = torch.rand(1, 4, 1, 80, 80)
    frames[:, -1] = (0.5 + 0.4 * torch.sin(torch.arange(80.0) / 9)).view(80, 1)

    def steps(blend: bool) -> torch.Tensor:
        field = dc(blend=blend).roll_out(frames, 1)[0, 0, 0]
        return (field[1:] - field[:-1]).abs().mean(dim=1)[20:59]

    at_seams = torch.arange(20, 59) % 10 == 9
    assert steps(False)[at_seams].mean() > 2 * steps(False)[~at_seams].mean()
    assert steps(True)[at_seams].mean() < 1.2 * steps(True)[~at_seams].mean()


def test_segmentation_and_classes_give_probabilities_that_fall_with_the_level():
    for name, levels in (("convlstm_classes", 5), ("unet_segmentation", 1)):
        network = small(name).eval()
        seen = torch.ones(1, 3, 1, 16, 16, dtype=torch.bool)
        with torch.no_grad():
            made = network(torch.rand(1, 3, 1, 16, 16), seen, 2)
        assert made.exceedance.shape == (1, 2, levels, 16, 16)
        assert made.exceedance.min() >= 0 and made.exceedance.max() <= 1
        assert (made.exceedance.diff(dim=2) <= 1e-6).all()
    assert small("unet").eval()(torch.rand(1, 3, 1, 16, 16), seen, 2).exceedance is None


def test_a_class_stands_for_its_middle():
    network = small("convlstm_classes", levels=(0.4, 0.6), head="categorical")
    raw = torch.full((1, 1, 3, 1, 1), -50.0)
    for certain, value in ((0, 0.0), (1, 0.5), (2, 0.8)):
        one = raw.clone()
        one[0, 0, certain] = 50
        assert network.output.values(one).item() == pytest.approx(value)
    event = Head("segmentation", (0.4,))
    assert event.values(torch.full((1, 1, 1, 1), 50.0)).item() == pytest.approx(0.4)


def test_another_head_takes_other_levels():
    assert zoo.build("convlstm_classes", {**SMALL["convlstm_classes"], "head": "value"}).output.levels == ()


def test_what_is_not_observed_does_not_enter():
    network, frames = small("convlstm").eval(), torch.rand(1, 3, 1, 16, 16)
    seen = torch.rand(1, 3, 1, 16, 16) > 0.5
    with torch.no_grad():
        torch.testing.assert_close(
            network(frames, seen, 2).values, network(frames * seen, torch.ones_like(seen), 2).values
        )


def test_options_of_networks_change_them():
    frames = torch.rand(1, 3, 1, 16, 16)
    plain, residual = small("unet"), small("unet", residual=True)
    with torch.no_grad():
        for module in residual.modules():
            if isinstance(getattr(module, "past", None), torch.nn.Conv2d):
                module.past.weight.zero_(), module.past.bias.zero_()
        residual.load_state_dict(plain.state_dict(), strict=False)
        torch.testing.assert_close(residual.roll_out(frames, 2), plain.roll_out(frames, 2))
        torch.nn.init.ones_(residual.down[0].past.weight)
        assert not torch.allclose(residual.roll_out(frames, 2), plain.roll_out(frames, 2))
    wide = EncoderForecaster(EncoderForecasterConfig(widths=(2,), head_width=4))
    torch.nn.init.zeros_(wide.head[1].bias)
    h = torch.zeros(1, 2, 1, 9)
    h[..., 4] = 1
    reached = wide.head(h)[0, 0, 0] != 0  # of an even width one more to the right than to the left
    assert reached.nonzero().flatten().tolist() == [2, 3, 4, 5]


def test_strided_gru_is_told_where_it_is():
    coordinates = _coordinates(torch.zeros(1, 2, 1, 3, 5))[0, 0]
    assert coordinates[0, 0].tolist() == [-1, -0.5, 0, 0.5, 1] and coordinates[1, :, 0].tolist() == [-1, 0, 1]
    assert (coordinates[2] == 1).all()


def test_a_clipped_head_stays_within_the_range_in_the_loss_too():
    network = CNN(CNNConfig(base=2, input_frames=1, lead_frames=1)).eval()
    torch.nn.init.constant_(network.head.bias, 3.0)
    assert network.roll_out(torch.rand(1, 1, 1, 12, 12), 1).max() == 1.0


FRAMES, SEEN = torch.rand(1, 3, 1, 16, 16), torch.ones(1, 3, 1, 16, 16, dtype=torch.bool)


@pytest.mark.parametrize(
    ("frames", "observed", "leads", "says"),
    [
        (FRAMES * 255, SEEN, 2, "pixels must be 0-1"),
        (torch.where(FRAMES > 0.9, torch.nan, FRAMES), SEEN, 2, "without NaN"),
        (FRAMES[0], SEEN, 2, "got shape"),
        (FRAMES.expand(1, 3, 2, 16, 16), SEEN, 2, "2 channels, the network takes 1"),
        (FRAMES[:, :2], SEEN[:, :2], 2, "2 input frames, the network takes at least 3"),
        (FRAMES, SEEN[:, :2], 2, "observed must be"),
        (FRAMES, SEEN, 0, "at least 1"),
        (FRAMES[:0], SEEN[:0], 2, "empty batch"),
    ],
)
def test_bad_input_is_refused_with_what_was_expected(frames, observed, leads, says):
    with pytest.raises(ValueError, match=says):
        small("unet")(frames, observed, leads)


def test_integer_frames_are_refused():
    with pytest.raises(TypeError, match="divide 0-255 pixels by 255"):
        small("unet")((FRAMES * 255).to(torch.uint8), SEEN, 2)


def test_fc_lstm_names_the_only_grid_it_knows():
    with pytest.raises(ValueError, match="33 x 47, got 16 x 16"):
        small("fc_lstm_mnist")(FRAMES, SEEN, 2)


@pytest.mark.parametrize(
    ("name", "config", "says"),
    [
        ("dc", {"taps": 42}, "odd"),
        ("dc", {"taps": 53}, "at most"),
        ("unet", {"head": "nonesuch"}, "there are value"),
        ("unet", {"head": "categorical"}, "at least one level"),
        ("unet", {"head": "segmentation", "levels": (0.6, 0.4)}, "one level"),
        ("unet", {"head": "categorical", "levels": (0.6, 0.4)}, "must rise"),
        ("unet", {"input_frames": 0}, "at least 1"),
        ("convlstm", {"channels": 0}, "at least one channel"),
    ],
)
def test_a_configuration_that_makes_no_network_is_refused(name, config, says):
    with pytest.raises(ValueError, match=says):
        zoo.build(name, config)


def test_unknown_network_lists_the_known_ones():
    with pytest.raises(KeyError, match="wu2019_radar_3l"):
        zoo.build("nonesuch")


def test_any_length_and_patch():
    network = EncoderForecaster(EncoderForecasterConfig(widths=(4, 3), patch=4))
    for frames, leads, size in ((1, 1, (3, 2)), (7, 9, (17, 22))):
        assert network.roll_out(torch.rand(1, frames, 1, *size), leads).shape == (1, leads, 1, *size)
