"""Every layer against a slow loop written from its paper's formula, and its gradients against finite differences."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from models.layers.advection_diffusion import RADIUS, advect_diffuse
from models.layers.attention import TemporalAttention
from models.layers.conv_gru import ConvGRUCell
from models.layers.conv_lstm import ConvLSTMCell, State
from models.layers.dynamic_conv import dynamic_convolution, separable_convolution
from models.layers.local_filter import local_filter
from models.layers.traj_gru import TrajGRUCell
from models.layers.warp import warp

DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def lstm_by_the_paper(cell: ConvLSTMCell, xs: torch.Tensor, h: torch.Tensor, c: torch.Tensor):
    w, b, n = cell.gates.weight, cell.gates.bias, cell.hidden
    p = cell.peephole if cell.peephole is not None else torch.zeros(3, n, 1, 1, dtype=xs.dtype)
    pad = w.shape[-1] // 2
    hs = []
    for x in xs:
        part = [
            F.conv2d(x, w[k * n : (k + 1) * n, : cell.inputs], padding=pad)
            + F.conv2d(h, w[k * n : (k + 1) * n, cell.inputs :], padding=pad)
            + b[k * n : (k + 1) * n].view(1, -1, 1, 1)
            for k in range(4)
        ]
        i, f = torch.sigmoid(part[0] + p[0] * c), torch.sigmoid(part[1] + p[1] * c)
        c = f * c + i * torch.tanh(part[3])
        h = torch.sigmoid(part[2] + p[2] * c) * torch.tanh(c)
        hs.append(h)
    return torch.stack(hs), h, c


@pytest.mark.parametrize("peepholes", [False, True])
@pytest.mark.parametrize("fresh", [False, True], ids=["from a state", "from zero"])
def test_conv_lstm_sequence_and_its_gradients_equal_the_equations(peepholes, fresh):
    cell = ConvLSTMCell(2, 3, 3, peepholes=peepholes).to(DOUBLE)
    if cell.peephole is not None:
        torch.nn.init.normal_(cell.peephole)
    xs = torch.randn(4, 2, 2, 5, 6, dtype=DOUBLE, requires_grad=True)
    h, c = (torch.randn(2, 3, 5, 6, dtype=DOUBLE, requires_grad=True) for _ in range(2))
    weights = torch.randn(4, 2, 3, 5, 6, dtype=DOUBLE)
    inputs = [xs, *([] if fresh else [h, c]), *cell.parameters()]
    gradients = []
    for ours in (True, False):
        if ours:
            hs, state = cell.scan(xs, None if fresh else State(h, c))
            last_h, last_c = state.h, state.c
        else:
            hs, last_h, last_c = lstm_by_the_paper(cell, xs, *((torch.zeros_like(h),) * 2 if fresh else (h, c)))
        loss = (hs * weights).sum() + (last_h**2).sum() + (last_c**3).sum()
        gradients.append((hs.detach(), *torch.autograd.grad(loss, inputs)))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)
    if fresh:
        with torch.no_grad():  # the way in place gives the same
            torch.testing.assert_close(cell.scan(xs)[0], gradients[0][0])


def test_conv_lstm_gradients_by_finite_differences():
    cell = ConvLSTMCell(1, 2, 3).to(DOUBLE)
    xs = torch.randn(3, 1, 1, 3, 4, dtype=DOUBLE)
    loss = (cell.scan(xs)[0] ** 2).sum()
    loss.backward()
    weight = cell.gates.weight
    for place in [(0, 0, 0, 0), (3, 1, 1, 2), (5, 2, 2, 1), (7, 1, 0, 1)]:
        step, values = 1e-6, []
        for sign in (1, -1):
            with torch.no_grad():
                weight[place] += sign * step
                values.append((cell.scan(xs)[0] ** 2).sum().item())
                weight[place] -= sign * step
        assert weight.grad[place].item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5)


def test_conv_lstm_takes_a_plain_state_without_gradients():
    cell = ConvLSTMCell(2, 3, 3)
    x, h, c = torch.randn(1, 2, 5, 6), torch.randn(1, 3, 5, 6), torch.randn(1, 3, 5, 6)
    before = c.clone()
    with torch.no_grad():
        made = cell(x, State(h, c))
    hs, _, last = lstm_by_the_paper(cell, x.unsqueeze(0), h, c)
    torch.testing.assert_close((made.h, made.c), (hs[0], last))
    assert torch.equal(c, before)  # the caller's


def test_conv_lstm_in_bfloat16_has_the_gradients_of_float64():
    cell = ConvLSTMCell(3, 8, 3)
    xs = torch.randn(6, 2, 3, 9, 9)
    gradients = []
    for exact in (True, False):
        one = copy.deepcopy(cell).to(DOUBLE if exact else torch.float32)
        with torch.autocast("cpu", torch.bfloat16, enabled=not exact):
            hs, state = one.scan(xs.to(DOUBLE) if exact else xs)
        assert state.c.dtype == (DOUBLE if exact else torch.float32)
        (hs.to(state.c.dtype).square().sum() + state.c.sum()).backward()
        gradients.append([p.grad.double() for p in one.parameters()])
    for a, b in zip(*gradients, strict=True):
        error = ((a - b).norm() / a.norm()).item()
        assert 1e-5 < error < 1e-2  # in bfloat16 indeed, and good


def test_a_new_cell_remembers():
    bias = ConvLSTMCell(1, 3, 3).gates.bias
    assert bias[3:6].tolist() == [1, 1, 1] and bias[:3].tolist() == bias[6:9].tolist() == [0, 0, 0]


def test_conv_lstm_sequence_refuses_a_second_backward_pass():
    cell = ConvLSTMCell(1, 2, 3)
    loss = cell.scan(torch.randn(2, 1, 1, 4, 4))[0].sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        loss.backward()


def test_conv_gru_equals_the_equations():
    cell = ConvGRUCell(2, 3, 5, dilation=2).to(DOUBLE)
    x, h = torch.randn(2, 2, 7, 8, dtype=DOUBLE), torch.randn(2, 3, 7, 8, dtype=DOUBLE)
    of_x = F.conv2d(x, cell.from_input.weight, cell.from_input.bias, padding=1).split(3, dim=1)
    of_h = F.conv2d(h, cell.from_state.weight, cell.from_state.bias, padding=4, dilation=2).split(3, dim=1)
    reset, update = torch.sigmoid(of_x[0] + of_h[0]), torch.sigmoid(of_x[1] + of_h[1])
    candidate = F.leaky_relu(of_x[2] + reset * of_h[2], 0.2)
    torch.testing.assert_close(cell(x, h), (1 - update) * candidate + update * h)


def bilinear(image: torch.Tensor, y: float, x: float, *, edge: bool) -> torch.Tensor:
    """One value of (channel, height, width), zero outside or the nearest edge value."""
    height, width = image.shape[-2:]
    if edge:
        y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    total = torch.zeros_like(image[:, 0, 0])
    for r in (math.floor(y), math.floor(y) + 1):
        for c in (math.floor(x), math.floor(x) + 1):
            if 0 <= r < height and 0 <= c < width:
                total += (1 - abs(y - r)) * (1 - abs(x - c)) * image[:, r, c]
    return total


def test_traj_gru_samples_the_state_along_each_link():
    cell = TrajGRUCell(2, 3, 2).to(DOUBLE)
    torch.nn.init.normal_(cell.flows.weight, std=0.3)
    x, h = torch.randn(1, 2, 5, 6, dtype=DOUBLE), torch.randn(1, 3, 5, 6, dtype=DOUBLE)
    flows = cell.flows(F.leaky_relu(cell.flow_from_state(h) + cell.flow_from_input(x), 0.2))
    assert flows.abs().max() > 0.5
    warped = torch.zeros(1, 6, 5, 6, dtype=DOUBLE)
    for link in range(2):
        for r in range(5):
            for c in range(6):
                dx, dy = flows[0, 2 * link, r, c].item(), flows[0, 2 * link + 1, r, c].item()
                warped[0, 3 * link : 3 * link + 3, r, c] = bilinear(h[0], r - dy, c - dx, edge=False)
    torch.testing.assert_close(cell.of_state(x, h), cell.mix(warped), rtol=1e-4, atol=1e-5)  # positions are float32


def test_warp_moves_by_the_displacement_and_stands_at_the_edge():
    field = torch.rand(1, 2, 5, 6)
    displacement = 2 * torch.randn(1, 2, 5, 6)
    moved = warp(field, displacement)
    for r in range(5):
        for c in range(6):
            dx, dy = (displacement[0, n, r, c].item() for n in (0, 1))
            torch.testing.assert_close(moved[0, :, r, c], bilinear(field[0], r - dy, c - dx, edge=True))


def test_dynamic_convolution_and_both_gradients_equal_the_paper():
    x = torch.randn(3, 2, 7, 8, dtype=DOUBLE, requires_grad=True)
    k = torch.randn(3, 4, 2, 3, 5, dtype=DOUBLE, requires_grad=True)
    y = dynamic_convolution(x, k)
    expected = torch.zeros(3, 4, 5, 4, dtype=DOUBLE)
    dy = torch.randn_like(expected)
    dx, dk = torch.zeros_like(x), torch.zeros_like(k)
    for n in range(3):
        for o in range(4):
            for i in range(2):
                for a in range(3):
                    for b in range(5):
                        window = x[n, i, a : a + 5, b : b + 4].detach()
                        expected[n, o] += k[n, o, i, a, b].item() * window
                        dk[n, o, i, a, b] = (dy[n, o] * window).sum()
                        dx[n, i, a : a + 5, b : b + 4] += (k[n, o, i, a, b] * dy[n, o]).detach()
    torch.testing.assert_close(y, expected)
    got = torch.autograd.grad(y, (x, k), dy)
    torch.testing.assert_close(got, (dx.detach(), dk.detach()))


def test_dynamic_convolution_under_autocast_has_gradients():
    x, k = torch.randn(2, 2, 6, 6, requires_grad=True), torch.randn(2, 1, 2, 3, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        dynamic_convolution(x, k).sum().backward()
    assert x.grad.dtype == k.grad.dtype == torch.float32


def test_separable_convolution_equals_two_dynamic_convolutions():
    x, v, h = torch.randn(3, 2, 9, 11), torch.randn(3, 5), torch.randn(3, 5)
    expected = torch.stack(
        [
            torch.cat(
                [
                    F.conv2d(F.conv2d(x[n : n + 1, c : c + 1], v[n].view(1, 1, -1, 1)), h[n].view(1, 1, 1, -1))[0]
                    for c in range(2)
                ]
            )
            for n in range(3)
        ]
    )
    torch.testing.assert_close(separable_convolution(x, v, h), expected)


def test_one_hot_filters_translate_by_whole_pixels_exactly():
    x = torch.rand(1, 1, 45, 45)
    v, h = torch.zeros(1, 41), torch.zeros(1, 41)
    v[0, 20 + 3], h[0, 20 - 7] = 1, 1
    assert torch.equal(separable_convolution(x, v, h)[0, 0], x[0, 0, 23:28, 13:18])


def test_local_filter_equals_unfold_and_einsum():
    x, filters = torch.rand(2, 3, 6, 7), torch.randn(2, 25, 6, 7)
    columns = F.unfold(x, 5, padding=2).view(2, 3, 25, 6, 7)
    torch.testing.assert_close(local_filter(x, filters), torch.einsum("bckhw,bkhw->bchw", columns, filters))


def test_diffusion_is_the_gaussian_mean_around_where_the_rain_came_from():
    field = torch.rand(1, 1, 12, 13, dtype=DOUBLE)
    motion = torch.randn(1, 2, 12, 13, dtype=DOUBLE)
    diffusivity = 0.1 + torch.rand(1, 1, 12, 13, dtype=DOUBLE)
    made = advect_diffuse(field, motion, diffusivity)
    for r, c in [(0, 0), (5, 6), (11, 12), (3, 10)]:
        y, x = r - motion[0, 1, r, c].item(), c - motion[0, 0, r, c].item()
        total = weights = 0.0
        for a in range(-RADIUS, RADIUS + 1):
            for b in range(-RADIUS, RADIUS + 1):
                rr, cc = round(y) + a, round(x) + b
                weight = math.exp(-((rr - y) ** 2 + (cc - x) ** 2) / (4 * diffusivity[0, 0, r, c].item()))
                total += weight * field[0, 0, min(max(rr, 0), 11), min(max(cc, 0), 12)].item()
                weights += weight
        assert made[0, 0, r, c].item() == pytest.approx(total / weights, rel=1e-5)


def test_steady_motion_shifts_the_field_and_diffusion_keeps_its_mass():
    field = torch.zeros(1, 1, 40, 40)
    field[..., 10:20, 12:18] = torch.rand(10, 6)
    motion = torch.stack((torch.full((1, 40, 40), 4.0), torch.full((1, 40, 40), -3.0)), dim=1)  # right and up
    still = advect_diffuse(field, motion, torch.full((1, 1, 40, 40), 0.01))
    torch.testing.assert_close(still[..., 7:17, 16:22], field[..., 10:20, 12:18], atol=1e-6, rtol=0)
    spread = advect_diffuse(field, motion, torch.full((1, 1, 40, 40), 0.8))
    assert spread.sum().item() == pytest.approx(field.sum().item(), rel=1e-4)
    assert spread.max() < 0.9 * field.max()


def test_attention_starts_as_the_identity_and_looks_at_the_past():
    attention = TemporalAttention(4).to(DOUBLE)
    h, past = torch.randn(2, 4, 5, 6, dtype=DOUBLE), torch.randn(3, 2, 4, 5, 6, dtype=DOUBLE)
    assert torch.equal(attention(h, attention.remember(past)), h)
    torch.nn.init.normal_(attention.mix.weight)
    keys, values = attention.remember(past)
    q = attention.query(h)
    weights = torch.stack([(q * keys[t]).sum(dim=1) / 4 for t in range(3)]).exp()
    weights = weights / weights.sum(dim=0)
    expected = h + attention.mix(sum(weights[t].unsqueeze(1) * values[t] for t in range(3)))
    torch.testing.assert_close(attention(h, (keys, values)), expected)


def leaf(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=DOUBLE, requires_grad=True)


CHECKED = {
    "dynamic convolution": (dynamic_convolution, lambda: (leaf(2, 2, 5, 6), leaf(2, 3, 2, 3, 2))),
    "separable convolution": (separable_convolution, lambda: (leaf(2, 1, 6, 7), leaf(2, 3), leaf(2, 3))),
    "local filter": (local_filter, lambda: (leaf(2, 2, 4, 5), leaf(2, 9, 4, 5))),
    "advection-diffusion": (
        advect_diffuse,
        # away from half pixels, where the cut of the Gaussian jumps
        lambda: (
            leaf(1, 2, 5, 6),
            (0.3 * torch.rand(1, 2, 5, 6, dtype=DOUBLE)).requires_grad_(),
            (0.3 + torch.rand(1, 1, 5, 6, dtype=DOUBLE)).requires_grad_(),
        ),
    ),
    "conv gru": (ConvGRUCell(2, 2, 3).to(DOUBLE), lambda: (leaf(1, 2, 4, 4), leaf(1, 2, 4, 4))),
}


@pytest.mark.parametrize("name", CHECKED)
def test_gradients_by_finite_differences(name):
    function, inputs = CHECKED[name]
    assert gradcheck(function, inputs())


def test_gradients_of_attention_by_finite_differences():
    attention = TemporalAttention(2, 2).to(DOUBLE)
    torch.nn.init.normal_(attention.mix.weight)
    assert gradcheck(lambda h, past: attention(h, attention.remember(past)), (leaf(1, 2, 3, 3), leaf(2, 1, 2, 3, 3)))


def test_gradients_of_warps_by_finite_differences():
    # positions are float32, so steps are larger and the tolerance wider; the field itself is linear
    field = torch.rand(1, 1, 6, 6, dtype=torch.float64, requires_grad=True)
    displacement = (0.2 + 0.5 * torch.rand(1, 2, 6, 6, dtype=torch.float64)).requires_grad_()
    assert gradcheck(lambda f, d: warp(f, d), (field, displacement), eps=1e-3, atol=1e-3)
    cell = TrajGRUCell(1, 2, 2).to(DOUBLE)
    torch.nn.init.normal_(cell.flows.weight, std=0.01)
    torch.nn.init.constant_(cell.flows.bias, 0.4)
    assert gradcheck(cell, (leaf(1, 1, 5, 5), leaf(1, 2, 5, 5)), eps=1e-3, atol=2e-3)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: ConvLSTMCell(1, 1, 4), "odd"),
        (lambda: ConvGRUCell(1, 1, 2), "odd"),
        (lambda: dynamic_convolution(torch.zeros(2, 1, 5, 5), torch.zeros(3, 1, 1, 3, 3)), "do not fit"),
        (lambda: dynamic_convolution(torch.zeros(1, 1, 2, 5), torch.zeros(1, 1, 1, 3, 3)), "on images of"),
        (lambda: separable_convolution(torch.zeros(1, 1, 4, 9), torch.zeros(1, 5), torch.zeros(1, 5)), "5 taps"),
        (lambda: local_filter(torch.zeros(1, 1, 4, 4), torch.zeros(1, 8, 4, 4)), "odd side"),
        (lambda: local_filter(torch.zeros(1, 1, 4, 4), torch.zeros(1, 9, 4, 5)), "do not fit"),
    ],
)
def test_what_does_not_fit_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()
