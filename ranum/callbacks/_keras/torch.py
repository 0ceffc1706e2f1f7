"""Guarded steps of Keras on torch: the same as on TensorFlow, decided by one read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ranum._untouched import random_state, set_random_state
from ranum.errors import RanumError
from ranum.guards.readings.keras import FIRST_SAMPLES, SCALING, TAKEN, WITHHELD


@contextmanager
def losses_noted(losses: list[Any]) -> Iterator[None]:
    """Torch does not tell what it differentiates; only `compute_loss` is seen."""
    yield


class Engine:
    """What a guarded step asks of torch; see the engine of TensorFlow.

    Args:
        model: The model to be trained.
        sample_every: Steps between two looks at what layers put out.

    Attributes:
        measures_at_once: What layers put out need not be kept until the step's end.

    Raises:
        RanumError: With several processes.
    """

    measures_at_once = True

    def __init__(self, model: Any, *, sample_every: int = 10) -> None:
        self._every = sample_every
        self._begin = 0
        self.is_distributed = False
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            raise RanumError("several processes of Keras on torch are not known")
        self._bound = math.inf
        self._limit = math.inf
        self._factor = 1.0
        self._number = 0
        self._rows: list[list[float]] = []
        self._random: Any = None
        self._devices = {one.value.device for one in model.variables}

    def set_bound(self, bound: float) -> None:
        """Gradients whose norm is beyond this are not applied."""
        self._bound = bound

    def set_limit(self, limit: float) -> None:
        """Gradients that are applied are scaled down to this norm; infinity leaves them alone."""
        self._limit = limit

    def set_factor(self, factor: float) -> None:
        """What learning rates are multiplied by."""
        self._factor = factor

    def new_rows(self) -> list[list[float]]:
        """Rows written since the last call, in order."""
        rows, self._rows = self._rows, []
        return rows

    def begin(self) -> None:
        """The steps of a run are counted from now on."""
        self._begin = self._number

    def may_sample(self) -> bool:
        """Whether the step that runs looks at what layers put out."""
        return (self._number - self._begin) % self._every == 0

    def is_early(self) -> bool:
        """Whether the run has just begun."""
        return self._number - self._begin < self._every * FIRST_SAMPLES

    def kept(self, number: float) -> Any:
        """Nothing: all batches are at hand."""

    def forget_kept(self) -> None:
        """Nothing to do."""

    def forget_rows(self) -> None:
        """Nothing is traced here."""

    def batch_of(self, iterator: Any, function: Any) -> Any:
        """The batch that `fit` has fetched."""
        return iterator

    def call(self, function: Callable[[Any], Any], batch: Any) -> Any:
        """Trains on it."""
        return function(batch)

    def random(self) -> Any:
        """The state of torch's random numbers, which dropout without a seed draws from."""
        return random_state(self._devices, all_generators=False)

    def set_random(self, state: Any) -> None:
        """Puts it back."""
        set_random_state(state)

    def copies(self, variables: Sequence[Any]) -> list[Tensor]:
        """Values of now; torch's own random numbers are noted too."""
        self._random = self.random()
        return [variable.value.detach().clone() for variable in variables]

    def norms(self, tensors: Sequence[Any]) -> list[Tensor]:
        """L2 norm of each, `[]`."""
        plain = [getattr(tensor, "value", tensor).detach().float() for tensor in tensors]
        with torch.no_grad():
            return list(torch._foreach_norm(plain, 2)) if plain else []

    def undo(self, variables: Sequence[Any], copies: Sequence[Tensor]) -> None:
        """Puts variables and random numbers back to where `copies` found them."""
        with torch.no_grad():
            for variable, value in zip(variables, copies, strict=True):
                variable.value.copy_(value)
        self.set_random(self._random)

    def joined(self, vectors: Sequence[Any]) -> list[Any]:
        """One list of several."""
        return [one for vector in vectors for one in vector]

    def sums(self, tensors: Sequence[Tensor]) -> list[float]:
        """The sum of each, in one read."""
        device = tensors[0].device
        found: list[float] = torch.stack([one.float().sum().to(device) for one in tensors]).tolist()
        return found

    def number(self, value: Any) -> Tensor:
        """As a scalar `[]`, float32."""
        value = getattr(value, "value", value)
        found: Tensor = torch.as_tensor(value).detach().float()
        return found if found.ndim == 0 else found.mean()

    def scaled(self, rate: Any) -> Any:
        """A learning rate times the factor."""
        rate = getattr(rate, "value", rate)
        return rate if self._factor == 1 else rate * self._factor

    def gate(
        self,
        loss: Any,
        gradients: Sequence[Any],
        state: Sequence[Any],
        *,
        scale: Any,
        batch: Any = None,
        apply: Callable[[Any], Any],
        updates: Any,
        before: Any,
    ) -> tuple[list[float], float]:
        """Applies updates if they are good; see the engine of TensorFlow."""
        numbers = [loss, *gradients, *state]
        if scale is not None:
            numbers.append(self.number(scale))
        device = numbers[-1].device
        values = torch.stack([number.float().to(device) for number in numbers]).tolist()
        by = 1.0 if scale is None else values.pop()
        end = 1 + len(gradients)
        norms = [norm / by for norm in values[1:end]]
        total = _root(norms)
        code = TAKEN
        if not (math.isfinite(total) and total <= self._bound):
            can_scale = by > 1 and all(bool(norm.isfinite()) for norm in batch or ())
            code = SCALING if can_scale and not math.isfinite(total) else WITHHELD
        if before == WITHHELD or not all(map(math.isfinite, [values[0], *values[end:]])):
            code = WITHHELD
        if code != WITHHELD:
            apply(self._limited(updates, total))
        return [values[0], total, *norms, *values[end:]], code

    def _limited(self, updates: Sequence[Any], norm: float) -> Sequence[Any]:
        """Gradients whose common norm is beyond the limit, scaled down to it."""
        if not self._limit < norm < math.inf:
            return updates
        return [None if one is None else one * (self._limit / norm) for one in updates]

    def judge(self, loss: Any, state: Sequence[Any]) -> tuple[list[float], float]:
        """As `gate`, of a step that applied nothing."""
        return self.gate(
            loss, [], state, scale=None, apply=lambda updates: None, updates=[], before=None
        )

    def can_read(self, tensor: Any) -> bool:
        """Whether to read a tensor changes nothing else."""
        return True

    def sampled(
        self,
        numbers: Callable[[], Sequence[Any]] | None,
        early: Callable[[], Sequence[Any]] | None,
        sizes: Sequence[int],
    ) -> list[float]:
        """Numbers of a step that is sampled, behind a 1; see the engine of TensorFlow."""
        if numbers is None or early is None or not sizes[0]:
            return []
        values = [*numbers(), *early()]
        device = next((one.device for one in values if isinstance(one, Tensor)), None)
        found: list[float] = torch.stack(
            [torch.as_tensor(one, dtype=torch.float32, device=device) for one in values]
        ).tolist()
        return [1.0, *found]

    def finish(
        self,
        row: Sequence[float],
        code: float,
        *,
        variables: Sequence[Any],
        copies: Sequence[Any],
        logs: Any,
        results: Callable[[], Any],
        batch: Any,
        state: Sequence[Any],
    ) -> Any:
        """Notes the row; after a withheld step, puts variables back."""
        self._number += 1
        self._rows.append([float(self._number), code, *row])
        if code != WITHHELD:
            return logs
        self.undo(variables, copies)
        now = results()
        if not isinstance(logs, dict):
            return logs
        return {name: now.get(name, value) for name, value in logs.items()}

    def root(self, totals: Sequence[list[float]]) -> list[float]:
        """The norm of norms, alone in a list."""
        return [_root(self.joined(totals))]


def _root(norms: Sequence[float]) -> float:
    """The norm of norms; NaN if one is NaN."""
    total = math.hypot(*norms)
    return math.nan if math.isinf(total) and any(map(math.isnan, norms)) else total
