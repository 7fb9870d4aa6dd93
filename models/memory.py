"""How much memory a forward pass takes, found without running it: on the meta device tensors have sizes, no data."""

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from models.networks.network import Network

PLENTY = 32 * 2**10  # bytes for a cell; no network of the zoo takes as much, so small grids need no working out
# what kernels take beside the tensors we see: convolutions reorder inputs and outputs into blocks of their own
WORKSPACE = 1.5


class _Meter(TorchDispatchMode):
    """Adds up the storage that is alive after every operation."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                self.alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.alive = {key: held for key, held in self.alive.items() if not held[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return made


def peak_bytes(network: "Network", batch: int, frames: int, leads: int, height: int, width: int) -> int:
    """Estimated peak memory of one forecast in float32, input and output included, weights not."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.to("meta"), requires_grad=False) for p in network.parameters()}
    blank = copy.deepcopy(network, memo).to("meta").eval()  # weights are not copied
    shape = (batch, frames, network.channels, height, width)
    with torch.device("meta"), torch.no_grad(), _Meter() as meter:
        given, seen = torch.zeros(shape), torch.ones((batch, frames, 1, height, width), dtype=torch.bool)
        blank(given, seen, leads)
    return int(WORKSPACE * meter.peak)
