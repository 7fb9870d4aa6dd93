import pytest
import torch

from models import zoo
from models.layers.conv_lstm import ConvLSTMCell
from models.networks.encoder_forecaster import EncoderForecaster, EncoderForecasterConfig


@pytest.mark.parametrize(
    ("name", "parameters"),
    [  # Wu 2019, tables of pages 50-54
        ("wu2019_radar_1l", 1_191_937),
        ("wu2019_radar_2l", 894_465),
        ("wu2019_radar_3l", 670_209),
        ("wu2019_mnist_1l", 3_311_617),
        ("wu2019_mnist_2l", 2_475_521),
        ("wu2019_mnist_3l", 1_858_049),
    ],
)
def test_parameters_are_those_of_the_thesis(name, parameters):
    assert zoo.describe(name, size=16)["parameters"] == parameters


@pytest.mark.parametrize(("patch", "size"), [(1, (9, 13)), (4, (17, 22)), (2, (16, 16))])
def test_any_grid_length_and_lead_is_accepted(patch, size):
    network = EncoderForecaster(EncoderForecasterConfig(widths=(4, 3), patch=patch, channels=2))
    frames = torch.rand(2, 3, 2, *size)
    made = network(frames, torch.ones(2, 3, 1, *size, dtype=torch.bool), leads=5)
    assert made.values.shape == (2, 5, 2, *size)
    assert made.extrapolated.shape == (2, 5, 1, *size)
    assert made.values.min() >= 0 and made.values.max() <= 1


def test_cell_equals_the_equations_of_the_paper():
    torch.manual_seed(0)
    cell = ConvLSTMCell(2, 3, 3, peepholes=True)
    with torch.no_grad():
        cell.peephole.normal_()
    x, h, c = torch.randn(1, 2, 5, 6), torch.randn(1, 3, 5, 6), torch.randn(1, 3, 5, 6)
    w, b = cell.gates.weight, cell.gates.bias

    def part(n):
        of_x = torch.nn.functional.conv2d(x, w[3 * n : 3 * n + 3, :2], padding=1)
        of_h = torch.nn.functional.conv2d(h, w[3 * n : 3 * n + 3, 2:], padding=1)
        return of_x + of_h + b[3 * n : 3 * n + 3].view(1, -1, 1, 1)

    i = torch.sigmoid(part(0) + cell.peephole[0] * c)
    f = torch.sigmoid(part(1) + cell.peephole[1] * c)
    c_next = f * c + i * torch.tanh(part(3))
    o = torch.sigmoid(part(2) + cell.peephole[2] * c_next)
    h_got, c_got = cell(x, (h, c))
    torch.testing.assert_close(c_got, c_next)
    torch.testing.assert_close(h_got, o * torch.tanh(c_next))


def test_forecaster_feeds_on_its_own_output_unless_taught():
    torch.manual_seed(0)
    network = EncoderForecaster(EncoderForecasterConfig(widths=(4,)))
    frames, truth = torch.rand(1, 3, 1, 8, 8), torch.rand(1, 4, 1, 8, 8)
    free, taught = network.roll_out(frames, 4), network.roll_out(frames, 4, teacher=truth)
    torch.testing.assert_close(free[:, 0], taught[:, 0])  # the first input is zeros either way
    assert not torch.allclose(free[:, 1], taught[:, 1])
    again = network.roll_out(frames, 4, teacher=free.clamp(0, 1).detach())
    torch.testing.assert_close(free, again)


def test_even_kernel_is_refused():
    with pytest.raises(ValueError, match="odd"):
        ConvLSTMCell(1, 1, 4)


def test_unknown_network_lists_the_known_ones():
    with pytest.raises(KeyError, match="wu2019_radar_3l"):
        zoo.build("nonesuch")
