"""Batch normalization put behind layers of a model that has none, without renaming anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

NORMALIZATIONS = ("none", "BatchNorm")
"""What `apply_configuration` knows."""

NAME = "added_normalization"
"""Under this name the normalization is a part of the layer whose output it normalizes."""

_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
_OWN = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    *((nn.RMSNorm,) if hasattr(nn, "RMSNorm") else ()),
)


class AddedBatchNorm(nn.BatchNorm1d):
    """Batch normalization over the features of a linear layer or the channels of a convolution.

    A batch that holds a single value of each feature has no variance: it is normalized with the
    running statistics, where PyTorch's layer raises.

    Args:
        features: Size of the axis that is not reduced.
        axis: -1 for a linear layer's output [..., F], 1 for a convolution's [N, C, ...].
    """

    def __init__(self, features: int, axis: int) -> None:
        super().__init__(features)
        self.axis = axis

    def forward(self, input: Tensor) -> Tensor:
        """Normalizes a tensor of any number of dimensions."""
        rows = input.movedim(self.axis, -1)
        flat = rows.reshape(-1, self.num_features)
        if self.training and len(flat) == 1:
            flat = nn.functional.batch_norm(
                flat, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        else:
            flat = super().forward(flat)
        return flat.reshape(rows.shape).movedim(-1, self.axis)


def read_normalization(model: nn.Module) -> str | None:
    """Which of `NORMALIZATIONS` a model has.

    None if there is nothing to choose: it has normalization layers of its own, or no hidden
    linear layer or convolution.
    """
    if any(isinstance(module, AddedBatchNorm) for module in model.modules()):
        return "BatchNorm"
    if any(isinstance(module, _OWN) for module in model.modules()):
        return None
    return "none" if _hidden_layers(model) else None


def add_normalization(
    model: nn.Module, changes: list[str], restore: list[Callable[[], None]]
) -> None:
    """Normalizes the output of every linear layer and convolution but the last.

    Names of parameters stay as they are; the new ones are the layer's own, under `NAME`.
    """
    for path, layer in _hidden_layers(model):
        is_linear = isinstance(layer, nn.Linear)
        features: Any = layer.out_features if is_linear else layer.out_channels
        added = AddedBatchNorm(features, -1 if is_linear else 1)
        weight: Any = layer.weight
        added.to(device=weight.device, dtype=weight.dtype).train(layer.training)
        layer.add_module(NAME, added)
        hook = layer.register_forward_hook(_normalize)
        restore.append(partial(_remove, layer, hook))
        changes.append(f"{path}: batch normalization of its output")


def remove_normalization(
    model: nn.Module, changes: list[str], restore: list[Callable[[], None]]
) -> None:
    """Takes out what `add_normalization` put in."""
    for path, layer in model.named_modules():
        added = getattr(layer, NAME, None)
        if not isinstance(added, AddedBatchNorm):
            continue
        delattr(layer, NAME)
        restore.append(partial(layer.add_module, NAME, added))
        changes.append(f"{path}: no batch normalization of its output")


def _normalize(layer: nn.Module, args: Any, output: Tensor) -> Tensor:
    added = getattr(layer, NAME, None)
    return output if added is None else added(output)


def _remove(layer: nn.Module, hook: Any) -> None:
    hook.remove()
    if hasattr(layer, NAME):
        delattr(layer, NAME)


def _hidden_layers(model: nn.Module) -> Sequence[tuple[str, nn.Module]]:
    """Linear layers and convolutions in the order they are registered, but the last one.

    Attention's projections are left out: it reads their weights without running them.
    """
    inside = {
        id(part)
        for module in model.modules()
        if isinstance(module, nn.MultiheadAttention)
        for part in module.modules()
    }
    layers = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, _LAYERS) and id(module) not in inside
    ]
    return layers[:-1]
