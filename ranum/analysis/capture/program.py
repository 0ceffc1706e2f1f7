"""A training step that can be run again, with other inputs and other weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten_with_path, tree_map_with_path

from ranum._untouched import untouched
from ranum.analysis.capture.recorder import record
from ranum.analysis.graph import Graph, fits


class Origin(Protocol):
    """The framework's own function, where a program's step is our lowering of it."""

    def fails(
        self,
        inputs: Mapping[str, Tensor],
        weights: Mapping[str, Tensor],
        node: str,
        *,
        gradient_only: bool,
    ) -> bool | None:
        """True if a node fails when the function itself runs; None if that cannot be seen."""

    def results(self, inputs: Mapping[str, Tensor]) -> list[Tensor] | None:
        """What the function itself returns, and gradients of its weights; None if at random."""

    def fails_after(
        self,
        batches: Sequence[Mapping[str, Tensor]],
        order: Sequence[int],
        optimizer: Any,
        weights: Mapping[str, Tensor],
        node: str,
        *,
        gradient_only: bool,
    ) -> bool | None:
        """True if a node fails on the last batch, after the function's own training on the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One training step: how to run it, on what, and which weights it trains.

    Attributes:
        step: Called with the arguments; returns the loss, or None if it has none or ran its
            own backward pass.
        arguments: The example batch: any nesting of tuples, lists and dicts of tensors.
        argument_names: Names of the positional arguments, for naming inputs.
        model: The module whose state a run must not change; None for a pure function.
        parameters: Trainable tensors by name.
        backward: Whether the backward pass belongs to the step.
        description: What is analysed, for messages: "LitDigits.training_step".
        notes: Limits of the capture that the report should name, a sentence each.
        stateful: Other objects whose state a run must not change: optimizers, say.
        flush_to_zero: The step's own framework flushes subnormal numbers, as TensorFlow does.
        origin: What the step was lowered from, if it can still be run.
        as_tensor: Makes tensors of what other frameworks' batches hold.
        retrace: Makes the program anew of the code as it is now, where the step is a trace of it.
        target: What `analyze` was given.
        loss: The loss function it was given.
    """

    step: Callable[..., Tensor | None]
    arguments: tuple[Any, ...]
    argument_names: tuple[str, ...] = ()
    model: nn.Module | None = None
    parameters: Mapping[str, Tensor] = field(default_factory=dict)
    backward: bool = True
    description: str = "step"
    notes: tuple[str, ...] = ()
    stateful: tuple[Any, ...] = ()
    flush_to_zero: bool = False
    origin: Origin | None = None
    as_tensor: Callable[[Any], Any] | None = None
    retrace: Callable[[], Program] | None = None
    target: Any = None
    loss: Callable[..., Any] | None = None

    @property
    def inputs(self) -> dict[str, Tensor]:
        """All tensors of the example batch, by name: `x`, `batch[0]`, `batch['image']`."""
        return self.named(self.arguments)

    def named(self, arguments: tuple[Any, ...]) -> dict[str, Tensor]:
        """All tensors of a batch like the example's, by name."""
        leaves, _ = tree_flatten_with_path(arguments)
        if self.as_tensor is not None:
            leaves = [(path, self.as_tensor(leaf)) for path, leaf in leaves]
        return {self._input_name(path): leaf for path, leaf in leaves if isinstance(leaf, Tensor)}

    def _input_name(self, path: tuple[Any, ...]) -> str:
        position = path[0].idx
        known = position < len(self.argument_names)
        name = self.argument_names[position] if known else f"args[{position}]"
        return name + "".join(str(key) for key in path[1:])

    def capture(self, *, observe: bool = True, varying: Collection[str] = ()) -> Graph:
        """Runs the step once under the recorder; what it changes is put back.

        Args:
            observe: Record the extremes of every result, not only of module outputs and the
                loss.
            varying: Names and patterns of integer inputs that are no masks, though they hold
                only 0 and 1.
        """
        with self._untouched(), torch.enable_grad():
            return record(
                lambda: self.step(*self.arguments),
                model=self.model,
                inputs=self.inputs,
                parameters=self.parameters,
                backward=self.backward,
                observe=observe,
                varying={name for name in self.inputs if any(fits(name, each) for each in varying)},
            )

    def _untouched(self) -> AbstractContextManager[None]:
        inputs, parameters = self.inputs.values(), self.parameters.values()
        return untouched(self.model, [*self.stateful, *parameters, *inputs])

    def batch(self, inputs: Mapping[str, Tensor]) -> tuple[Any, ...]:
        """The example batch with some tensors replaced, by name."""

        def replace(path: tuple[Any, ...], leaf: Any) -> Any:
            return inputs.get(self._input_name(path), leaf) if isinstance(leaf, Tensor) else leaf

        replaced: tuple[Any, ...] = tree_map_with_path(replace, self.arguments)
        return replaced

    @contextmanager
    def substituted(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Other values in the parameters while the block runs; everything is put back."""
        saved = {name: self.parameters[name].detach().clone() for name in weights}
        with self._untouched(), torch.enable_grad():
            try:
                self._assign(weights)
                yield
            finally:
                self._assign(saved)

    def _assign(self, weights: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in weights.items():
                self.parameters[name].data.copy_(value)
