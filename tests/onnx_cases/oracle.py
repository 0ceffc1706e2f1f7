"""ONNX's own backend node tests as an oracle: results and soundness.

Each test is a small model with inputs and the outputs that ONNX expects. It is lowered and
run; its outputs must be equal. Then it is recorded, analysed from the inputs as points and
from the inputs give or take a hundredth, and run again on numbers from those ranges: every
result must lie in its interval.
"""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ranum.analysis.capture.onnx.interpreter import Interpreter
from ranum.analysis.capture.onnx.model import read_model
from ranum.analysis.capture.onnx.program import onnx_program
from ranum.analysis.capture.onnx.values import SMALL_FLOATS, element_type, to_numpy
from ranum.analysis.graph import Graph
from ranum.analysis.interval import Interval
from ranum.analysis.propagate import Propagation, propagate
from ranum.analysis.ranges import starting_ranges

RADIUS = 0.01
"""Widened inputs reach a hundredth of each number, and of 1, to either side."""


@dataclass(slots=True)
class Outcome:
    """What became of one test.

    Attributes:
        name: ONNX's name of the test.
        op: Operator of its first node, as the test's name starts with it.
        status: "equal", "different", "unknown" (needs an operator without a lowering) or
            "failed".
        detail: What was different, unknown or wrong.
        violations: Results outside of their intervals, a line each.
        unbounded: Operators of the recorded graph without a transfer function.
        depends: True if the model turns a tensor into a Python number (the analysis notes it):
            other inputs may then be another program, so none are drawn.
        checks: Comparisons of a result with its interval.
        draws: Numbers compared.
    """

    name: str
    op: str
    status: str = "equal"
    detail: str = ""
    violations: list[str] = field(default_factory=list)
    unbounded: Counter[str] = field(default_factory=Counter)
    depends: bool = False
    checks: int = 0
    draws: int = 0

    @property
    def is_sound(self) -> bool:
        return not self.violations


@cache
def cases() -> dict[str, Any]:
    """All node tests by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        return {case.name: case for case in collect_testcases(None)}


def operator(case: Any) -> str:
    """The operator under test; expanded tests are named after the operator they expand."""
    ops = {node.op_type for node in case.model.graph.node}
    if len(ops) == 1:
        return ops.pop()
    stem = case.name.removeprefix("test_").partition("_expanded")[0]
    plain = cases().get(f"test_{stem}")
    if plain is not None and plain is not case and len(plain.model.graph.node) == 1:
        return plain.model.graph.node[0].op_type
    return case.model.graph.node[-1].op_type if case.model.graph.node else "(none)"


def judge(case: Any, *, soundness: bool = True) -> Outcome:
    """Runs one test."""
    outcome = Outcome(case.name, operator(case))
    inputs, expected = (list(map(plain, values)) for values in case.data_sets[0])
    names = [item.name for item in case.model.graph.input]
    given = dict(zip(names, inputs, strict=False))
    try:
        model = read_model(case.model)
        program = onnx_program(case.model, [given])
        interpreter = Interpreter(model)
        fed = dict(zip(program.argument_names, program.arguments, strict=True))
        constants = {item.name: model.tensor(item) for item in model.graph.initializer}
        with torch.no_grad():
            outputs = interpreter.run({**constants, **fed})
    except Exception as error:
        outcome.status, outcome.detail = "failed", f"{type(error).__name__}: {error}"
        return outcome
    if interpreter.unknown:
        outcome.status, outcome.detail = "unknown", str(interpreter.unknown)
        return outcome
    for (name, value), wanted in zip(outputs.items(), expected, strict=False):
        fault = difference(value, wanted, case.rtol, case.atol)
        if fault and not is_random(case):
            outcome.status, outcome.detail = "different", f"{name}: {fault}"
            return outcome
    if soundness:
        check_soundness(program, outcome)
    return outcome


def plain(value: Any) -> Any:
    """Tensors of types numpy lacks come as protocol buffers."""
    from onnx import TensorProto, numpy_helper

    if not isinstance(value, TensorProto):
        return value
    return numpy_helper.to_array(value)


def is_random(case: Any) -> bool:
    """True for tests whose expected values are one draw of many."""
    ops = {node.op_type for node in case.model.graph.node}
    return bool(ops & {"Bernoulli", "RandomUniformLike", "RandomNormalLike"}) or (
        "training_dropout" in case.name and "zero_ratio" not in case.name
    )


def difference(value: Any, wanted: Any, rtol: float, atol: float) -> str:
    """How a result differs from what was expected, or ""."""
    if isinstance(wanted, list) or isinstance(value, list):
        if not isinstance(value, list) or len(value) != len(wanted):
            return f"{value!r} for a sequence"
        faults = (difference(a, b, rtol, atol) for a, b in zip(value, wanted, strict=True))
        return next((fault for fault in faults if fault), "")
    if wanted is None or value is None:
        return "" if wanted is value else f"{value!r} for {wanted!r}"
    wanted = np.asarray(wanted)
    got = np.asarray(to_numpy(value))
    if got.shape != wanted.shape:
        return f"shape {got.shape} for {wanted.shape}"
    if got.dtype != wanted.dtype and wanted.dtype.kind not in "OUS":
        return f"{got.dtype} for {wanted.dtype}"
    if wanted.dtype.kind in "OUS":
        return "" if (got == wanted.astype(object)).all() else "other strings"
    small = isinstance(value, Tensor) and element_type(value) in SMALL_FLOATS
    a, b = got.astype(np.float64), wanted.astype(np.float64)
    if small or got.dtype.kind in "iub":
        tolerance = (0.0, 0.0) if small else (rtol, atol)
    else:
        tolerance = (rtol, atol)
    if np.allclose(a, b, *tolerance, equal_nan=True):
        return ""
    with np.errstate(all="ignore"):
        return f"up to {np.nanmax(np.abs(a - b))} away"


# --- soundness -----------------------------------------------------------------------------


def check_soundness(program: Any, outcome: Outcome) -> None:
    """Runs a program on inputs of two ranges and looks for results outside their intervals."""
    for radius in (0.0, RADIUS):
        boxes = {
            name: _box(tensor, radius)
            for name, tensor in program.inputs.items()
            if tensor.is_floating_point()
        }
        graph, outputs = _captured(program)
        used = {value.name for value in graph.leaves("input")}
        ranges = {name: box for name, box in boxes.items() if name in used}
        start = starting_ranges(graph, inputs=ranges, weights="initial")
        known = propagate(graph, start)
        outcome.unbounded.update(node.op for node in known.unknown)
        outcome.violations += known.faults
        _contained(graph, known, outputs, outcome)
        outcome.depends |= bool(graph.taken_branches or graph.escapes)
        for seed in range(3 if radius and not outcome.depends else 0):
            drawn = {name: _draw(box, seed) for name, box in boxes.items()}
            if all(torch.equal(drawn[name], program.inputs[name]) for name in drawn):
                continue
            try:
                other, outputs = _captured(_with(program, drawn))
            except Exception:  # the drawn numbers are not lawful: a size, an index
                continue
            if _signature(other) != _signature(graph):
                continue  # another branch: another program
            _contained(other, known, outputs, outcome)


def _captured(program: Any) -> tuple[Graph, dict[str, Tensor]]:
    """The recorded graph, and what each output of the model was."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, args, output: outputs.__setitem__(name, output)

    handles = [
        child.register_forward_hook(keep(name)) for name, child in program.model._modules.items()
    ]
    try:
        return program.capture(), outputs
    finally:
        for handle in handles:
            handle.remove()


