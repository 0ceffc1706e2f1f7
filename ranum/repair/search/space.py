"""Which values a repair may change, and to what: plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from ranum.errors import ArgumentError

_BUILT_IN = (
    "learning_rate",
    "optimizer",
    "activation",
    "initialization",
    "batch_size",
    "normalization",
    "gradient_clip",
)
_DIGITS = 3  # significant digits of a sampled number: a patch is read by a person


class Suggests(Protocol):
    """The part of `optuna.Trial` that a space needs."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A number between `low` and `high`."""
        ...

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """A whole number between `low` and `high`."""
        ...

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of `choices`."""
        ...


@dataclass(frozen=True, slots=True)
class Range:
    """All numbers from `low` to `high`, both included; whole ones if `integer`."""

    low: float
    high: float
    log: bool = False
    integer: bool = False

    def holds(self, value: Any) -> bool:
        """True if `value` is a number of this range."""
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        return self.low <= value <= self.high and (not self.integer or value == int(value))

    def nearest(self, value: float) -> float:
        """`value`, moved into the range and rounded to what a person would write."""
        rounded = round(value) if self.integer else float(f"{value:.{_DIGITS}g}")
        return min(max(rounded, self.low), self.high)

    def admit(self, name: str, value: Any) -> Range:
        """The smallest range that also holds `value`.

        Raises:
            ArgumentError: If no range of this kind can hold it.
        """
        rule = "a positive number" if self.log else "a finite number"
        rule = rule.replace("number", "whole number") if self.integer else rule
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not math.isfinite(value)
            or (self.log and value <= 0)
            or (self.integer and value != int(value))
        ):
            raise ArgumentError(
                f"configuration[{name!r}] must be {rule}, as the space searches a range of them; "
                f"got {value!r}. Change the value, or leave {name!r} out of the space."
            )
        return replace(self, low=min(self.low, value), high=max(self.high, value))

    def steps(self, value: float) -> list[float]:
        """One step down and one step up: a factor of 10, or a quarter of a linear range."""
        width = self.high - self.low
        pair = (value / 10, value * 10) if self.log else (value - width / 4, value + width / 4)
        if self.integer and not self.log:
            pair = (min(pair[0], value - 1), max(pair[1], value + 1))
        return [self.nearest(number) for number in pair]


Domain = Range | tuple[Any, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSpace:
    """Which values of a configuration a repair may change, and to what.

    Only the names that the configuration holds, with a value that is not None, are searched;
    everything else in it stays as it is. The value the configuration has is always admitted,
    inside the space or not: a repair changes as little as it can.

    Args:
        learning_rate: Lowest and highest, searched on a logarithmic scale. The default spans
            the usual values of the optimizers below with two decades to either side; a
            published search drew it uniformly up to 10, so that 99 % of its trials had a rate
            above 0.1.
        optimizer: Names of classes in `torch.optim`.
        batch_size: Samples per batch.
        initialization: How weights are drawn again, see `surgery.apply_configuration`: "keep"
            leaves them as the model's constructor drew them, "default" asks each layer.
        activation: Names of classes in `torch.nn` that replace the hidden activations.
        normalization: "BatchNorm" adds it behind every hidden layer of a model that has none.
        gradient_clip: L2 norms that all gradients together are clipped to; 0 does not clip.
        extra: Your own values by name. A list or tuple holds choices; a mapping with `low`
            and `high`, and optionally `log`, is a range (of whole numbers if both ends are):
            `{"dropout": {"low": 0.0, "high": 0.5}, "schedule": ["none", "cosine"]}`.

    Each of the first seven may be None or empty, which leaves that value alone.

    Raises:
        ArgumentError: If a range or a choice is not one, or nothing is left to search.

    Example:
        >>> SearchSpace(batch_size=None, normalization=None, gradient_clip=None).names()
        ('learning_rate', 'optimizer', 'activation', 'initialization')
    """

    learning_rate: tuple[float, float] | None = (1e-5, 1e-1)
    optimizer: tuple[str, ...] | None = ("Adam", "AdamW", "SGD", "RMSprop")
    batch_size: tuple[int, ...] | None = (16, 32, 64, 128)
    initialization: tuple[str, ...] | None = (
        "keep",
        "default",
        "kaiming_normal",
        "xavier_uniform",
        "orthogonal",
    )
    activation: tuple[str, ...] | None = (
        "ReLU",
        "LeakyReLU",
        "ELU",
        "SELU",
        "GELU",
        "SiLU",
        "Tanh",
    )
    normalization: tuple[str, ...] | None = ("none", "BatchNorm")
    gradient_clip: tuple[float, ...] | None = (0, 0.1, 1.0, 10.0)
    extra: Mapping[str, Sequence[Any] | Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.learning_rate:
            ends = _range("learning_rate", _ends(self.learning_rate))
            object.__setattr__(self, "learning_rate", (ends.low, ends.high))
        for name in ("optimizer", "initialization", "activation", "normalization"):
            if getattr(self, name):
                choices = _choices(name, getattr(self, name), str, "names")
                object.__setattr__(self, name, choices)
        if self.batch_size:
            sizes = _choices("batch_size", self.batch_size, int, "whole numbers")
            if min(sizes) < 1:
                raise ArgumentError(f"batch_size must be at least 1; got {min(sizes)}.")
            object.__setattr__(self, "batch_size", sizes)
        if self.gradient_clip:
            norms = _choices("gradient_clip", self.gradient_clip, (int, float), "numbers")
            if not all(math.isfinite(norm) and norm >= 0 for norm in norms):
                raise ArgumentError(f"gradient_clip must hold numbers from 0 up; got {norms!r}.")
            object.__setattr__(self, "gradient_clip", norms)
        if not isinstance(self.extra, Mapping):
            raise ArgumentError(
                f"extra must map your names to choices or ranges; got {self.extra!r}."
            )
        for name, domain in self.extra.items():
            if not isinstance(name, str) or not name or name in _BUILT_IN:
                raise ArgumentError(
                    f"extra holds names of your own, other than {', '.join(_BUILT_IN)}; "
                    f"got {name!r}."
                )
            _parse(name, domain)
        object.__setattr__(self, "extra", dict(self.extra))
        if not self.names():
            raise ArgumentError("SearchSpace must have something to search; every value is None.")

    def names(self) -> tuple[str, ...]:
        """What may change, the values most often at fault first."""
        return tuple(self.domains())

    def domains(self) -> dict[str, Domain]:
        """By name, a `Range` or a tuple of choices."""
        domains: dict[str, Domain] = {}
        for name in _BUILT_IN:
            given = getattr(self, name)
            if given:
                domains[name] = (
                    Range(given[0], given[1], log=True) if name == "learning_rate" else given
                )
        domains |= {name: _parse(name, domain) for name, domain in self.extra.items()}
        return domains

    def within(self, configuration: Mapping[str, Any]) -> dict[str, Domain]:
        """The domains that fit a configuration, widened to admit the values it has.

        Raises:
            ArgumentError: If a value cannot be admitted, a name in `extra` is missing, or
                nothing is left to search.
        """
        missing = [name for name in self.extra if name not in configuration]
        if missing:
            raise ArgumentError(
                f"extra searches over {missing[0]!r}, which the configuration does not hold; "
                f"it holds {', '.join(map(repr, configuration)) or 'nothing'}."
            )
        domains: dict[str, Domain] = {}
        for name, domain in self.domains().items():
            value = configuration.get(name)
            if value is None and name in _BUILT_IN:
                continue
            if isinstance(domain, Range):
                domains[name] = domain.admit(name, value)
            else:
                _require_plain(f"configuration[{name!r}]", value)
                domains[name] = domain if value in domain else (*domain, value)
        if not domains:
            raise ArgumentError(
                f"configuration must hold something to search, one of {', '.join(self.names())}; "
                f"it holds {', '.join(map(repr, configuration)) or 'nothing'}."
            )
        return domains

    def contains(self, configuration: Mapping[str, Any]) -> bool:
        """True if every value that is searched over lies inside the space."""
        return all(
            domain.holds(configuration[name])
            if isinstance(domain, Range)
            else configuration[name] in domain
            for name, domain in self.domains().items()
            if configuration.get(name) is not None or name in self.extra
        )

    def sample(self, trial: Suggests, configuration: Mapping[str, Any]) -> dict[str, Any]:
        """A configuration that a trial suggests.

        Args:
            trial: An `optuna.Trial`, or anything with its `suggest_` methods.
            configuration: The faulty one; gives the values that are not searched, and its own
                are among those that may be suggested.
        """
        sampled = dict(configuration)
        for name, domain in self.within(configuration).items():
            if not isinstance(domain, Range):
                sampled[name] = trial.suggest_categorical(name, domain)
                continue
            if domain.integer:
                value: float = trial.suggest_int(
                    name, int(domain.low), int(domain.high), log=domain.log
                )
            else:
                value = trial.suggest_float(name, domain.low, domain.high, log=domain.log)
            same = value == configuration[name]
            sampled[name] = configuration[name] if same else domain.nearest(value)
        return sampled

    def neighbours(self, configuration: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
        """Every configuration that is one change of one value away.

        A number moves one step down or up (see `Range.steps`), a choice among numbers to the
        next smaller or larger one, and a choice among other things to each of the others.
        """
        domains = self.domains()
        return tuple(
            {**configuration, name: other}
            for name in self.within(configuration)
            for other in _others(domains[name], configuration[name])
            if other != configuration[name]
        )


def _others(domain: Domain, value: Any) -> list[Any]:
    if isinstance(domain, Range):
        return list(dict.fromkeys(domain.steps(value)))
    if all(isinstance(choice, (int, float)) for choice in (*domain, value)):
        smaller = sorted(choice for choice in domain if choice < value)
        larger = sorted(choice for choice in domain if choice > value)
        return smaller[-1:] + larger[:1]
    return list(domain)


def _require_plain(name: str, value: Any) -> None:
    if value is not None and not isinstance(value, (bool, int, float, str)):
        raise ArgumentError(
            f"{name} must be None, a number, a bool or a string, as it is one of a list of "
            f"choices; got {value!r}."
        )


def _choices(
    name: str, given: Any, kind: type | tuple[type, ...] | None, what: str
) -> tuple[Any, ...]:
    if isinstance(given, (str, bytes)) or not isinstance(given, Sequence):
        raise ArgumentError(
            f"{name} must be a list of {what}; got {given!r}. Write [{given!r}] for a single one."
        )
    seen: list[Any] = []
    for value in given:
        if kind is None:
            _require_plain(f"a choice of {name}", value)
        elif not isinstance(value, kind) or isinstance(value, bool) or value == "":
            raise ArgumentError(f"{name} must be a list of {what}; got {value!r} in it.")
        if value in seen:
            raise ArgumentError(f"{name} must hold each choice once; got {value!r} twice.")
        seen.append(value)
    if not seen:
        raise ArgumentError(f"{name} must hold at least one choice; got {given!r}.")
    return tuple(seen)


def _ends(pair: Any) -> dict[str, Any]:
    if isinstance(pair, (str, bytes)) or not isinstance(pair, Sequence) or len(pair) != 2:
        raise ArgumentError(f"learning_rate must be a pair, lowest and highest; got {pair!r}.")
    return {"low": pair[0], "high": pair[1], "log": True}


def _range(name: str, given: Mapping[str, Any]) -> Range:
    unknown = [key for key in given if key not in ("low", "high", "log")]
    if unknown or "low" not in given or "high" not in given:
        raise ArgumentError(
            f"{name} must be a range with low and high, and optionally log; got {dict(given)!r}."
        )
    low, high, log = given["low"], given["high"], given.get("log", False)
    for key, value in (("low", low), ("high", high)):
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not math.isfinite(value)
        ):
            raise ArgumentError(f"{key} of {name} must be a finite number; got {value!r}.")
    if not isinstance(log, bool):
        raise ArgumentError(f"log of {name} must be true or false; got {log!r}.")
    if log and low <= 0:
        raise ArgumentError(f"{name} must start above 0, as its scale is logarithmic; got {low!r}.")
    if low >= high:
        raise ArgumentError(f"{name} must end above its start; got {low!r} to {high!r}.")
    integer = isinstance(low, int) and isinstance(high, int)
    return Range(low, high, log=log, integer=integer and name != "learning_rate")


def _parse(name: str, given: Any) -> Domain:
    if isinstance(given, Mapping):
        return _range(name, given)
    return _choices(name, given, None, "choices, or a mapping with low and high")
