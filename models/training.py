"""Training engine: samples in, trained network and its history out.

Runs by itself where torch, numpy and safetensors are: ``python -m models.training --help``; on several devices under
``torchrun``.
"""

import copy
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from models import training_state
from models.adversarial import Adversary
from models.losses import Loss, mae, mse
from models.metrics import write_metrics
from models.networks.network import Network
from models.training_config import TrainingConfig, learning_rate, picked_leads, taught
from models.training_state import Progress
from models.windows import TRAIN, VALIDATION, Samples

# step and its figures: the training loss, and at a validation the row of the history
Report = Callable[[int, dict[str, float]], None]


class Objective(nn.Module):
    """Network and loss as one module, so that a distributed wrapper sees the whole forward pass."""

    def __init__(self, network: Network, loss: Loss, config: TrainingConfig) -> None:
        super().__init__()
        self.network, self.loss, self.config = network, loss, config

    def forward(
        self, pixels: Tensor, observed: Tensor, taught: Tensor | None, picked: list[int] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sum and weight of the loss, and the raw forecast.

        Args:
            pixels: (batch, time, channel, height, width) uint8.
            observed: (batch, time, 1, height, width) bool.
            taught: (batch, leads) bool, see ``Network.roll_out``; None feeds as the configuration says.
            picked: the only leads to make and to compare; None is all.
        """
        frames = pixels.float() / 255
        sizes = (self.config.input_frames, self.config.lead_frames)
        (past, future), (before, seen) = frames.split(sizes, dim=1), observed.split(sizes, dim=1)
        teacher = None if self.config.feed == "own" or not torch.is_grad_enabled() else future
        with torch.autocast(frames.device.type, torch.bfloat16, enabled=self.config.bf16):
            fed = None if teacher is None else taught
            raw = self.network.roll_out(past, self.config.lead_frames, teacher, fed, before, picked)
        raw = raw.float()
        if picked is not None:
            future, seen = future[:, picked], seen[:, picked]
        total = self.loss(raw, future, seen)
        return total.sum, total.weight, raw


def train(
    network: Network,
    samples: Samples,
    loss: Loss,
    config: TrainingConfig,
    report: Report = lambda step, row: None,
    *,
    folder: Path | None = None,
    about: dict[str, Any] | None = None,
) -> list[dict[str, float]]:
    """Train in place; keep the weights with the lowest validation loss.

    With ``folder`` state and metrics are saved there at every validation, and a run that was killed goes on exactly
    from there: every sample is a function of seed and step. Under ``torchrun`` each process takes its share
    of every step's samples; losses are sums over all of them, so the gradient is that of one process with the whole
    batch (batch normalisation, in the CNNs only, and the adversarial term see each pass by itself).

    Args:
        about: what else must be equal for a saved state to be gone on from.

    Returns:
        One row per validation: step, train_loss, validation_loss, validation_mse and validation_mae (pixels, 0-255),
        learning_rate, seconds.

    Raises:
        ValueError: no training samples; a teacher for a network that takes none; some leads of one that makes all, or
            with an adversary, which judges whole sequences; a state of another run; a loss that is not finite.
    """
    if not samples.count(TRAIN):
        raise ValueError("there are no training samples")
    if config.feed != "own" and not network.takes_teacher:
        raise ValueError(f"{type(network).__name__} does not feed on its output; train it with feed 'own'")
    if config.leads_in_step and (not network.picks_leads or config.adversarial):
        raise ValueError(f"{type(network).__name__} is trained on all leads at once; leave leads_in_step 0")
    run = _Run(network, samples, loss, config)
    told = {**asdict(config), **(about or {}), "processes": run.world}
    del told["minutes"]  # a run may be lengthened
    done = (training_state.load(folder, told, run.parts) if folder is not None else None) or Progress()
    started = time.monotonic() - done.seconds
    while done.step < config.steps and done.stale < config.patience and done.seconds <= 60 * config.minutes:
        done.step += 1
        done.losses.append(run.step(done.step))
        if not math.isfinite(done.losses[-1]):
            raise ValueError(f"the training loss is {done.losses[-1]} at step {done.step}; try a lower learning rate")
        done.seconds = run.slowest(time.monotonic() - started)
        if done.step % config.validate_every and done.step < config.steps and done.seconds <= 60 * config.minutes:
            report(done.step, {"train_loss": done.losses[-1]})
            continue
        done.history.append(
            {
                "step": float(done.step),
                "train_loss": float(np.mean(done.losses)),
                **run.validated(),
                "learning_rate": learning_rate(done.step, config),
                "seconds": done.seconds,
            }
        )
        done.losses.clear()
        measured = done.history[-1]["validation_loss"]
        if measured < done.best or not samples.count(VALIDATION):  # without validation the newest are the best
            run.best.load_state_dict(network.state_dict())
            done.best, done.stale = measured, 0
        else:
            done.stale += 1
        if folder is not None and run.rank == 0:
            training_state.save(folder, told, done, run.parts)
            write_metrics(folder, done.history)
        report(done.step, done.history[-1])
    network.load_state_dict(run.best.state_dict())
    network.eval()
    return done.history


class _Run:
    """What a step and a validation work with."""

    def __init__(self, network: Network, samples: Samples, loss: Loss, config: TrainingConfig) -> None:
        self.network, self.samples, self.config = network, samples, config
        self.best = copy.deepcopy(network)
        self.device = next(network.parameters()).device
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate)
        self.adversary = None
        self.parts: dict[str, nn.Module | torch.optim.Adam] = {
            "network": network, "best": self.best, "adam": self.optimizer
        }  # fmt: skip
        if config.adversarial:
            torch.manual_seed(config.seed)
            frames = config.input_frames + config.lead_frames
            self.adversary = Adversary(frames, network.channels, config.learning_rate, self.device)
            self.parts |= {"judge": self.adversary.network, "judge_adam": self.adversary.optimizer}
        self.objective: nn.Module = Objective(network, loss, config)
        if self.world > 1:
            self.objective = DistributedDataParallel(self.objective)

    def step(self, step: int) -> float:
        """One step of the optimiser; returns the loss over all its samples, of all processes."""
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        totals = torch.zeros(2, device=self.device)
        for part in range(config.accumulate):
            first = (((step - 1) * config.accumulate + part) * self.world + self.rank) * config.batch
            with self._unsynchronised(part < config.accumulate - 1):
                totals += self._pass(step, range(first, first + config.batch))
        if self.world > 1:
            dist.all_reduce(totals)
        # sums were differentiated, and the wrapper averaged them over the processes; the weight is known only now
        factor = self.world / totals[1].clamp_min(1e-6)
        for parameter in self.network.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
        nn.utils.clip_grad_norm_(self.network.parameters(), config.clip_norm)
        self.optimizer.step()
        return float(totals[0] / totals[1].clamp_min(1e-6))

    def _pass(self, step: int, numbers: range) -> Tensor:
        """Forward and back; returns sum and weight of the loss."""
        config = self.config
        pixels, observed = load_batch(self.samples, TRAIN, numbers, self.device)
        fed, picked = taught(step, numbers, config, self.device), picked_leads(step, config)
        total, weight, raw = self.objective(pixels, observed, fed, picked)
        if self.adversary is None:
            total.backward()
            return torch.stack((total.detach(), weight))
        past, future = (pixels.float() / 255).split((config.input_frames, config.lead_frames), dim=1)
        seen, made = observed[:, config.input_frames :], self.network.output.values(raw)
        term = self.adversary.of_forecast(past, made, seen)
        (total + config.adversarial * term * weight).backward()
        self.adversary.learn(past, made, future, seen)
        return torch.stack((total.detach(), weight))

    @torch.no_grad()
    def validated(self) -> dict[str, float]:
        """Loss, and MSE and MAE in pixels (0-255), of the validation samples on the own output; NaN without any."""
        self.network.eval()
        config = self.config
        sums = torch.zeros(5, device=self.device, dtype=torch.float64)
        count = min(config.validation_samples, self.samples.count(VALIDATION))
        mine = range(count)[self.rank :: self.world]
        for n in range(0, len(mine), config.batch):
            pixels, observed = load_batch(self.samples, VALIDATION, mine[n : n + config.batch], self.device)
            module = self.objective.module if self.world > 1 else self.objective
            total, weight, raw = module(pixels, observed, None)  # type: ignore[operator]
            made, seen = self.network.output.values(raw) * 255, observed[:, config.input_frames :]
            true = pixels[:, config.input_frames :].float()
            squares, absolutes = mse(made, true, seen), mae(made, true, seen)
            sums += torch.stack((total, weight, squares.sum, absolutes.sum, squares.weight)).double()
        if self.world > 1:
            dist.all_reduce(sums)
        if not sums[1]:
            return dict.fromkeys(("validation_loss", "validation_mse", "validation_mae"), float("nan"))
        ratios = (sums[0] / sums[1], sums[2] / sums[4], sums[3] / sums[4])
        return dict(zip(("validation_loss", "validation_mse", "validation_mae"), map(float, ratios), strict=True))

    def slowest(self, seconds: float) -> float:
        """The largest of all processes, so that they stop together."""
        if self.world == 1:
            return seconds
        value = torch.tensor(seconds, device=self.device, dtype=torch.float64)
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return float(value)

    def _unsynchronised(self, wanted: bool) -> AbstractContextManager[Any]:
        """Leaves the averaging of gradients to the last pass of a step."""
        return self.objective.no_sync() if wanted and self.world > 1 else nullcontext()  # type: ignore[operator]


def load_batch(samples: Samples, part: str, numbers: range, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pixels (batch, time, channel, height, width) uint8 and observed (batch, time, 1, height, width) on the device."""
    made = [samples.sample(part, n) for n in numbers]
    pixels = torch.from_numpy(np.stack([one.pixels for one in made]))
    observed = torch.from_numpy(np.stack([one.observed for one in made])).unsqueeze(2)
    return pixels.to(device, non_blocking=True), observed.to(device, non_blocking=True)


if __name__ == "__main__":
    from models.command import main

    raise SystemExit(main())
