"""Guarded steps on TensorFlow: measured, decided and undone inside the graph.

Everything is written so that it traces into a `tf.function`, compiles under XLA, and runs in the
replicas of a `MirroredStrategy`, where a condition may only stand across replicas.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from ranum.analysis.capture.tensorflow.bridge import losses_noted
from ranum.errors import RanumError
from ranum.guards.readings.keras import FIRST_SAMPLES, SCALING, TAKEN, WITHHELD

__all__ = ["Engine", "losses_noted"]


class Engine:
    """What a guarded step asks of TensorFlow.

    Args:
        model: The model to be trained.
        sample_every: Steps between two looks at what layers put out.

    Attributes:
        is_distributed: Several replicas train together.
        measures_at_once: What layers put out need not be kept until the step's end.

    Raises:
        RanumError: Under a strategy of several processes or of a kind that is not known.
    """

    measures_at_once = False

    def __init__(self, model: Any, *, sample_every: int = 10) -> None:
        self._every = sample_every
        self._strategy = model.distribute_strategy
        self.is_distributed = self._strategy.num_replicas_in_sync > 1
        if self.is_distributed and not isinstance(self._strategy, tf.distribute.MirroredStrategy):
            name = type(self._strategy).__name__
            raise RanumError(f"of the strategies with several replicas {name} is not known")
        self._executions = max(int(model.steps_per_execution), 1)
        self._bound = tf.Variable(math.inf, trainable=False, dtype=tf.float32)
        self._limit = tf.Variable(math.inf, trainable=False, dtype=tf.float32)
        self._factor = tf.Variable(1.0, trainable=False, dtype=tf.float32)
        self._number = tf.Variable(0, trainable=False, dtype=tf.int64)
        self._begin = tf.Variable(0, trainable=False, dtype=tf.int64)
        self._rows: Any = None
        # XLA wants variables to keep their shape; these have none before there is a fault.
        is_alone = self._executions == 1 and not self.is_distributed
        self._keeps = not (is_alone or model.jit_compile)
        self._kept = tf.Variable(0, trainable=False, dtype=tf.int64)
        self._kept_batch: list[list[Any]] = []
        self._kept_state: list[Any] = []
        self._structure: Any = None
        self._sums = tf.function(_sums, reduce_retracing=True)
        self._seen = 0

    # --- the host's side --------------------------------------------------------------------

    def set_bound(self, bound: float) -> None:
        """Gradients whose norm is beyond this are not applied."""
        self._bound.assign(min(bound, 3e38))

    def set_limit(self, limit: float) -> None:
        """Gradients that are applied are scaled down to this norm; infinity leaves them alone."""
        self._limit.assign(limit)

    def set_factor(self, factor: float) -> None:
        """What learning rates are multiplied by."""
        self._factor.assign(factor)

    def new_rows(self) -> list[list[float]]:
        """Rows written since the last call, in order; waits for the step."""
        if self._rows is None:
            return []
        rows: list[list[float]] = self._rows.numpy().tolist()
        # Steps are numbered in float32, exact to 2^24; they are counted modulo that.
        new = sorted((row for row in rows if _after(row[0], self._seen)), key=self._order)
        if new:
            self._seen = int(new[-1][0])
        return new

    def _order(self, row: list[float]) -> float:
        return (row[0] - self._seen) % _ROUND

    def kept(self, number: float) -> Any:
        """The batch of a faulty step that only the graph has seen, and the state before it.

        Args:
            number: Of the step, as in its row.

        Returns:
            The batch of each replica, and values of the variables that `finish` was given, empty
            if they are what they were; None if another step was kept, or none.
        """
        kept = int(self._kept.numpy())
        if not kept or kept % _ROUND != int(number):
            return None
        batches = [[one.read_value() for one in leaves] for leaves in self._kept_batch]
        state = [one.read_value() for one in self._kept_state]
        return [keras.tree.pack_sequence_as(self._structure, one) for one in batches], state

    def forget_kept(self) -> None:
        """The next fault is kept."""
        if self._keeps and int(self._kept.numpy()):
            self._kept.assign(0)
            slots = [one for leaves in self._kept_batch for one in leaves]
            for one in (*slots, *self._kept_state):
                one.assign(tf.zeros([], one.dtype))

    def begin(self) -> None:
        """The steps of a run are counted from now on."""
        self._begin.assign(self._number)

    def may_sample(self) -> bool:
        """Whether the step that runs, or is traced, may look at what layers put out."""
        return not self.is_distributed

    def is_early(self) -> bool:
        """Whether the run has just begun; only the graph knows."""
        return True

    def forget_rows(self) -> None:
        """The step will be traced anew."""
        self._rows = None
        self._kept_batch, self._kept_state = [], []

    def batch_of(self, iterator: Any, function: Any) -> Any:
        """The next batch; None if only the graph of the training function can fetch it."""
        is_single = self._executions == 1 and not self.is_distributed
        # Older releases of Keras trace the iterator too.
        is_plain = not hasattr(function, "get_concrete_function")
        if is_single and is_plain and isinstance(iterator, tf.data.Iterator):
            return next(iterator)
        return None

    def random(self) -> Any:
        """Nothing: Keras' random numbers on TensorFlow are variables."""

    def set_random(self, state: Any) -> None:
        """Nothing to do."""

    def call(self, function: Callable[[Any], Any], batch: Any) -> Any:
        """Trains on a batch that has been fetched."""
        return function(iter([batch]))

    # --- the graph's side -------------------------------------------------------------------

    def copies(self, variables: Sequence[Any]) -> list[Any]:
        """Values of now; the memory is shared until a variable is written to."""
        return [tf.convert_to_tensor(variable.value) for variable in variables]

    def undo(self, variables: Sequence[Any], copies: Sequence[Any]) -> None:
        """Puts variables back after a step that ran eagerly; tracing changes nothing."""
        if tf.executing_eagerly() and not self.is_distributed:
            for variable, value in zip(variables, copies, strict=True):
                variable.value.assign(value)

    def norms(self, tensors: Sequence[Any]) -> Any:
        """L2 norm of each, `[N]`, float32."""
        if not tensors:
            return tf.zeros([0])
        return tf.sqrt(2.0 * tf.stack([_half_square(tensor) for tensor in tensors]))

    def joined(self, vectors: Sequence[Any]) -> Any:
        """One vector of several."""
        return tf.concat(list(vectors), 0)

    def sums(self, tensors: Sequence[Any]) -> list[float]:
        """The sum of each, in one read."""
        found: list[float] = self._sums(list(tensors)).numpy().tolist()
        return found

    def number(self, value: Any) -> Any:
        """As a scalar `[]`, float32."""
        value = tf.cast(tf.convert_to_tensor(value), tf.float32)
        return value if value.shape.rank == 0 else tf.reduce_mean(value)

    def scaled(self, rate: Any) -> Any:
        """A learning rate times the factor."""
        rate = tf.convert_to_tensor(getattr(rate, "value", rate))
        return rate * tf.cast(self._factor, rate.dtype)

    def gate(
        self,
        loss: Any,
        gradients: Any,
        state: Any,
        *,
        scale: Any,
        batch: Any = None,
        apply: Callable[[Any], Any],
        updates: Any,
        before: Any,
    ) -> tuple[Any, Any]:
        """Applies updates if they are good.

        Args:
            loss: Of the batch, `[]`.
            gradients: Norms of the gradients, `[N]`.
            state: Norms of weights and statistics, `[M]`.
            scale: What the loss has been multiplied by, `[]`; None if it has not.
            batch: Norms of the inputs, `[K]`, if they matter: where they are not finite, a smaller
                scale will not help.
            apply: Applies updates.
            updates: Gradients.
            before: What earlier updates of this step have come to, `[]`; None if there are none.

        Returns:
            Loss, norm, gradients and state as one would read them of all replicas, `[2+N+M]`; and
            what became of the step, `[]`.
        """
        sizes = int(gradients.shape[0])
        numbers = tf.concat([loss[None], gradients, state], 0)
        scale = tf.constant(1.0) if scale is None else scale
        if batch is not None:
            is_fine_batch = tf.reduce_all(tf.math.is_finite(batch))
            can_scale = tf.logical_and(is_fine_batch, scale > 1.0)
        else:
            can_scale = scale > 1.0

        def decide(numbers: Any, scale: Any, can_scale: Any, before: Any) -> tuple[Any, Any]:
            norms = numbers[1 : 1 + sizes] / scale
            total = tf.sqrt(tf.reduce_sum(tf.square(norms)))
            rest = tf.concat([numbers[:1], numbers[1 + sizes :]], 0)
            is_good = tf.reduce_all(tf.math.is_finite(rest))
            is_fine = tf.logical_and(tf.math.is_finite(total), total <= self._bound)
            is_scaling = tf.logical_and(~tf.math.is_finite(total), can_scale)
            code = tf.where(is_fine, TAKEN, tf.where(is_scaling, SCALING, WITHHELD))
            code = tf.where(is_good, code, WITHHELD)
            if before is not None:
                code = tf.where(before == WITHHELD, WITHHELD, code)
            parts = [numbers[:1], total[None], norms, numbers[1 + sizes :]]
            return tf.concat(parts, 0), code

        if not self.is_distributed:
            merged, code = decide(numbers, scale, can_scale, before)
            self._when(code != WITHHELD, lambda: apply(self._limited(updates, merged[1])))
            return merged, code
        context = tf.distribute.get_replica_context()

        def across(strategy: Any, given: Any) -> Any:
            numbers, scale, can_scale, before, updates = given
            each = tf.stack(strategy.experimental_local_results(numbers))
            total = tf.reduce_sum(each[:, :1], 0)
            norms = tf.sqrt(tf.reduce_sum(tf.square(each[:, 1 : 1 + sizes]), 0))
            rest = tf.reduce_mean(each[:, 1 + sizes :], 0)
            whole = tf.concat([total, norms, rest], 0)
            scale = strategy.experimental_local_results(scale)[0]
            can_scale = tf.reduce_all(tf.stack(strategy.experimental_local_results(can_scale)))
            if before is not None:
                before = strategy.experimental_local_results(before)[0]
            merged, code = decide(whole, scale, can_scale, before)

            def limited(updates: Any) -> None:
                apply(self._limited(updates, merged[1]))

            def run() -> None:
                strategy.extended.call_for_each_replica(limited, args=(updates,))

            self._when(code != WITHHELD, run)
            return merged, code

        merged, code = context.merge_call(
            across, args=((numbers, scale, can_scale, before, updates),)
        )
        return merged, code

    def _limited(self, updates: Sequence[Any], norm: Any) -> list[Any]:
        """Gradients whose common norm is beyond the limit, scaled down to it.

        They pass through a condition, as they are: that costs nothing, and rounds nothing.
        """
        dense = [_values(one) for one in updates if one is not None]
        if not dense:
            return list(updates)
        is_beyond = tf.logical_and(tf.math.is_finite(norm), norm > self._limit)
        found = tf.cond(
            is_beyond,
            lambda: [one * tf.cast(self._limit / norm, one.dtype) for one in dense],
            lambda: dense,
        )
        rest = iter(found)
        return [None if one is None else _with_values(one, next(rest)) for one in updates]

    def judge(self, loss: Any, state: Any) -> tuple[Any, Any]:
        """As `gate`, of a step that applied nothing."""
        return self.gate(
            loss,
            tf.zeros([0]),
            state,
            scale=None,
            apply=lambda updates: None,
            updates=[],
            before=None,
        )

    def can_read(self, tensor: Any) -> bool:
        """Whether to read a tensor changes nothing else.

        One that a single operator reads may be fused into that; then the last bits change.
        """
        if tensor is None or tf.executing_eagerly():
            return True
        if tensor.graph is not tf.compat.v1.get_default_graph():
            return False
        readers = tensor.consumers()
        return len(readers) > 1 or (len(readers) == 1 and readers[0].type not in _FUSED)

    def sampled(
        self,
        numbers: Callable[[], Sequence[Any]] | None,
        early: Callable[[], Sequence[Any]] | None,
        sizes: Sequence[int],
    ) -> Any:
        """Numbers of every so many steps, behind a 1; zeros in the others.

        Args:
            numbers: Gives `[N]` scalars; None for none at all.
            early: Gives `[M]` more, which are -1 except in the first samples of a run.
            sizes: N and M.
        """
        if numbers is None or early is None or not sizes[0]:
            return tf.zeros([0])
        step = self._number - self._begin

        def packed(values: Sequence[Any]) -> Any:
            return tf.stack([tf.cast(value, tf.float32) for value in values])

        def measure() -> Any:
            is_early = step < self._every * FIRST_SAMPLES
            rest = tf.zeros([0])
            if sizes[1]:
                rest = tf.cond(is_early, lambda: packed(early()), lambda: -tf.ones([sizes[1]]))
            return tf.concat([tf.ones([1]), packed(numbers()), rest], 0)

        return tf.cond(step % self._every == 0, measure, lambda: tf.zeros([1 + sum(sizes)]))

    def finish(
        self,
        row: Any,
        code: Any,
        *,
        variables: Sequence[Any],
        copies: Sequence[Any],
        logs: Any,
        results: Callable[[], Any],
        batch: Any,
        state: Sequence[Any],
    ) -> Any:
        """Writes the row down; after a withheld step, puts variables back.

        Args:
            row: Loss, norm, and the norms of single tensors, `[2+N+M]`.
            code: What became of the step, `[]`.
            variables: What the step has changed.
            copies: Its values from before.
            logs: What the step returns.
            results: The same, of the metrics as they are when it is called.
            batch: Of the step; kept after the first fault of several steps in one call.
            state: Variables whose values are kept with it.

        Returns:
            The logs: of the metrics after they were put back, where these are theirs.
        """
        self._make_room(2 + int(row.shape[0]))
        leaves = keras.tree.flatten(batch) if self._keeps else []
        self._keeps = self._keeps and all(isinstance(one, tf.Tensor) for one in leaves)
        if self._keeps:
            self._structure = keras.tree.map_structure(lambda leaf: None, batch)
            self._make_slots(leaves, state if self._executions > 1 else [])
        if not self.is_distributed:
            self._note(row, code)
            logs = self._put_back(
                code, variables=variables, copies=copies, logs=logs, results=results
            )
            if self._keeps:
                self._keep(code, [leaves], [one.value for one in state])
            return logs

        def across(strategy: Any, copies: Any, leaves: Any) -> None:
            self._note(row, code)

            def put(copies: Any) -> None:
                for variable, value in zip(variables, copies, strict=True):
                    variable.assign(value)

            self._when(
                code == WITHHELD,
                lambda: strategy.extended.call_for_each_replica(put, args=(copies,)),
            )

            if self._keeps:
                local = strategy.experimental_local_results
                each = list(zip(*map(local, leaves), strict=True))
                self._keep(code, each, [local(one.value)[0] for one in state])

        tf.distribute.get_replica_context().merge_call(across, args=(list(copies), leaves))
        now = results()
        return {**logs, **{name: now[name] for name in _common(logs, now)}}

    def _make_slots(self, leaves: Sequence[Any], state: Sequence[Any]) -> None:
        sizes = len(self._kept_batch and self._kept_batch[0]), len(self._kept_state)
        if sizes != (len(leaves), len(state)):  # the step is traced more than once
            replicas = range(self._strategy.num_replicas_in_sync)
            with tf.init_scope():
                self._kept_batch = [[_slot(one.dtype) for one in leaves] for _ in replicas]
                self._kept_state = [_slot(one.value.dtype) for one in state]

    def _keep(self, code: Any, batches: Sequence[Any], state: Sequence[Any]) -> None:
        """Keeps batches and the state before them, by reference until they are written to."""

        def keep() -> None:
            for slots, leaves in zip(self._kept_batch, batches, strict=True):
                for slot, leaf in zip(slots, leaves, strict=True):
                    slot.assign(leaf)
            for slot, value in zip(self._kept_state, state, strict=False):
                slot.assign(value)
            self._kept.assign(self._number)

        self._when(tf.logical_and(code == WITHHELD, self._kept == 0), keep)

    def root(self, totals: Sequence[Any]) -> Any:
        """The norm of norms, `[1]`."""
        return tf.sqrt(tf.reduce_sum(tf.square(tf.concat(list(totals), 0))))[None]

    def _put_back(
        self,
        code: Any,
        *,
        variables: Sequence[Any],
        copies: Sequence[Any],
        logs: Any,
        results: Callable[[], Any],
    ) -> Any:
        names = _common(logs, results())

        def keep() -> list[Any]:
            return [tf.identity(logs[name]) for name in names]

        def restore() -> list[Any]:
            for variable, value in zip(variables, copies, strict=True):
                variable.value.assign(value)
            now = results()
            return [tf.cast(now[name], tf.convert_to_tensor(logs[name]).dtype) for name in names]

        values = tf.cond(
            code == WITHHELD,
            lambda: (*restore(), tf.constant(0)),
            lambda: (*keep(), tf.constant(0)),
        )
        return {**logs, **dict(zip(names, values[:-1], strict=True))} if names else logs

    def _make_room(self, width: int) -> None:
        if self._rows is None or self._rows.shape[1] != width:
            with tf.init_scope():
                self._rows = tf.Variable(tf.zeros([self._executions, width]), trainable=False)

    def _note(self, row: Any, code: Any) -> None:
        place = self._number % self._executions
        number = tf.cast(self._number.assign_add(1) % _ROUND, tf.float32)
        line = tf.concat([tf.stack([number, code]), row], 0)
        if self._executions == 1:
            self._rows.assign(line[None])
        else:
            self._rows.assign(
                tf.tensor_scatter_nd_update(self._rows, place[None, None], line[None])
            )

    @staticmethod
    def _when(flag: Any, work: Callable[[], Any]) -> None:
        def run() -> Any:
            work()
            return tf.constant(0)

        tf.cond(flag, run, lambda: tf.constant(0))


