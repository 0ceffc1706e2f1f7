"""One step of a plain loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ranum.errors import ArgumentError
from ranum.guards._content import frozen
from ranum.guards.decision import Decision

if TYPE_CHECKING:
    from ranum.guards.guard import Guard


class Step:
    """One step of a plain loop; made by `Guard.step`.

    Attributes:
        loss: The last loss given to `backward`, detached; None before.
        decision: What the guard decided; None before the `with` block ends.
        absent: Numbers of the calls that were `skip`.
    """

    def __init__(self, guard: Guard) -> None:
        self.loss: Tensor | None = None
        self.decision: Decision | None = None
        self._look = guard.look
        self._scaler = None if guard.backward is not None else guard.scaler
        self._differentiate = Tensor.backward if guard.backward is None else guard.backward
        self._calls: list[tuple[Any, tuple[Any, ...]]] = []
        self._send_nothing = guard.send_nothing
        self._is_late = guard.is_late
        self.absent: set[int] = set()

    def backward(self, loss: Tensor | Callable[..., Tensor], *args: Any) -> Tensor:
        """Computes the loss and its gradients; several calls accumulate.

        Args:
            loss: A function that computes the loss, forward pass included: then a failed step
                can be replayed and its culprit named. Or the loss itself, `[]`: then only
                data and weights can be blamed.
            *args: Passed to the function. With several calls per step, pass the micro-batch
                here: a lambda would see the last one in the replay.

        Returns:
            The loss.
        """
        if callable(loss) and not isinstance(loss, Tensor):
            self._calls.append((frozen(loss) if self._is_late else loss, args))
            return self._train(loss, args)
        if args:
            raise ArgumentError("args must be empty when loss is a tensor; pass a function.")
        self._calls.append((None, ()))
        return self._train(lambda: loss, ())

    def skip(self) -> None:
        """Stands for `backward` where this process has nothing to train on, and others have.

        They wait for its gradients; it sends zeros. With `Guard(uneven=True)` the gradients of
        the others then weigh more: the step is that of a run on their batches alone. Without it,
        all leave the step out. For the last micro-batch of a step it has to stand outside of
        `no_sync`, like `backward`. A step that calls neither skips once.

        The model has to be wrapped in one `DistributedDataParallel`, which the others call once
        for each micro-batch. In one process nothing happens.

        Raises:
            ArgumentError: If there are several processes and no such wrapper.
        """
        self.absent.add(len(self._calls))
        self._calls.append((self._send_nothing, ()))
        self._send_nothing()

    def _run(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        return function() if function == self._send_nothing else self._train(function, args)

    def _train(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Tensor:
        loss = function(*args)
        if not isinstance(loss, Tensor):
            raise ArgumentError(f"loss must be a tensor; got {type(loss).__name__}.")
        self.loss = loss.detach()
        self._look(loss)
        scaled = loss if self._scaler is None else self._scaler.scale(loss)
        self._differentiate(scaled)
        return loss

    @property
    def count(self) -> int:
        """Micro-batches, with those that were skipped."""
        return len(self._calls)

    @property
    def parts(self) -> list[Callable[[], Any] | None]:
        """Each runs one of the calls once more, None for `skip`; none if one cannot be run."""
        if self.replay is None:
            return []
        return [
            None if number in self.absent else partial(self._run, function, args)
            for number, (function, args) in enumerate(self._calls)
        ]

    @property
    def replay(self) -> Callable[[], Any] | None:
        """Runs the calls of this step once more; None if one of them cannot be run."""
        return None if any(function is None for function, _ in self._calls) else self._replay

    def _replay(self) -> list[Any]:
        kept = self.loss
        try:
            return [self._run(function, args) for function, args in self._calls]
        finally:
            self.loss = kept
