"""A configuration read from, and written into, a PyTorch model and its optimizer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import is_parametrized

from ranum.errors import ArgumentError
from ranum.repair.search.normalization import (
    NORMALIZATIONS,
    add_normalization,
    read_normalization,
    remove_normalization,
)

ACTIVATIONS: Mapping[str, type[nn.Module]] = {
    kind.__name__: kind
    for kind in (
        nn.ReLU,
        nn.ReLU6,
        nn.LeakyReLU,
        nn.PReLU,
        nn.RReLU,
        nn.ELU,
        nn.CELU,
        nn.SELU,
        nn.GELU,
        nn.SiLU,
        nn.Mish,
        nn.Hardswish,
        nn.Tanh,
    )
}
"""Activations that may stand in for each other. Sigmoid, Softplus and Softmax are not among
them: they gate, or keep an output in its range, and swapping them makes another model."""

OPTIMIZERS = (
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "NAdam",
    "RAdam",
    "RMSprop",
    "SGD",
)
"""Optimizers of `torch.optim` that take one gradient per step, dense or not, and no closure."""

INITIALIZATIONS = (
    "keep",
    "default",
    "kaiming_normal",
    "kaiming_uniform",
    "xavier_normal",
    "xavier_uniform",
    "orthogonal",
)
"""What `apply_configuration` knows: "keep" leaves the weights, "default" asks each layer's own
`reset_parameters`, the others draw matrices by `torch.nn.init` and set biases to zero."""

_KEPT = ("weight_decay", "momentum", "dampening", "nesterov", "betas", "amsgrad", "maximize")
"""Options that mean the same to every optimizer that has them, so that they survive a swap."""

_MATRICES = (
    nn.Linear,
    nn.Bilinear,
    nn.modules.conv._ConvNd,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
)
_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    *((nn.RMSNorm,) if hasattr(nn, "RMSNorm") else ()),
)
_GATES = {nn.LSTM: 4, nn.LSTMCell: 4, nn.GRU: 3, nn.GRUCell: 3, nn.MultiheadAttention: 3}
_GATED = ("weight_ih", "weight_hh", "in_proj_weight")


@dataclass(frozen=True, slots=True)
class ModelEdit:
    """What was changed in a model, and the way back.

    Attributes:
        changes: One line per change, for a person.
    """

    changes: tuple[str, ...]
    _restore: tuple[Callable[[], None], ...] = field(default=(), repr=False, compare=False)

    def undo(self) -> None:
        """Puts the former modules and weights back; a second call changes nothing."""
        for restore in reversed(self._restore):
            restore()

    def __str__(self) -> str:
        return "\n".join(self.changes) or "no change"


def read_configuration(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch_size: int | None = None,
    *,
    gradient_clip: float | None = None,
) -> dict[str, Any]:
    """The configuration that a model and its optimizer stand for.

    Args:
        model: Its activation modules are counted. Functional activations (`F.relu` in a
            `forward`) cannot be seen or swapped.
        optimizer: Gives its class and the learning rate of its first group, before any
            scheduler.
        batch_size: Samples per batch, if it may change.
        gradient_clip: L2 norm that all gradients together are clipped to, 0 if they are not; if
            it may change.

    Returns:
        Plain values for `repair_configuration`. A value is None where there is nothing to
        change, and a search leaves it alone: `activation` if the model has no hidden activation
        module, `normalization` if it has layers of its own for that, `batch_size` and
        `gradient_clip` if none was given. `initialization` is "keep".
    """
    return {
        "learning_rate": _base_rate(optimizer.param_groups[0]),
        "optimizer": type(optimizer).__name__,
        "batch_size": batch_size,
        "initialization": "keep",
        "activation": _hidden_activation(model),
        "normalization": read_normalization(model),
        "gradient_clip": gradient_clip,
    }


def apply_configuration(
    model: nn.Module, configuration: Mapping[str, Any], *, seed: int | None = None
) -> ModelEdit:
    """Swaps activations, adds normalization and draws weights again, in place.

    Reads `activation`, `normalization` and `initialization`, if they are there and not None; the
    rest of a configuration concerns the optimizer and the data. An optimizer must be built
    afterwards if weights came or went, as they do with PReLU and with normalization.

    Activations: modules of the class that most hidden activations have are replaced, unless it
    is the class wanted; others are the model's own choice and stay. A last activation, an
    activation inside `nn.TransformerEncoderLayer` and the like (which remember their own) and
    subclasses stay as well.

    Weights: of linear, convolution, recurrent and attention layers; recurrent gates one by one.
    Normalization layers return to one, zero and fresh statistics. Frozen weights, embeddings and
    the weights tied to them, parametrized layers and bare parameters stay, except that "default"
    asks every layer that can draw its own. Weights trained beforehand are lost: leave
    `initialization` out of the space when fine-tuning.

    Normalization: "BatchNorm" normalizes the output of every linear layer and convolution but the
    last, by a part of that layer called `added_normalization`; names of parameters stay.

    Args:
        model: Changed in place; mode, devices and dtypes stay.
        configuration: As `read_configuration` gives it, or a part.
        seed: For the weights; None draws from torch's global generator. With a seed that
            generator is left as it was.

    Returns:
        The edit, which can be undone.

    Raises:
        ArgumentError: If a name is not known, or a lazy layer has not seen a batch yet. The
            model is then unchanged.
    """
    activation = configuration.get("activation")
    initialization = configuration.get("initialization") or "keep"
    if activation is not None and activation not in ACTIVATIONS:
        raise ArgumentError(
            f"activation must be one of {', '.join(ACTIVATIONS)}; got {activation!r}."
        )
    if initialization not in INITIALIZATIONS:
        raise ArgumentError(
            f"initialization must be one of {', '.join(INITIALIZATIONS)}; got {initialization!r}."
        )
    normalization = configuration.get("normalization")
    if normalization is not None and normalization not in NORMALIZATIONS:
        raise ArgumentError(
            f"normalization must be one of {', '.join(NORMALIZATIONS)}; got {normalization!r}."
        )
    has = read_normalization(model)
    if has is None or normalization is None:
        normalization = has
    lazy = [name for name, p in model.named_parameters() if isinstance(p, UninitializedParameter)]
    if (initialization != "keep" or normalization != has) and lazy:
        raise ArgumentError(
            f"model must have seen a batch before its weights can be drawn again or normalized: "
            f"{lazy[0]!r} has no shape yet. Run it once."
        )
    changes: list[str] = []
    restore: list[Callable[[], None]] = []
    present = _hidden_activation(model)
    if activation is not None and present is not None and activation != present:
        _swap(model, present, activation, changes, restore)
    if normalization != has:
        change = add_normalization if has == "none" else remove_normalization
        change(model, changes, restore)
    if initialization != "keep":
        with _seeded(model, seed):
            _redraw(model, initialization, changes, restore)
    return ModelEdit(tuple(changes), tuple(restore))


def build_optimizer(
    name: str,
    parameters: Iterable[Any],
    learning_rate: float,
    *,
    like: torch.optim.Optimizer | None = None,
) -> torch.optim.Optimizer:
    """An optimizer by name that keeps what a former one was told.

    Args:
        name: Of a class in `OPTIMIZERS`, or of the class of `like`.
        parameters: Parameters or group dictionaries, such as `optimizer.param_groups`. Of a
            group's options those are kept that mean the same to the new class: weight decay,
            momentum, betas and the like; all of them if the class stays.
        learning_rate: Of the first group; the others keep their ratio to it.
        like: A former optimizer, for options that apply to all groups.

    Raises:
        ArgumentError: If the name is not known, the rate is not positive and finite, or there
            is nothing to optimize.

    Note:
        Weight decay keeps its number; AdamW takes it off the weights and SGD adds it to the
        gradients. State (momenta) is not carried over.
    """
    kind: Any = type(like) if like is not None and type(like).__name__ == name else None
    if kind is None:
        if name not in OPTIMIZERS:
            raise ArgumentError(f"name must be one of {', '.join(OPTIMIZERS)}; got {name!r}.")
        kind = getattr(torch.optim, name)
    if not (isinstance(learning_rate, (int, float)) and 0 < learning_rate < math.inf):
        raise ArgumentError(f"learning_rate must be positive and finite; got {learning_rate!r}.")
    given = list(parameters)
    if not given:
        raise ArgumentError("parameters must hold at least one parameter or group; got none.")
    groups = given if isinstance(given[0], Mapping) else [{"params": given}]

    former: Mapping[str, Any] = {} if like is None else like.defaults
    is_same = like is not None and kind is type(like)
    known = former if is_same else kind([nn.Parameter(torch.zeros(()))], lr=learning_rate).defaults
    base = _base_rate(groups[0], _base_rate(former, learning_rate)) or learning_rate
    built = []
    for group in groups:
        options = {
            option: value
            for option, value in {**former, **group}.items()
            if option in known and (is_same or option in _KEPT)
        }
        rate = learning_rate * _base_rate(group, base) / base
        params = group["params"]
        params = [params] if isinstance(params, torch.Tensor) else list(params)
        built.append({**options, "params": params, "lr": rate})
    built[0]["lr"] = learning_rate
    optimizer: torch.optim.Optimizer = kind(built, lr=learning_rate)
    return optimizer


def _base_rate(group: Mapping[str, Any], otherwise: float = math.nan) -> float:
    """A group's learning rate before any scheduler moved it."""
    return float(group.get("initial_lr", group.get("lr", otherwise)))


