"""Tells TensorFlow's and Keras' objects apart without importing either."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves


def is_keras_model(target: Any) -> bool:
    """True for a `keras.Model`, on whatever backend."""
    return any(
        cls.__name__ == "Model" and cls.__module__.startswith("keras.")
        for cls in type(target).__mro__
    )


def is_tensorflow_function(target: Any, arguments: tuple[Any, ...]) -> bool:
    """True for a `tf.function`, and for a function of TensorFlow tensors.

    A plain function is one if it is called with such tensors, or if it is called with no torch
    tensor and names TensorFlow, Keras, or an object of theirs.
    """
    if not callable(target) or isinstance(target, type):
        return False
    if _is_theirs(target):
        return hasattr(target, "get_concrete_function")
    leaves = tree_leaves(arguments)
    if any(_is_theirs(leaf) for leaf in leaves):
        return True
    if any(isinstance(leaf, Tensor) for leaf in leaves):
        return False
    return any(_is_theirs(value) for value in _named(target))


def _is_theirs(value: Any) -> bool:
    name = value.__name__ if isinstance(value, ModuleType) else type(value).__module__
    return name.partition(".")[0] in ("tensorflow", "keras") or any(
        cls.__module__.partition(".")[0] in ("tensorflow", "keras") for cls in type(value).__mro__
    )


def _named(function: Any) -> Iterator[Any]:
    """What a function reads from outside."""
    plain = inspect.unwrap(getattr(function, "__func__", function))
    if not hasattr(plain, "__code__"):
        return
    try:
        variables = inspect.getclosurevars(plain)
    except (TypeError, ValueError):
        return
    yield from variables.globals.values()
    yield from variables.nonlocals.values()
    owner = getattr(function, "__self__", None)
    if hasattr(owner, "__dict__"):
        yield from vars(owner).values()
