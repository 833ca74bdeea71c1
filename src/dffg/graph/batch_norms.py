"""The BatchNorm layers of a captured graph, and whether their statistics can be used."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from dffg.errors import StatisticsError
from dffg.graph.nodes import BATCH_NORM, calls, is_stored, layer_name, optional_tensor, stored_tensor


@dataclass(frozen=True, kw_only=True)
class BatchNorm:
    """One BatchNorm call: what it remembers of its input, and its affine part. All tensors have shape (channels,)."""

    name: str
    node: fx.Node
    running_mean: Tensor
    running_var: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float

    @property
    def input(self) -> fx.Node:
        """The node whose statistics it remembers."""
        source = self.node.args[0]
        assert isinstance(source, fx.Node)
        return source

    @property
    def zero_variance_channels(self) -> int:
        """Channels whose stored variance is 0. They are normal in trained networks and are matched through eps."""
        return int((self.running_var == 0).sum())


def thaw_(model: nn.Module) -> None:
    """Make BatchNorm of the FrozenBatchNorm2d of detectors (torchvision, detectron2, DETR), which computes the same."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__.endswith("FrozenBatchNorm2d"):
                setattr(parent, name, _thawed(child))


def _thawed(frozen: nn.Module) -> nn.Module:
    stored = frozen.state_dict()
    norm = nn.BatchNorm2d(len(stored["running_mean"]), eps=getattr(frozen, "eps", 1e-5)).eval()
    norm.load_state_dict(stored, strict=False)
    return norm


def find_batch_norms(module: fx.GraphModule) -> tuple[BatchNorm, ...]:
    """Every BatchNorm call of the graph in execution order; a module used twice is found twice."""
    return tuple(_read_batch_norm(module, node) for node in module.graph.nodes if calls(node, BATCH_NORM))


def _read_batch_norm(module: fx.GraphModule, node: fx.Node) -> BatchNorm:
    _, weight, bias, mean, var, training, _, eps, *_ = node.args
    name = str(mean.target).rpartition(".")[0] if is_stored(mean) else layer_name(node)  # type: ignore[union-attr]
    if training and mean is not None:
        raise StatisticsError(
            f"BatchNorm {name} is in train mode; call model.eval() before torch.export, or give the model itself."
        )
    if mean is None or var is None:
        raise StatisticsError(
            f"BatchNorm {name} has no running statistics (track_running_stats=False), so it remembers nothing of the "
            "training data. Use a network trained with running statistics; real data (--calibration) cannot replace "
            "them."
        )
    if not (is_stored(mean) and is_stored(var)):
        raise StatisticsError(
            f"BatchNorm {name} computes its statistics instead of storing them; this is not supported."
        )
    if not all(part is None or is_stored(part) for part in (weight, bias)):
        raise StatisticsError(
            f"BatchNorm {name} computes its weight or bias instead of storing them; this is not supported."
        )
    norm = BatchNorm(
        name=name or node.name,
        node=node,
        running_mean=stored_tensor(module, mean),  # type: ignore[arg-type]
        running_var=stored_tensor(module, var),  # type: ignore[arg-type]
        weight=optional_tensor(module, weight),  # type: ignore[arg-type]
        bias=optional_tensor(module, bias),  # type: ignore[arg-type]
        eps=float(eps),  # type: ignore[arg-type]
    )
    _check_statistics(norm)
    return norm


def _check_statistics(norm: BatchNorm) -> None:
    bad = ~torch.isfinite(norm.running_mean) | ~torch.isfinite(norm.running_var) | (norm.running_var < 0)
    if bad.any():
        channels = bad.nonzero().flatten()[:5].tolist()
        raise StatisticsError(
            f"BatchNorm {norm.name} has NaN, infinite or negative statistics in {int(bad.sum())} of {len(bad)} "
            f"channels (first: {channels}); the weights are damaged or were not loaded."
        )