def _hidden(model: nn.Module) -> Iterator[tuple[nn.Module, str, str, nn.Module]]:
    """Places of swappable activations: parent, name in it, path from the model, module."""
    last = _last_activation(model)
    for path, parent in model.named_modules():
        if isinstance(parent, (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)):
            continue
        for name, module in parent.named_children():
            if ACTIVATIONS.get(type(module).__name__) is type(module) and (parent, name) != last:
                yield parent, name, f"{path}.{name}" if path else name, module


def _last_activation(model: nn.Module) -> tuple[nn.Module, str] | None:
    """Where the model's output activation sits, by the order in which modules are registered.

    Inside containers that is the order of execution. Elsewhere a rectifier may be one object
    that `forward` uses many times, and counts as hidden; a Tanh in last place is an output.
    """
    parent = model
    while True:
        children = [
            (name, child)
            for name, child in parent.named_children()
            if type(child).__name__ in ACTIVATIONS or any(True for _ in child.parameters())
        ]
        if not children:
            return None
        name, child = children[-1]
        if type(child).__name__ in ACTIVATIONS:
            is_ordered = isinstance(parent, (nn.Sequential, nn.ModuleList))
            return (parent, name) if is_ordered or isinstance(child, nn.Tanh) else None
        parent = child


def _hidden_activation(model: nn.Module) -> str | None:
    counts = Counter(type(module).__name__ for *_, module in _hidden(model))
    return counts.most_common(1)[0][0] if counts else None


