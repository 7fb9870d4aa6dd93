"""Names of the networks: the only table that turns a name into an architecture."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from models.networks.encoder_forecaster import EncoderForecaster, EncoderForecasterConfig


@dataclass(frozen=True)
class Entry:
    """One network configuration of the zoo: where it comes from and how it is built."""

    source: str
    config: EncoderForecasterConfig
    build: Callable[[Any], nn.Module]


def _conv_lstm(source: str, **config: Any) -> Entry:
    return Entry(source, EncoderForecasterConfig(**config), EncoderForecaster)


ZOO: dict[str, Entry] = {
    "convlstm": _conv_lstm("Wu 2019, 3 layers, with the 4x4 patches of Shi et al. 2015", patch=4),
    "wu2019_radar_1l": _conv_lstm("Wu 2019, radar, 1 layer", widths=(128,), head_width=16),
    "wu2019_radar_2l": _conv_lstm("Wu 2019, radar, 2 layers", widths=(64, 64), head_width=64),
    "wu2019_radar_3l": _conv_lstm("Wu 2019, radar, 3 layers", head_width=32),
    "wu2019_mnist_1l": _conv_lstm("Wu 2019, Moving MNIST, 1 layer", widths=(128,), kernel=5, head_width=64),
    "wu2019_mnist_2l": _conv_lstm("Wu 2019, Moving MNIST, 2 layers", widths=(64, 64), kernel=5, head_width=64),
    "wu2019_mnist_3l": _conv_lstm("Wu 2019, Moving MNIST, 3 layers", kernel=5, head_width=32),
}


def build(name: str, config: dict[str, Any] | None = None) -> nn.Module:
    """Build a network by name, with values of ``config`` in place of the zoo's.

    Raises:
        KeyError: unknown name; the message lists the known ones.
        TypeError: ``config`` has a key that the network does not know.
    """
    if name not in ZOO:
        raise KeyError(f"no network {name!r}; the zoo has {', '.join(sorted(ZOO))}")
    entry = ZOO[name]
    changes: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in (config or {}).items()}
    return entry.build(dataclasses.replace(entry.config, **changes))


def describe(name: str, frames: int = 5, leads: int = 12, size: int = 128) -> dict[str, Any]:
    """Name, source, trainable parameters and shapes, computed on the meta device (no memory, no arithmetic)."""
    with torch.device("meta"), torch.no_grad():
        network = build(name)
        channels = ZOO[name].config.channels
        given = torch.zeros(1, frames, channels, size, size)
        made = network(given, torch.ones(1, frames, 1, size, size, dtype=torch.bool), leads).values
    return {
        "name": name,
        "source": ZOO[name].source,
        "parameters": sum(p.numel() for p in network.parameters() if p.requires_grad),
        "input_shape": list(given.shape),
        "output_shape": list(made.shape),
        "config": dataclasses.asdict(ZOO[name].config),
    }
