"""Names of the networks: the only table that turns a name into an architecture."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from models.networks.advection_diffusion import AdvectionDiffusionConfig, AdvectionDiffusionNet
from models.networks.cnn import CNN, CNNConfig
from models.networks.dynamic_conv_net import DynamicConvConfig, DynamicConvNet
from models.networks.dynamic_filter_net import DynamicFilterConfig, DynamicFilterNet
from models.networks.encoder_forecaster import EncoderForecaster, EncoderForecasterConfig
from models.networks.fc_lstm import FCLSTM, FCLSTMConfig
from models.networks.growth_decay import GrowthDecayConfig, GrowthDecayNet
from models.networks.network import Network
from models.networks.strided_gru import StridedGRU, StridedGRUConfig
from models.networks.unet import UNet, UNetConfig

# pixels of 0.5, 2, 5, 10 and 30 mm/h on the scale of -10 to 60 dBZ, with Z = 200 R^1.6 (Marshall and Palmer 1948)
RAIN_CLASSES = (0.4029, 0.5405, 0.6314, 0.7002, 0.8092)


@dataclass(frozen=True)
class Entry:
    """One configuration of the zoo.

    Attributes:
        source: where it comes from.
        build: class of the network.
        config: its frozen configuration.
        task: frames, leads, height and width that the source used.
    """

    source: str
    build: Callable[[Any], Network]
    config: Any
    task: tuple[int, int, int, int]


_RADAR, _MNIST, _HKO, _PLUS = (10, 5, 101, 101), (7, 7, 64, 64), (5, 20, 480, 480), (10, 10, 64, 64)
_OURS = (5, 12, 128, 128)
_PLUS_GRU = {
    "down": ((16, 3, 1), (96, 3, 2), (96, 3, 2)), "up_kernels": (3, 4, 4), "widths": (64, 96, 96)
}  # fmt: skip


def _conv_lstm(source: str, task: tuple[int, int, int, int], **config: Any) -> Entry:
    return Entry(source, EncoderForecaster, EncoderForecasterConfig(**config), task)


def _gru(source: str, task: tuple[int, int, int, int], **config: Any) -> Entry:
    return Entry(source, StridedGRU, StridedGRUConfig(**config), task)


def _unet(source: str, **config: Any) -> Entry:
    return Entry(source, UNet, UNetConfig(**config), _OURS)


ZOO: dict[str, Entry] = {
    "convlstm": _conv_lstm("Wu 2019, 3 layers, with the 4x4 patches of Shi et al. 2015", _OURS, patch=4),
    "convlstm_attention": _conv_lstm("the same, with attention in the forecaster", _OURS, patch=4, attention=True),
    "convlstm_classes": _conv_lstm(
        "the same, classes of rain rate", _OURS, patch=4, head="categorical", levels=RAIN_CLASSES
    ),
    "wu2019_radar_1l": _conv_lstm("Wu 2019, radar, 1 layer", _RADAR, widths=(128,), head_width=16),
    "wu2019_radar_2l": _conv_lstm("Wu 2019, radar, 2 layers", _RADAR, widths=(64, 64), head_width=64),
    "wu2019_radar_3l": _conv_lstm("Wu 2019, radar, 3 layers", _RADAR, head_width=32),
    "wu2019_mnist_1l": _conv_lstm("Wu 2019, Moving MNIST, 1 layer", _MNIST, widths=(128,), kernel=5, head_width=64),
    "wu2019_mnist_2l": _conv_lstm("Wu 2019, Moving MNIST, 2 layers", _MNIST, widths=(64, 64), kernel=5, head_width=64),
    "wu2019_mnist_3l": _conv_lstm("Wu 2019, Moving MNIST, 3 layers", _MNIST, kernel=5, head_width=32),
    "fc_lstm_radar": Entry("Wu 2019, radar", FCLSTM, FCLSTMConfig(height=101, width=101), _RADAR),
    "fc_lstm_mnist": Entry("Wu 2019, Moving MNIST", FCLSTM, FCLSTMConfig(), _MNIST),
    "dc": Entry("Klein, Wolf and Afek 2015", DynamicConvNet, DynamicConvConfig(), _OURS),
    "dfn": Entry("De Brabandere et al. 2016, Moving MNIST", DynamicFilterNet, DynamicFilterConfig(), _PLUS),
    "dfn_11": Entry("Shi et al. 2017, MovingMNIST++", DynamicFilterNet, DynamicFilterConfig(side=11), _PLUS),
    "hko7_convgru": _gru("Shi et al. 2017, HKO-7", _HKO),
    "hko7_trajgru": _gru("Shi et al. 2017, HKO-7", _HKO, links=(13, 13, 9)),
    **{
        f"mnistpp_convgru_{name}": _gru(
            "Shi et al. 2017, MovingMNIST++", _PLUS, kernels=(k,) * 3, dilations=(d,) * 3, **_PLUS_GRU
        )
        for name, k, d in (("k3d2", 3, 2), ("k5", 5, 1), ("k7", 7, 1))
    },
    **{
        f"mnistpp_trajgru_l{links}": _gru("Shi et al. 2017, MovingMNIST++", _PLUS, links=(links,) * 3, **_PLUS_GRU)
        for links in (5, 9, 13, 17)
    },
    "hko7_cnn2d": Entry("Shi et al. 2017, HKO-7", CNN, CNNConfig(), _HKO),
    "hko7_cnn3d": Entry("Shi et al. 2017, HKO-7", CNN, CNNConfig(three_d=True, base=128), _HKO),
    "unet": _unet("Ronneberger et al. 2015; RainNet, Ayzel et al. 2020"),
    "unet_residual": _unet("the same, residual blocks", residual=True),
    "unet_dilated": _unet("the same, residual and dilated blocks", residual=True, dilated=True),
    "unet_segmentation": _unet(
        "EddyNet (Lguensat et al. 2017): rain or no rain, from 0.5 mm/h", head="segmentation", levels=RAIN_CLASSES[:1]
    ),
    "growth_decay": Entry(
        "ours, after Ritvanen et al. 2023; in the moving frame", GrowthDecayNet, GrowthDecayConfig(levels=RAIN_CLASSES),
        (3, 12, 128, 128),
    ),
    "advection_diffusion": Entry(
        "de Bezenac et al. 2018", AdvectionDiffusionNet, AdvectionDiffusionConfig(), _OURS
    ),
}  # fmt: skip
BASELINES = {
    "last_frame": "Eulerian persistence",
    "optical_flow": "ours: coarse-to-fine least squares (docs/decisions.md)",
    "area_matched": "ours: optical flow, blurred with lead time and matched in area, a control for networks",
    "rover_linear": "Woo and Wong 2017, parameters of HKO-7 (Shi et al. 2017)",
    "rover_nonlinear": "the same, on the arctangent of the reflectivity",
}


def entry(name: str) -> Entry:
    """The configuration of that name.

    Raises:
        KeyError: unknown name; the message lists the known ones.
    """
    if name not in ZOO:
        raise KeyError(f"no network {name!r}; the zoo has {', '.join(sorted(ZOO))}")
    return ZOO[name]


def build(name: str, config: dict[str, Any] | None = None) -> Network:
    """Build a network by name, with values of ``config`` in place of the zoo's.

    Raises:
        KeyError: unknown name.
        TypeError: ``config`` has a key that the network does not know.
        ValueError: values that make no network.
    """
    found = entry(name)
    changes = {key: _frozen(value) for key, value in (config or {}).items()}
    if "head" in changes:  # another head takes other levels
        changes = {"levels": (), **changes}
    return found.build(dataclasses.replace(found.config, **changes))


def fitted(name: str, **task: int | tuple[float, ...]) -> dict[str, Any]:
    """What a network must be built for of ``channels``, ``input_frames``, ``lead_frames``, ``height`` and ``width``.

    Only the values that its configuration knows and that differ from the zoo's: most networks take any number of
    frames on any grid.
    """
    config = entry(name).config
    known = {field.name for field in dataclasses.fields(config)}
    return {key: value for key, value in task.items() if key in known and getattr(config, key) != value}


def describe(name: str) -> dict[str, Any]:
    """Name, source, trainable parameters and shapes; built on the meta device, so without memory or arithmetic."""
    if name in BASELINES:
        return {"name": name, "source": BASELINES[name], "parameters": 0, "input_shape": None, "output_shape": None}
    found = entry(name)
    frames, leads, height, width = found.task
    with torch.device("meta"):
        network = build(name)
    return {
        "name": name,
        "source": found.source,
        "parameters": sum(p.numel() for p in network.parameters() if p.requires_grad),
        "input_shape": [1, frames, network.channels, height, width],
        "output_shape": [1, leads, network.output.outputs(network.channels), height, width],
        "config": dataclasses.asdict(found.config),
    }


def _frozen(value: Any) -> Any:
    """JSON's lists as the tuples of a frozen configuration."""
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value
