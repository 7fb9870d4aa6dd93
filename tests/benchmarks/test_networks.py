"""Our networks and layers against plain public style, alternating in one process, one thread, medians of CPU time.

make benchmarks, or: python -m pytest tests/benchmarks/test_networks.py -s
The allocator is glibc's default; peak memory of a training step is that of all tensors alive, by torch's profiler.
"""

import statistics
import time

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from models import zoo
from models.layers.dynamic_conv import dynamic_convolution, separable_convolution
from models.layers.local_filter import local_filter
from models.layers.traj_gru import TrajGRUCell
from tests.benchmarks import references

REPEATS = 7


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def compare(what: str, sides: dict, repeats: int = REPEATS) -> dict[str, float]:
    """Run the sides in turn; print medians and ratios to the first."""
    seconds = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, function in sides.items():
            started = time.process_time()
            function()
            if turn:  # the first warms up
                seconds[name].append(time.process_time() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    reference = next(iter(sides))
    print(f"\n{what}")
    for name, median in medians.items():
        print(f"  {name:24} {median * 1e3:9.1f} ms   {medians[reference] / median:5.2f}x")
    return medians


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a.float() - b.float()).norm() / b.float().norm()).item()


@pytest.mark.parametrize("leads", [5, 20])
@torch.inference_mode()
def test_conv_lstm_inference(leads):
    network = zoo.build("wu2019_radar_3l", {"head_width": 1}).eval()
    frames = torch.rand(1, 10, 1, 101, 101)

    def ours(bf16: bool = False):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return network.roll_out(frames, leads)

    def reference():
        return references.encoder_forecaster(network, frames, leads)

    assert relative(ours(), reference()) < 1e-4
    print(f"\nbfloat16, relative error {relative(ours(True), reference()):.1e}")
    compare(
        f"ConvLSTM, Wu 3 layers, 10 -> {leads}, 101 x 101, inference",
        {"reference float32": reference, "ours float32": ours, "ours bfloat16": lambda: ours(True)},
    )


def peak_mb(function) -> float:
    """Most memory of tensors alive at once, over that at the start."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        function()
    now = most = 0
    for event in sorted(measured.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most / 2**20


@pytest.mark.parametrize("feed", ["teacher", "own"])
def test_conv_lstm_training_step(feed):
    network = zoo.build("wu2019_radar_3l", {"head_width": 1})
    frames, truth = torch.rand(2, 10, 1, 101, 101), torch.rand(2, 5, 1, 101, 101)
    teacher = truth if feed == "teacher" else None

    def step(roll_out, bf16=False):
        network.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            made = roll_out()
        ((made.float() - truth) ** 2).mean().backward()
        return [p.grad for p in network.parameters()]

    def reference(bf16=False):
        return step(lambda: references.encoder_forecaster(network, frames, 5, teacher), bf16)

    def ours(bf16=False):
        return step(lambda: network.roll_out(frames, 5, teacher), bf16)

    for a, b in zip(ours(), reference(), strict=True):
        assert relative(a, b) < 1e-3
    compare(
        f"ConvLSTM, Wu 3 layers, 10 -> 5, 101 x 101, batch 2, training step, {feed} forcing",
        {
            "reference float32": reference,
            "ours float32": ours,
            "reference bfloat16": lambda: reference(True),
            "ours bfloat16": lambda: ours(True),
        },
        repeats=3,
    )
    a, b = peak_mb(ours), peak_mb(reference)
    print(f"  peak memory: ours {a:.0f} MB, reference {b:.0f} MB, {a / b:.2f}")


@pytest.mark.parametrize(("size", "links", "hidden"), [(96, 13, 64), (32, 13, 192)], ids=["stage 1", "stage 2"])
@torch.inference_mode()
def test_traj_gru(size, links, hidden):
    cell = TrajGRUCell(8 if hidden == 64 else 192, hidden, links)
    torch.nn.init.normal_(cell.flows.weight, std=0.05)
    x, state = torch.rand(1, 8 if hidden == 64 else 192, size, size), torch.rand(1, hidden, size, size)
    torch.testing.assert_close(cell(x, state), references.traj_gru_step(cell, x, state), rtol=1e-3, atol=1e-3)

    def bf16():
        with torch.autocast("cpu", torch.bfloat16):
            return cell(x, state)

    print(f"\nbfloat16, relative error {relative(bf16(), cell(x, state)):.1e}")
    compare(
        f"TrajGRU, HKO-7, {links} links, {hidden} channels, {size} x {size}, one step",
        {
            "reference float32": lambda: references.traj_gru_step(cell, x, state),
            "ours float32": lambda: cell(x, state),
            "ours bfloat16": bf16,
        },
        repeats=15,
    )


@pytest.mark.parametrize(("channels", "kernel"), [(1, 9), (16, 5), (1, 21), (1, 41)])
@torch.inference_mode()
def test_dynamic_convolution(channels, kernel):
    x, k = torch.rand(8, channels, 101, 101), torch.rand(8, channels, channels, kernel, kernel)
    assert relative(dynamic_convolution(x, k), references.dynamic_convolution(x, k)) < 1e-4
    sides = {
        "unfold and einsum": lambda: references.dynamic_convolution(x, k),
        "ours": lambda: dynamic_convolution(x, k),
    }
    if channels == 1:
        v, h = torch.rand(8, kernel), torch.rand(8, kernel)
        both = torch.einsum("ba,bc->bac", v, h).view(8, 1, 1, kernel, kernel)
        assert relative(separable_convolution(x, v, h), references.dynamic_convolution(x, both)) < 1e-4
        sides["ours, V then H"] = lambda: separable_convolution(x, v, h)
    compare(f"dynamic convolution, 8 samples, {channels} channels, {kernel} x {kernel}, 101 x 101", sides)


@pytest.mark.parametrize("training", [False, True], ids=["forward", "forward and back"])
def test_local_filter(training):
    x = torch.rand(4, 1, 128, 128, requires_grad=training)
    filters = torch.rand(4, 81, 128, 128, requires_grad=training)

    def run(function):
        made = function(x, filters)
        if training:
            torch.autograd.grad(made.sum(), (x, filters))
        return made

    assert relative(run(local_filter), run(references.local_filter)) < 1e-4
    sides = {"unfold and einsum": lambda: run(references.local_filter), "ours": lambda: run(local_filter)}
    compare(f"local filtering 9 x 9, 4 samples of 128 x 128, {'with gradients' if training else 'forward'}", sides)
    print(
        f"  peak memory: ours {peak_mb(sides['ours']):.1f} MB, reference {peak_mb(sides['unfold and einsum']):.1f} MB"
    )
