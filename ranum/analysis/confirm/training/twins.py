"""Torch optimizers that step as Keras' do, for the search; Keras' own has the last word.

Keras' Adam and RMSprop put eps elsewhere than torch's: beside the root of the uncorrected second
moment, and under the root.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam

from ranum.errors import ArgumentError


def is_keras_optimizer(value: Any) -> bool:
    """True for an optimizer of Keras 3, on whatever backend."""
    return any(
        cls.__name__ == "BaseOptimizer" and cls.__module__.startswith("keras.")
        for cls in type(value).__mro__
    )


def twin(optimizer: Any) -> tuple[Callable[[list[Tensor]], Twin], str]:
    """A function that makes an optimizer like a Keras one, and its name with settings.

    Raises:
        ArgumentError: If it is of a kind that has no twin.
    """
    config = optimizer.get_config()
    kind = type(optimizer).__name__
    refused = [key for key in _REFUSED if config.get(key)]
    if kind not in _KINDS or refused or not isinstance(config["learning_rate"], (int, float)):
        raise ArgumentError(
            f"optimizer must be one of {', '.join(_KINDS)} with a fixed learning rate and without "
            f"{', '.join(_REFUSED)}; got {kind}"
            + (f" with {', '.join(refused)}." if refused else ".")
        )
    cls, shown = _KINDS[kind]
    settings = {key: config[key] for key in ("learning_rate", *shown)}
    words = ", ".join(f"{key}={_short(value)}" for key, value in settings.items() if value)
    return (lambda parameters: cls(parameters, **settings)), f"{kind}({words})"


_REFUSED = (
    "clipnorm", "clipvalue", "global_clipnorm", "use_ema", "loss_scale_factor", "amsgrad",
    "centered", "gradient_accumulation_steps",
)  # fmt: skip


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else repr(value)


class Twin:
    """What the search needs of an optimizer; torch's base class imports its compiler first."""

    def __init__(self, parameters: Iterable[Tensor], **settings: Any) -> None:
        self.param_groups = [{"params": list(parameters), **settings}]
        self.state: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """One step."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                state["step"] = state.get("step", 0) + 1
                self._move(parameter, parameter.grad, state, group)

    def _move(self, x: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        raise NotImplementedError


def _held(state: dict[str, Any], name: str, x: Tensor, value: float = 0.0) -> Tensor:
    if name not in state:
        state[name] = torch.full_like(x, value)
    held: Tensor = state[name]
    return held


class _Adam(Twin):
    """m / (sqrt(v) + eps), with both corrections in the learning rate (Kingma and Ba, 2015)."""

    def _move(self, x: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        first, second = group["beta_1"], group["beta_2"]
        m, v = _held(state, "m", x), _held(state, "v", x)
        correction = (1 - second ** state["step"]) ** 0.5
        adam(
            [x], [g], [m], [v], [], [torch.tensor(float(state["step"] - 1))],
            fused=True, decoupled_weight_decay=True, amsgrad=False, beta1=first, beta2=second,
            lr=group["learning_rate"], weight_decay=group.get("weight_decay") or 0.0,
            eps=group["epsilon"] / correction, maximize=False,
        )  # fmt: skip


class _RMSprop(Twin):
    def _move(self, x: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        v = _held(state, "v", x).lerp_(g * g, 1 - group["rho"])
        step = group["learning_rate"] * g / (v + group["epsilon"]).sqrt()
        if group["momentum"]:
            step = _held(state, "m", x).mul_(group["momentum"]).add_(step)
        x.sub_(step)


class _Adagrad(Twin):
    def _move(self, x: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        total = _held(state, "sum", x, group["initial_accumulator_value"]).addcmul_(g, g)
        x.addcdiv_(g, (total + group["epsilon"]).sqrt(), value=-group["learning_rate"])


class _SGD(Twin):
    def _move(self, x: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        momentum, rate = group["momentum"], group["learning_rate"]
        if not momentum:
            x.sub_(g, alpha=rate)
            return
        held = _held(state, "m", x).mul_(momentum).sub_(g, alpha=rate)
        if group["nesterov"]:
            x.add_(held, alpha=momentum).sub_(g, alpha=rate)
        else:
            x.add_(held)


_KINDS: dict[str, tuple[Callable[..., Twin], tuple[str, ...]]] = {
    "SGD": (_SGD, ("momentum", "nesterov")),
    "Adam": (_Adam, ("beta_1", "beta_2", "epsilon")),
    "AdamW": (_Adam, ("beta_1", "beta_2", "epsilon", "weight_decay")),
    "RMSprop": (_RMSprop, ("rho", "momentum", "epsilon")),
    "Adagrad": (_Adagrad, ("initial_accumulator_value", "epsilon")),
}
