"""Runs the user's own TensorFlow function, not our lowering of it, to see an operator fail."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ranum.analysis.capture.tensorflow import bridge

ATTEMPTS = 6
"""Runs of a function that draws random numbers; those cannot be given, so all must fail."""
TRAININGS = 2
"""Trainings with such a function, each with numbers of its own; all must end in the failure."""


@dataclass(frozen=True, slots=True)
class TensorFlowOrigin:
    """A traced function with its variables.

    Attributes:
        concrete: The concrete function; its arguments are the float and integer inputs in order.
        names: Names of its inputs, in order.
        variables: Trained variables by parameter name.
        has_own_loss: True if its results are the loss, so that gradients can be taken.
    """

    concrete: Any
    names: tuple[str, ...]
    variables: Mapping[str, Any]
    has_own_loss: bool
    _watchers: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def fails(
        self,
        inputs: Mapping[str, Tensor],
        weights: Mapping[str, Tensor],
        node: str,
        *,
        gradient_only: bool,
    ) -> bool | None:
        """True if an operator gives NaN or Inf for finite operands, or the gradient is not finite.

        Args:
            inputs: All inputs by name.
            weights: Values of the variables that differ from now, by parameter name.
            node: Name of the operator in the function's graph.
            gradient_only: Look at the gradients of the variables.

        Returns:
            None if that cannot be seen from here: the operator is inside a loop or a branch.
        """
        fed = [bridge.tensorflow().constant(inputs[name].detach().numpy()) for name in self.names]
        with self._assigned(weights):
            for _ in range(ATTEMPTS if self._draws_numbers else 1):
                bad = self._gradient_fails(fed) if gradient_only else self._node_fails(fed, node)
                if not bad:
                    return bad
        return True

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
        """True if an operator fails on the last batch of a training run, in TensorFlow itself.

        Args:
            batches: The distinct batches, all inputs by name.
            order: For each step, the position of its batch.
            optimizer: A Keras optimizer; a fresh one of its kind and settings is used.
            weights: Values of variables that start elsewhere than now, by parameter name.
            node: Name of the operator in the function's graph.
            gradient_only: Look at the gradients of the variables.

        Returns:
            None if that cannot be seen from here.
        """
        if not self.has_own_loss or not self.variables:
            return None
        tf = bridge.tensorflow()
        fed = [
            [tf.constant(batch[name].detach().numpy()) for name in self.names] for batch in batches
        ]
        for _ in range(TRAININGS if self._draws_numbers and len(order) > 1 else 1):
            with self._assigned(weights):
                if len(order) > 1:
                    step = self._training_step(optimizer)
                    for number in order[:-1]:
                        step(*fed[number])
                last = fed[order[-1]]
                for _ in range(ATTEMPTS if self._draws_numbers else 1):
                    bad = (
                        self._gradient_fails(last)
                        if gradient_only
                        else self._node_fails(last, node)
                    )
                    if not bad:
                        return bad
        return True

    def _training_step(self, optimizer: Any) -> Any:
        tf = bridge.tensorflow()
        fresh = type(optimizer).from_config(optimizer.get_config())
        variables = list(self.variables.values())
        fresh.build(variables)

        def step(*fed: Any) -> None:
            _, slopes = self._gradients(list(fed))
            known = [
                tf.zeros_like(variable) if slope is None else slope
                for slope, variable in zip(slopes, variables, strict=True)
            ]
            fresh.apply(known, variables)

        return tf.function(step, autograph=False)

    def results(self, inputs: Mapping[str, Tensor]) -> list[Tensor] | None:
        """Float results of the function, and their sum's gradients of the variables.

        Args:
            inputs: All inputs by name.

        Returns:
            None if the function draws random numbers.
        """
        if self._draws_numbers:
            return None
        fed = [bridge.tensorflow().constant(inputs[name].detach().numpy()) for name in self.names]
        with self._assigned({}):
            found, slopes = self._gradients(fed)
        kept = [*found, *(one for one in slopes if one is not None)]
        return [
            torch.from_numpy(_float(bridge.tensorflow().convert_to_tensor(one))) for one in kept
        ]

    def _gradients(self, fed: list[Any]) -> tuple[list[Any], list[Any]]:
        tf = bridge.tensorflow()
        with tf.GradientTape() as tape:
            results = [one for one in self.concrete(*fed) if one.dtype.is_floating]
            loss = tf.add_n([tf.reduce_sum(one) for one in results])
        return results, tape.gradient(loss, list(self.variables.values()))

    def _gradient_fails(self, fed: list[Any]) -> bool | None:
        if not self.has_own_loss or not self.variables:
            return None
        tf = bridge.tensorflow()
        _, slopes = self._gradients(fed)
        return any(
            not bool(tf.reduce_all(tf.math.is_finite(tf.convert_to_tensor(slope))))
            for slope in slopes
            if slope is not None
        )

    def _node_fails(self, fed: list[Any], node: str) -> bool | None:
        if node not in self._watchers:
            self._watchers[node] = self._watcher(node)
        watch = self._watchers[node]
        if watch is None:
            return None
        operands, results = watch(*fed)
        are_fair = all(bool(np.isfinite(one).all()) for one in map(_float, operands))
        return are_fair and any(not bool(np.isfinite(one).all()) for one in map(_float, results))

    def _watcher(self, node: str) -> Any:
        """A function of the inputs that returns the float operands and results of a node."""
        tf = bridge.tensorflow()
        path = _path(self.concrete.graph, node)
        if path is None:
            return None
        (_, operation), calls = path[-1], path[:-1]
        operands = [one for one in operation.inputs if one.dtype.is_floating]
        results = [one for one in operation.outputs if one.dtype.is_floating]

        def watch(*fed: Any) -> Any:
            own = tf.compat.v1.get_default_graph()
            values = [*fed, *map(own.capture, self.concrete.captured_inputs)]
            for graph, call in calls:
                values = _fetched(graph, values, call.inputs)
            found = _fetched(path[-1][0], values, [*operands, *results])
            return found[: len(operands)], found[len(operands) :]

        return tf.function(watch, autograph=False)

    @property
    def _draws_numbers(self) -> bool:
        return any("Random" in one.type for one in self.concrete.graph.get_operations())

    @contextmanager
    def _assigned(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Other values in the variables; all that the function can change is put back."""
        held = [(variable, variable.numpy()) for variable in self.concrete.variables]
        try:
            for name, value in weights.items():
                self.variables[name].assign(value.detach().numpy())
            yield
        finally:
            for variable, value in held:
                variable.assign(value)


def _float(tensor: Any) -> Any:
    return np.asarray(tensor).astype(np.float64)


def _path(graph: Any, node: str) -> list[tuple[Any, Any]] | None:
    """Graphs and operations that lead to a node through calls of functions; None if none do."""
    calls = []
    for operation in graph.get_operations():
        if operation.name == node:
            return [(graph, operation)]
        if operation.type in ("PartitionedCall", "StatefulPartitionedCall"):
            calls.append(operation)
    for call in calls:
        inner = bridge.function_graph(graph, call.get_attr("f").name)
        rest = None if inner is None else _path(inner, node)
        if rest is not None:
            return [(graph, call), *rest]
    return None


def _fetched(graph: Any, values: list[Any], wanted: Any) -> list[Any]:
    """Tensors of a function's graph for given arguments, inside the graph that is traced."""
    mapping = {one.name: value for one, value in zip(graph.inputs, values, strict=True)}
    found: list[Any] = bridge.tensorflow().graph_util.import_graph_def(
        graph.as_graph_def(),
        input_map=mapping,
        return_elements=[one.name for one in wanted],
        name="",
    )
    return found
