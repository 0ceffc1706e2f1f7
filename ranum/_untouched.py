"""Running somebody's training step without leaving a trace of it.

Both ground floors do that: the analysis records a step before training, the culprit search
replays one that failed.
"""

from __future__ import annotations

import random
import sys
import warnings
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

# --- random numbers ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RandomState:
    """States of random number generators; None or missing where one was not captured."""

    torch: Tensor
    cuda: Mapping[int, Tensor]
    python: Any = None
    numpy: Any = None


def random_state(
    devices: Iterable[torch.device] = (), *, all_generators: bool = True
) -> RandomState:
    """The state of the global generators.

    Args:
        devices: Devices whose generators are captured besides the CPU's.
        all_generators: Also those of Python and, if it has been imported, numpy; they take
            a hundred times longer (0.1 ms) than torch's.
    """
    numpy = sys.modules.get("numpy") if all_generators else None
    return RandomState(
        torch=torch.get_rng_state(),
        cuda={
            device.index or 0: torch.cuda.get_rng_state(device)
            for device in devices
            if device.type == "cuda"
        },
        python=random.getstate() if all_generators else None,
        numpy=None if numpy is None else numpy.random.get_state(),
    )


def set_random_state(state: RandomState) -> None:
    """Puts the generators back that `state` holds."""
    torch.set_rng_state(state.torch)
    for index, generator in state.cuda.items():
        torch.cuda.set_rng_state(generator, index)
    if state.python is not None:
        random.setstate(state.python)
    if state.numpy is not None:
        sys.modules["numpy"].random.set_state(state.numpy)


# --- tensors -------------------------------------------------------------------------------


def distinct(tensor: Tensor) -> Tensor:
    """The tensor without the repetitions that `expand` made: writing to those is an error."""
    if tensor.layout is not torch.strided or 0 not in tensor.stride():
        return tensor
    for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if stride == 0 and size > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


# --- steps ---------------------------------------------------------------------------------


@contextmanager
def eager() -> Iterator[None]:
    """Compiled models run their Python code."""
    if "torch._dynamo" not in sys.modules:  # costs seconds to import; absent, nothing is compiled
        yield
        return
    with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        # The hooks of `module_scope` are global, for the time of the replay.
        warnings.filterwarnings("ignore", "Using `torch.compile", UserWarning)
        yield


@contextmanager
def untouched(model: nn.Module | None, also: Iterable[Any] = ()) -> Iterator[None]:
    """Puts back what a training step changes: runs one that must not have happened.

    That is: parameters, gradients, buffers, attributes and training flags of all modules,
    with containers, tensors, generators and modules inside them, and the global random
    numbers; without a model, the random numbers alone. Not what other objects hold,
    unless they are named.

    Args:
        model: The module that is trained.
        also: Tensors, with their gradients, and other objects with state, such as optimizers.
    """
    others = [each for each in also if not isinstance(each, Tensor)]
    tensors = [each for each in also if isinstance(each, Tensor) and _can_be_kept(each)]
    trained = [] if model is None else list(model.parameters())
    parameters = list({id(each): each for each in [*trained, *tensors]}.values())
    with ExitStack() as stack:
        stack.callback(set_random_state, random_state({p.device for p in parameters}))
        gradients = [(each, each.grad, each.requires_grad) for each in parameters]
        stack.callback(_put_back_gradients, gradients)
        for parameter, *_ in gradients:
            parameter.grad = None
        kept = _Kept()
        kept.keep([model, *tensors, *(vars(each) for each in others if hasattr(each, "__dict__"))])
        stack.callback(kept.put_back)
        yield


def _can_be_kept(tensor: Tensor) -> bool:
    """True for leaves of a plain kind, which can be written back to."""
    is_plain = type(tensor) in _TENSORS and tensor.layout is torch.strided
    return is_plain and tensor.is_leaf and not tensor.is_nested and not tensor.is_inference()


def _put_back_gradients(gradients: Iterable[tuple[Tensor, Tensor | None, bool]]) -> None:
    for parameter, gradient, is_trained in gradients:
        if parameter.requires_grad != is_trained:
            parameter.requires_grad_(is_trained)
        parameter.grad = gradient


class _Kept:
    """Copies of what can be changed in place, each once, however it is reached."""

    def __init__(self) -> None:
        self._things: list[tuple[Any, Any]] = []  # (the thing itself, its content)
        self._empty: list[Any] = []  # containers with nothing in them, most of a module's
        self._seen: set[int] = set()

    def keep(self, value: Any) -> None:
        """Copies the content of containers, tensors, generators and modules, and of theirs."""
        things, seen = self._things, self._seen
        waiting = [value]
        while waiting:
            thing = waiting.pop()
            kind = type(thing)
            if kind in _PLAIN or id(thing) in seen:
                continue
            seen.add(id(thing))
            if kind not in _CONTAINERS and isinstance(thing, nn.Module):
                thing, kind = vars(thing), dict
            if kind in _CONTAINERS:
                if not thing:
                    self._empty.append(thing)
                    continue
                content: Any = dict(thing) if kind in _TABLES else kind(thing)
                if kind is not set:
                    waiting.extend(content.values() if kind in _TABLES else content)
            elif isinstance(thing, torch.Generator):
                content = thing.get_state()
            elif isinstance(thing, Tensor) and thing.is_leaf and not nn.parameter.is_lazy(thing):
                content = distinct(thing.detach()).clone()
            else:
                continue
            things.append((thing, content))

    @torch.no_grad()
    def put_back(self) -> None:
        """Writes everything back, in place."""
        for thing in self._empty:
            if thing:
                thing.clear()
        for thing, content in self._things:
            if isinstance(thing, Tensor):
                # `data`: a graph that waits for its backward pass may hold it.
                distinct(thing.data).copy_(content)
            elif isinstance(thing, torch.Generator):
                thing.set_state(content)
            elif isinstance(thing, dict | set):
                thing.clear()
                thing.update(content)
            else:
                thing.clear()
                thing.extend(content)


_TENSORS = frozenset({Tensor, nn.Parameter})
_TABLES = frozenset({dict, OrderedDict, defaultdict})
_CONTAINERS = _TABLES | {list, deque, set}
_PLAIN = frozenset(
    {int, float, complex, bool, str, bytes, type(None), type, FunctionType, MethodType,
     torch.dtype, torch.device, torch.Size}
)  # fmt: skip
