"""Programs from plain PyTorch: modules and functions."""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ranum._untouched import untouched
from ranum.analysis.capture.program import Program
from ranum.errors import ArgumentError, CaptureError
from ranum.source import is_user_file


def module_program(
    model: nn.Module,
    arguments: tuple[Any, ...],
    *,
    loss: Callable[[Any], Tensor] | None = None,
    backward: bool = True,
) -> Program:
    """A program that calls a module, and `loss` on what it returns.

    Without `loss`, the module's own scalar output is the loss; other outputs are analysed as
    they are, with the sum of their elements as a stand-in for the loss.
    """
    model = with_shapes(model, arguments)

    def step(*args: Any) -> Tensor | None:
        output = model(*args)
        return as_loss(output if loss is None else loss(output))

    return Program(
        step=step,
        arguments=arguments,
        argument_names=_argument_names(model.forward, len(arguments)),
        model=model,
        parameters=dict(model.named_parameters()),
        backward=backward,
        description=type(model).__name__,
    )


def with_shapes(model: nn.Module, arguments: tuple[Any, ...]) -> nn.Module:
    """The model, or a copy of it that knows the shapes of its lazy layers.

    Raises:
        CaptureError: If the dry run of the copy, which finds them, fails.
    """
    if not has_lazy(model):
        return model
    try:
        model = copy.deepcopy(model)
        with untouched(None), torch.no_grad():
            model(*arguments)
    except Exception as error:
        raise CaptureError(
            f"{type(model).__name__} has lazy layers, and a run to find their shapes raised "
            f"{type(error).__name__}: {error}"
        ) from error
    return model


def has_lazy(model: nn.Module) -> bool:
    """True if some parameter or buffer has no shape yet."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return any(nn.parameter.is_lazy(tensor) for tensor in tensors)


def function_program(
    function: Callable[..., Any], arguments: tuple[Any, ...], *, backward: bool = True
) -> Program:
    """A program that calls a function which returns a loss.

    Modules and tensors the function closes over, or names as globals, are found, so that
    parameters have names and their state is put back; that of optimizers, schedulers and
    scalers is put back too.
    """
    models = dict(_modules_of(function))
    model = nn.ModuleDict() if len(models) != 1 else next(iter(models.values()))
    if len(models) > 1:
        holder = nn.Module()
        for name, module in models.items():
            holder.add_module(name, module)
        model = holder
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    for name, tensor in _free_tensors(function):
        parameters.setdefault(name, tensor)

    def step(*args: Any) -> Tensor | None:
        return as_loss(function(*args))

    return Program(
        step=step,
        arguments=arguments,
        argument_names=_argument_names(function, len(arguments)),
        model=model if models else None,
        parameters=parameters,
        backward=backward,
        description=getattr(function, "__name__", type(function).__name__),
        stateful=tuple(_stateful_of(function)),
    )


def batch_arguments(
    target: Any, batch: Any, like: tuple[Any, ...] | None = None
) -> tuple[Any, ...]:
    """The arguments that a loader's batch is for a module or function.

    A tuple or list is spread over the parameters, of which a module may leave elements out; a
    function of one parameter, a `training_step` and a recorded program get the batch whole.

    Args:
        target: The module or function.
        batch: What the loader gave.
        like: Arguments that are known to fit; their number, and whether the first is a tuple,
            say how to spread.
    """
    is_module = isinstance(target, nn.Module)
    if like and isinstance(batch, (tuple, list)):
        is_whole = len(like) == 1 and isinstance(like[0], (tuple, list))
        return (batch,) if is_whole else tuple(batch[: len(like)])
    if not isinstance(batch, (tuple, list)) or not callable(target):
        return (batch,)
    if is_module and callable(getattr(target, "training_step", None)):
        return (batch,)
    try:
        signature = inspect.signature(target.forward if is_module else target)
    except (TypeError, ValueError):
        return tuple(batch)
    parameters = signature.parameters.values()
    if any(parameter.kind == parameter.VAR_POSITIONAL for parameter in parameters):
        return tuple(batch)
    count = sum(
        parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        for parameter in parameters
    )
    is_whole = count == 1 and not is_module and len(batch) > 1
    return (batch,) if is_whole else tuple(batch[:count])


def as_loss(output: Any) -> Tensor | None:
    """The loss in what a step returned: a tensor, an entry "loss", an attribute `loss`."""
    if isinstance(output, Tensor):
        return output
    loss = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)
    if isinstance(loss, Tensor):
        return loss
    floats = [
        leaf
        for leaf in tree_leaves(output)
        if isinstance(leaf, Tensor) and leaf.is_floating_point()
    ]
    if not floats:
        return None
    return floats[0] if len(floats) == 1 else torch.stack([leaf.sum() for leaf in floats]).sum()


def _argument_names(function: Callable[..., Any], count: int) -> tuple[str, ...]:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return ()
    positional = [
        parameter.name
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    if len(positional) < count and not any(p.kind == p.VAR_POSITIONAL for p in parameters):
        raise ArgumentError(
            f"example_inputs must match the step's {len(positional)} argument(s); got {count}."
        )
    return tuple(positional[:count])


def _modules_of(function: Callable[..., Any]) -> Iterator[tuple[str, nn.Module]]:
    for name, value in free_values(function):
        if isinstance(value, nn.Module):
            yield name, value


def _free_tensors(function: Callable[..., Any]) -> Iterator[tuple[str, Tensor]]:
    for name, value in free_values(function):
        if isinstance(value, Tensor) and value.requires_grad and value.is_leaf:
            yield name, value


def _stateful_of(function: Callable[..., Any]) -> Iterator[Any]:
    """Optimizers, schedulers, scalers: whatever else keeps a state that can be saved."""
    for _, value in free_values(function):
        if not isinstance(value, (nn.Module, type)) and callable(
            getattr(value, "state_dict", None)
        ):
            yield value


def free_values(
    function: Callable[..., Any], seen: set[int] | None = None
) -> Iterator[tuple[str, Any]]:
    """What a function reads from outside, and what the functions it calls read, by name."""
    seen = set() if seen is None else seen
    owner = getattr(function, "__self__", None)
    if owner is not None and id(owner) not in seen:
        seen.add(id(owner))
        yield "self", owner
        if not isinstance(owner, nn.Module) and hasattr(owner, "__dict__"):
            yield from vars(owner).items()
    plain = inspect.unwrap(getattr(function, "__func__", function))
    code = getattr(plain, "__code__", None)
    if code is None or id(code) in seen or not is_user_file(code.co_filename):
        return
    seen.add(id(code))
    variables = inspect.getclosurevars(plain)
    for name, value in {**variables.globals, **variables.nonlocals}.items():
        yield name, value
        if inspect.isroutine(value):
            yield from free_values(value, seen)
