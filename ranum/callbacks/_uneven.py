"""Lightning's `training_step` may return None in some of several processes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ranum._untouched import random_state, set_random_state
from ranum.guards._buffers import BufferCopies
from ranum.guards._replicas import nothing
from ranum.guards.guard import Guard


class Absences:
    """Stands in front of a module's `training_step`.

    Where that returns None, the process takes part with gradients of zero, and what the step has
    done to statistics and random numbers is put back. Lightning itself raises there, as the other
    processes would wait.

    Args:
        trainer: Lightning's, of several processes with replicas.
        module: With automatic optimization.
        guard: Told of each None.
    """

    def __init__(self, trainer: Any, module: Any, guard: Guard) -> None:
        self._module, self._guard = module, guard
        self._wrapper = trainer.strategy.model
        self._copies = BufferCopies()
        self._is_awaited = False
        self._own: Any = module.training_step
        self._was_own = "training_step" in vars(module)
        if module.automatic_optimization:
            module.training_step = self._step

    def batch_starts(self) -> None:
        """The next call is Lightning's; others analyse a step, or run one again."""
        self._is_awaited = True

    def close(self) -> None:
        """Leaves the module as it was."""
        if vars(self._module).get("training_step") == self._step:
            del self._module.training_step
            if self._was_own:
                self._module.training_step = self._own

    def _step(self, *args: Any, **kwargs: Any) -> Any:
        is_awaited, self._is_awaited = self._is_awaited, False
        self._copies.take(self._module)
        numbers = random_state({self._module.device}, all_generators=False)
        output = self._own(*args, **kwargs)
        if output is not None:
            return output
        self._copies.restore()
        set_random_state(numbers)
        if is_awaited:
            self._guard.take_no_part()
        loss: Tensor = nothing(self._wrapper, self._module)
        return loss