def _with(program: Any, drawn: dict[str, Tensor]) -> Any:
    from dataclasses import replace

    return replace(program, arguments=program.batch(drawn))


def _signature(graph: Graph) -> list[Any]:
    return [(node.op, node.outputs) for node in graph.nodes]


def _contained(
    run: Graph, known: Propagation, outputs: dict[str, Tensor], outcome: Outcome
) -> None:
    """Extremes of every result, and every element of the outputs."""
    for name, output in outputs.items():
        number = run.module_outputs.get(name)
        if number is None or run.values[number].shape != tuple(output.shape):
            continue
        outcome.checks += 1
        outcome.draws += output.numel()
        if not known.intervals[number].contains(output.detach()):
            outcome.violations.append(f"{name}: an element outside of {known.intervals[number]}")
    for node in run.nodes:
        for number in node.outputs:
            if number is None or run.values[number].observed is None:
                continue
            interval = known.intervals[number]
            low, high = run.values[number].observed
            if float(low) != float(low) or float(high) != float(high):
                if not interval.may_nan:
                    outcome.violations.append(f"{node.op}: NaN, not foreseen in {interval}")
                continue
            outcome.checks += 1
            outcome.draws += int(np.prod(run.values[number].shape))
            if not (interval.low <= float(low) and float(high) <= interval.high):
                outcome.violations.append(
                    f"{node.op}: [{float(low)!r}, {float(high)!r}] outside of "
                    f"[{interval.low!r}, {interval.high!r}]"
                )


def _box(tensor: Tensor, radius: float) -> Interval:
    if radius == 0.0:
        return Interval.point(tensor)
    reach = tensor.abs().nan_to_num(0.0, 0.0, 0.0).clamp(min=1.0) * radius
    nan = bool(tensor.isnan().any())
    lower, upper = tensor - reach, tensor + reach
    return Interval.between(lower, upper, tensor.shape, tensor.dtype, nan)


def _draw(box: Interval, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    lower, upper = box.expanded()
    if seed == 0:
        return torch.where(torch.rand(box.shape, generator=generator) < 0.5, lower, upper)
    position = torch.rand(box.shape, generator=generator).to(lower.dtype)
    drawn = torch.where(lower == upper, lower, lower + (upper - lower) * position)
    return torch.minimum(torch.maximum(drawn, lower), upper)
