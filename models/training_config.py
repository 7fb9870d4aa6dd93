"""How a network is trained, and what follows from it alone: the learning rate, and where the truth is fed."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

FEEDS = ("own", "teacher", "scheduled")


@dataclass(frozen=True)
class TrainingConfig:
    """How a network is trained.

    Attributes:
        input_frames, lead_frames: of each sample.
        batch: samples in a forward pass, on each device.
        accumulate: forward passes in a step.
        steps: at most.
        learning_rate: of Adam, at the start; falls to a twentieth along a half cosine, or stays if ``constant_rate``.
        clip_norm: largest norm of the gradient.
        feed: what the network feeds on: its ``own`` output, as in a forecast; the truth (``teacher``, as Wu 2019
            trains); or ``scheduled``: the truth with a probability that falls from 1 to 0 over the steps. Validation
            is always on the own output.
        validate_every: steps between validations, and between saved states.
        validation_samples: how many, the same each time; all there are if fewer.
        patience: validations without gain after which it stops.
        minutes: time after which it stops.
        seed: of the weights (by the caller), the samples and the scheduled sampling.
        leads_in_step: so many leads, drawn anew in each step, the earlier ones more often, are made and learnt from, by
            networks that can make some only; 0 is all.
        bf16: convolutions and products in bfloat16; weights and loss stay float32.
        adversarial: weight of the adversarial term; 0 is none.
    """

    input_frames: int = 5
    lead_frames: int = 12
    batch: int = 8
    accumulate: int = 1
    steps: int = 1000
    learning_rate: float = 1e-3
    constant_rate: bool = False
    clip_norm: float = 1.0
    feed: str = "own"
    validate_every: int = 100
    validation_samples: int = 64
    patience: int = 10
    minutes: float = 1e9
    seed: int = 0
    leads_in_step: int = 0
    bf16: bool = False
    adversarial: float = 0.0

    def __post_init__(self) -> None:
        if self.feed not in FEEDS:
            raise ValueError(f"feed {self.feed!r}: there are {', '.join(FEEDS)}")
        for name in (
            "input_frames", "lead_frames", "batch", "accumulate", "steps", "validate_every", "validation_samples",
            "patience",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "clip_norm", "minutes"):
            if not 0 < getattr(self, name) < math.inf:  # NaN is neither
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        if not 0 <= self.adversarial < math.inf or self.seed < 0:
            raise ValueError(f"adversarial and seed must not be negative, got {self.adversarial} and {self.seed}")
        if not 0 <= self.leads_in_step <= self.lead_frames:
            raise ValueError(f"leads_in_step must be 0 to {self.lead_frames}, got {self.leads_in_step}")


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Of a step, 1 to ``config.steps``."""
    if config.constant_rate:
        return config.learning_rate
    least = config.learning_rate / 20
    return least + (config.learning_rate - least) * (1 + math.cos(math.pi * (step - 1) / config.steps)) / 2


def picked_leads(step: int, config: TrainingConfig) -> list[int] | None:
    """Numbers of the leads that a step learns from; None is all."""
    if not config.leads_in_step:
        return None
    weights = np.linspace(1.5, 0.5, config.lead_frames)
    rng = np.random.default_rng((config.seed, 3, step))
    drawn = rng.choice(config.lead_frames, config.leads_in_step, replace=False, p=weights / weights.sum())
    return [int(k) for k in np.sort(drawn)]


def taught(step: int, numbers: range, config: TrainingConfig, device: torch.device) -> Tensor | None:
    """Where the truth is fed in scheduled sampling (batch, leads), drawn for each sample; else None."""
    if config.feed != "scheduled":
        return None
    share = 1 - step / config.steps
    drawn = [np.random.default_rng((config.seed, 2, n)).random(config.lead_frames) < share for n in numbers]
    return torch.from_numpy(np.stack(drawn)).to(device)