def _swap(
    model: nn.Module,
    present: str,
    wanted: str,
    changes: list[str],
    restore: list[Callable[[], None]],
) -> None:
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    fresh: dict[int, nn.Module] = {}  # one object used in several places stays one
    for parent, name, path, module in list(_hidden(model)):
        if type(module).__name__ != present:
            continue
        if id(module) not in fresh:
            new = ACTIVATIONS[wanted]().to(device=like.device, dtype=like.dtype)
            fresh[id(module)] = new.train(module.training)
        setattr(parent, name, fresh[id(module)])
        restore.append(partial(setattr, parent, name, module))
        changes.append(f"{path}: {present} -> {wanted}")


def _redraw(
    model: nn.Module, scheme: str, changes: list[str], restore: list[Callable[[], None]]
) -> None:
    embeddings = [m for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))]
    tied = {id(module.weight) for module in embeddings}
    # Embeddings come last, so that a weight tied to one is drawn as an embedding.
    modules = sorted(model.named_modules(), key=lambda item: item[1] in embeddings)
    restore.append(_keeper(model))
    for path, module in modules:
        own = list(module.named_parameters(recurse=False))
        if is_parametrized(module) or not all(p.requires_grad for _, p in own):
            continue
        reset = getattr(module, "reset_parameters", getattr(module, "_reset_parameters", None))
        if isinstance(module, _NORMS) or (scheme == "default" and own):
            if not callable(reset):
                continue
            reset()
        elif isinstance(module, _MATRICES) and scheme != "default":
            for name, parameter in own:
                if id(parameter) not in tied and name not in ("bias_k", "bias_v"):
                    gates = _GATES.get(type(module), 1) if name.startswith(_GATED) else 1
                    _draw(parameter, scheme, gates)
        else:
            continue
        changes.append(f"{path or type(module).__name__}: weights drawn again ({scheme})")


def _keeper(model: nn.Module) -> Callable[[], None]:
    """A function that puts the weights and buffers of now back."""
    saved = [(t, t.detach().clone()) for t in (*model.parameters(), *model.buffers())]

    def restore() -> None:
        with torch.no_grad():
            for tensor, former in saved:
                tensor.copy_(former)

    return restore


@torch.no_grad()
def _draw(parameter: torch.Tensor, scheme: str, gates: int) -> None:
    if parameter.dim() < 2:
        parameter.zero_()
        return
    if parameter.numel() == 0:
        return
    # Drawn on the CPU in float32, so that a seed means the same everywhere.
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    for block in parameter.chunk(gates):
        block.copy_(_SCHEMES[scheme](torch.empty(block.shape, dtype=dtype)))


_SCHEMES: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "kaiming_normal": partial(nn.init.kaiming_normal_, nonlinearity="relu"),
    "kaiming_uniform": partial(nn.init.kaiming_uniform_, nonlinearity="relu"),
    "xavier_normal": nn.init.xavier_normal_,
    "xavier_uniform": nn.init.xavier_uniform_,
    # Rectifiers halve the signal's power; the gain makes up for it, as Kaiming's does.
    "orthogonal": partial(nn.init.orthogonal_, gain=math.sqrt(2)),
}


@contextmanager
def _seeded(model: nn.Module, seed: int | None) -> Iterator[None]:
    if seed is None:
        yield
        return
    devices = sorted({p.device.index for p in model.parameters() if p.is_cuda})
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