_ROUND = 1 << 22
"""Steps are counted modulo this in rows: whole numbers that float32 holds."""


_FUSED = frozenset(
    {
        *("Relu", "Relu6", "Elu", "LeakyRelu", "Tanh", "Sigmoid", "Maximum"),
        *("Add", "AddV2", "AddN", "BiasAdd", "Mul", "FusedBatchNormV3"),
        *("Squeeze", "Identity", "Cast"),
    }
)
"""Operators that TensorFlow fuses with the one before them, or looks through to do so."""


def _after(number: float, seen: int) -> bool:
    return number > 0 and 0 < (number - seen) % _ROUND < _ROUND // 2


def _slot(dtype: Any) -> Any:
    """Room for a tensor of any shape; empty until there is one."""
    return tf.Variable(tf.zeros([], dtype), shape=tf.TensorShape(None), trainable=False)


def _values(gradient: Any) -> Any:
    return gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient


def _with_values(gradient: Any, values: Any) -> Any:
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
    return values


def _half_square(tensor: Any) -> Any:
    tensor = _values(tensor)
    tensor = tf.convert_to_tensor(getattr(tensor, "value", tensor))
    return tf.nn.l2_loss(tf.cast(tensor, tf.float32))


def _sums(tensors: list[Any]) -> Any:
    return tf.stack([tf.reduce_sum(tf.cast(tensor, tf.float32)) for tensor in tensors])


def _common(logs: Any, results: Any) -> list[str]:
    """What a step returns that is a metric's result."""
    if not isinstance(logs, dict):
        return []
    return [name for name in logs if name in results and not isinstance(logs[name], dict)]
