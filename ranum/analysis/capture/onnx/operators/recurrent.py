"""LSTM, GRU and RNN over [T, N, I]; weights [directions, gates H, ...].

An LSTM in its usual form is torch's own, which the analysis knows whole; the rest is carried
out step by step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ranum.analysis.capture.onnx.operators._common import sized
from ranum.analysis.capture.onnx.registry import UnsupportedError, lowering

Step = Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]


def _activation(name: str, alpha: float | None, beta: float | None) -> Callable[[Tensor], Tensor]:
    a = {"leakyrelu": 0.01, "thresholdedrelu": 1.0, "hardsigmoid": 0.2, "elu": 1.0}.get(
        name.lower(), 1.0
    )
    a = a if alpha is None else alpha
    b = 0.5 if beta is None else beta
    table: dict[str, Callable[[Tensor], Tensor]] = {
        "relu": F.relu,
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
        "softsign": F.softsign,
        "softplus": F.softplus,
        "affine": lambda x: x * a + (0.0 if beta is None else beta),
        "leakyrelu": lambda x: F.leaky_relu(x, a),
        "thresholdedrelu": lambda x: F.threshold(x, a, 0.0),
        "scaledtanh": lambda x: torch.tanh(x * (1.0 if beta is None else beta)) * a,
        "hardsigmoid": lambda x: (x * a + b).clamp(0, 1),
        "elu": lambda x: F.elu(x, a),
    }
    if name.lower() not in table:
        raise UnsupportedError(f"activation {name}")
    return table[name.lower()]


@dataclass(frozen=True, slots=True)
class _Layer:
    """What the three kinds of layers have in common.

    Attributes:
        x: Input [T, N, I].
        directions: Whether each direction runs backwards.
        lengths: Steps of each sequence [N], or None.
        batch_first: Whether the outputs are wanted as [N, T, ...].
    """

    x: Tensor
    directions: tuple[bool, ...]
    lengths: Tensor | None
    batch_first: bool

    @staticmethod
    def of(x: Tensor, direction: str, lengths: Tensor | None, layout: int) -> _Layer:
        kinds = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
        if direction not in kinds:
            raise UnsupportedError(f"direction {direction}")
        return _Layer(x.transpose(0, 1) if layout else x, kinds[direction], lengths, bool(layout))

    def initial(self, given: Tensor | None, hidden: int) -> Tensor:
        """The first state, [directions, N, H]."""
        if given is None:
            shape = sized((len(self.directions), self.x.shape[1], hidden))
            return torch.zeros(shape, dtype=self.x.dtype)
        return given.transpose(0, 1) if self.batch_first else given

    def run(self, steps: Sequence[Step], states: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Y [T, directions, N, H] and the last states [directions, N, H]."""
        outputs, lasts = [], []
        for index, (step, backwards) in enumerate(zip(steps, self.directions, strict=True)):
            rows, last = self._walk(step, tuple(state[index] for state in states), backwards)
            outputs.append(rows)
            lasts.append(last)
        y = torch.stack(outputs, 1)
        finals = [torch.stack(column) for column in zip(*lasts, strict=True)]
        return self.arranged(y, *finals)

    def arranged(self, y: Tensor, *finals: Tensor) -> tuple[Tensor, ...]:
        """Outputs with the batch first where that was asked for."""
        if not self.batch_first:
            return (y, *finals)
        return (y.permute(2, 0, 1, 3), *(state.transpose(0, 1) for state in finals))

    def _walk(
        self, step: Step, state: tuple[Tensor, ...], backwards: bool
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        count = self.x.shape[0]
        rows: list[Any] = [None] * count
        for t in reversed(range(count)) if backwards else range(count):
            new = step(self.x[t], state)
            output = new[0]
            if self.lengths is not None:
                running = (self.lengths > t).reshape(-1, 1)
                new = tuple(torch.where(running, b, a) for a, b in zip(state, new, strict=True))
                output = torch.where(running, output, torch.zeros_like(output))
            rows[t], state = output, new
        return torch.stack(rows), state


def _split(
    names: Sequence[str] | None,
    defaults: Sequence[str],
    alphas: Sequence[float] | None,
    betas: Sequence[float] | None,
    directions: int,
) -> list[list[Callable[[Tensor], Tensor]]]:
    """The activation functions of each direction."""
    chosen = list(names or [*defaults] * directions)
    if len(chosen) != len(defaults) * directions:
        raise UnsupportedError(f"{len(chosen)} activations")
    functions = [
        _activation(name, _entry(alphas, i), _entry(betas, i)) for i, name in enumerate(chosen)
    ]
    each = len(defaults)
    return [functions[i * each : (i + 1) * each] for i in range(directions)]


def _entry(numbers: Sequence[float] | None, index: int) -> float | None:
    return None if numbers is None or index >= len(numbers) else numbers[index]


def _clipped(x: Tensor, clip: float | None) -> Tensor:
    return x if clip is None else x.clamp(-clip, clip)


def _biases(bias: Tensor | None, weight: Tensor, gates: int, hidden: int) -> Tensor:
    """Input and recurrent biases, [directions, 2 gates H]."""
    if bias is not None:
        return bias
    return torch.zeros(weight.shape[0], 2 * gates * hidden, dtype=weight.dtype)


@lowering("RNN", since=7)
def rnn(
    x: Tensor,
    weight: Tensor,
    recurrence: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    initial_h: Tensor | None = None,
    *,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
) -> tuple[Tensor, ...]:
    """The state h = f(W x + R h + b)."""
    layer = _Layer.of(x, direction, lengths, layout)
    hidden = recurrence.shape[-1]
    both = _biases(bias, weight, 1, hidden)
    functions = _split(
        activations, ["Tanh"], activation_alpha, activation_beta, len(layer.directions)
    )

    def maker(d: int) -> Step:
        (f,) = functions[d]
        total = both[d, :hidden] + both[d, hidden:]

        def step(row: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            inner = F.linear(row, weight[d], total) + F.linear(state[0], recurrence[d])
            return (f(_clipped(inner, clip)),)

        return step

    steps = [maker(d) for d in range(len(layer.directions))]
    return layer.run(steps, [layer.initial(initial_h, hidden)])


@lowering("GRU", since=7)
def gru(
    x: Tensor,
    weight: Tensor,
    recurrence: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    initial_h: Tensor | None = None,
    *,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
    linear_before_reset: int = 0,
) -> tuple[Tensor, ...]:
    """Gates z, r and candidate c: h = (1 - z) c + z h."""
    layer = _Layer.of(x, direction, lengths, layout)
    hidden = recurrence.shape[-1]
    both = _biases(bias, weight, 3, hidden)
    functions = _split(
        activations, ["Sigmoid", "Tanh"], activation_alpha, activation_beta, len(layer.directions)
    )

    def maker(d: int) -> Step:
        f, g = functions[d]
        from_input, from_state = both[d, : 3 * hidden], both[d, 3 * hidden :]

        def step(row: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            h = state[0]
            inner = F.linear(row, weight[d], from_input)
            gates = F.linear(h, recurrence[d][: 2 * hidden], from_state[: 2 * hidden])
            z, r = f(_clipped(inner[:, : 2 * hidden] + gates, clip)).chunk(2, 1)
            last, offset = recurrence[d][2 * hidden :], from_state[2 * hidden :]
            if linear_before_reset:
                memory = r * F.linear(h, last, offset)
            else:
                memory = F.linear(r * h, last, offset)
            c = g(_clipped(inner[:, 2 * hidden :] + memory, clip))
            return ((1 - z) * c + z * h,)

        return step

    steps = [maker(d) for d in range(len(layer.directions))]
    return layer.run(steps, [layer.initial(initial_h, hidden)])


@lowering("LSTM", since=7)
def lstm(
    x: Tensor,
    weight: Tensor,
    recurrence: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    initial_h: Tensor | None = None,
    initial_c: Tensor | None = None,
    peepholes: Tensor | None = None,
    *,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
    layout: int = 0,
) -> tuple[Tensor, ...]:
    """Gates i, o, f and candidate g: c = f c + i g, h = o tanh(c)."""
    layer = _Layer.of(x, direction, lengths, layout)
    hidden = recurrence.shape[-1]
    both = _biases(bias, weight, 4, hidden)
    states = [layer.initial(initial_h, hidden), layer.initial(initial_c, hidden)]
    usual = not activations and clip is None and not input_forget and peepholes is None
    if usual and lengths is None and x.shape[0] and x.dtype == torch.float32:
        return _torch_lstm(layer, weight, recurrence, both, states)
    functions = _split(
        activations, ["Sigmoid", "Tanh", "Tanh"], activation_alpha, activation_beta,
        len(layer.directions),
    )  # fmt: skip

    def maker(d: int) -> Step:
        f, g, last = functions[d]
        total = both[d, : 4 * hidden] + both[d, 4 * hidden :]
        holes = None if peepholes is None else peepholes[d].split(hidden)

        def step(row: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            h, c = state
            inner = F.linear(row, weight[d], total) + F.linear(h, recurrence[d])
            i, o, keep, candidate = inner.chunk(4, 1)
            if holes is not None:
                i, keep = i + holes[0] * c, keep + holes[2] * c
            i = f(_clipped(i, clip))
            keep = 1 - i if input_forget else f(_clipped(keep, clip))
            new = keep * c + i * g(_clipped(candidate, clip))
            if holes is not None:
                o = o + holes[1] * new
            return f(_clipped(o, clip)) * last(new), new

        return step

    steps = [maker(d) for d in range(len(layer.directions))]
    return layer.run(steps, states)


def _torch_lstm(
    layer: _Layer, weight: Tensor, recurrence: Tensor, both: Tensor, states: list[Tensor]
) -> tuple[Tensor, ...]:
    """Torch's fused layer, whose gates come in the order i, f, g, o."""
    hidden, count = recurrence.shape[-1], len(layer.directions)
    x = layer.x.flip(0) if layer.directions == (True,) else layer.x

    def ordered(rows: Tensor) -> Tensor:
        i, o, f, g = rows.split(hidden)
        return torch.cat([i, f, g, o])

    parameters = []
    for d in range(count):
        parameters += [
            ordered(weight[d]),
            ordered(recurrence[d]),
            ordered(both[d, : 4 * hidden]),
            ordered(both[d, 4 * hidden :]),
        ]
    y, h, c = torch.lstm(
        x, [states[0].contiguous(), states[1].contiguous()], parameters, True, 1, 0.0, False,
        count == 2, False,
    )  # fmt: skip
    if layer.directions == (True,):
        y = y.flip(0)
    y = y.reshape(*y.shape[:2], count, hidden).transpose(1, 2)
    return layer.arranged(y, h, c)
