"""`analyze`: one training step in, its numerical defects and bounds out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ranum.analysis.capture.exported import exported_file, exported_program, is_exported
from ranum.analysis.capture.lightning import Step, is_lightning_module, lightning_program
from ranum.analysis.capture.onnx import is_onnx_model, onnx_program
from ranum.analysis.capture.program import Program
from ranum.analysis.capture.standin import with_data
from ranum.analysis.capture.target import Target
from ranum.analysis.capture.tensorflow import tensorflow_program
from ranum.analysis.capture.tensorflow.data import is_dataset, keras_batches
from ranum.analysis.capture.tensorflow.target import is_keras_model
from ranum.analysis.capture.torch import batch_arguments, function_program, module_program
from ranum.analysis.defects import find_defects
from ranum.analysis.execution import Execution, unflushed
from ranum.analysis.graph import Graph, Node
from ranum.analysis.interval import Interval
from ranum.analysis.levels import with_reach
from ranum.analysis.precision import find_advice
from ranum.analysis.ranges import Range, Weights, describe_weights, starting_ranges
from ranum.analysis.result import Analysis, Context, Unknown
from ranum.analysis.scan import Batches, Scan, scan
from ranum.errors import ArgumentError, CaptureError
from ranum.source import Source, traceback_source


def analyze(
    target: Target,
    *example_inputs: Any,
    inputs: Mapping[str, Range] | None = None,
    weights: Weights = "envelope",
    loss: Callable[[Any], Tensor] | None = None,
    data: Any = None,
    step: Step = "training",
    backward: bool | None = None,
    confirm: bool = False,
    observe: bool = False,
    trust: bool = False,
    execution: Execution | None = None,
) -> Analysis:
    """Names every operator of a training step that can produce NaN or Inf.

    The step is run once, really, on the example inputs, and recorded; parameters, buffers,
    gradients, the batch, random number generators, and optimizers that a function uses are
    put back. The recorded operators are then evaluated on intervals that cover all inputs and
    weights in the given ranges. What holds, holds for the operators of this trace: branches
    not taken are not analysed, and noted.

    Args:
        target: A function that returns a loss; a module (with `loss`, or returning its loss
            itself); a LightningModule, whose `training_step` is analysed on one batch; an
            `ExportedProgram` (its own example serves if none is given), or a `.pt2` file; a
            compiled Keras model, with x and y, or a dataset, as `fit` takes them; a
            `tf.function` or a
            function of TensorFlow tensors; the folder of a SavedModel; the path of an ONNX
            model, or an `onnx.ModelProto`.
        *example_inputs: Arguments for one step; for a LightningModule, the batch; for an ONNX
            model, its inputs in order or one mapping by name. Random numbers stand in for
            tensors without data (on the meta device, or fake, or an ONNX model's inputs that
            are left out): within `inputs` where that gives a range, standard normal elsewhere.
        inputs: Ranges (lower, upper) by input name or pattern, "x" or "batch[0]"; by default
            what the example and `data` showed, plus a margin of a tenth unless all numbers are
            whole. Integer inputs are anything valid where they index; masks made of them, and
            integers that are all 0 or 1, are as in the example unless a range is given here.
        weights: "envelope" (up to ten times their initial magnitude, at least 1), "initial",
            "anything" (any finite number: what the architecture itself allows), a number r for
            [-r, r], or ranges and levels by parameter name or pattern, with the envelope
            elsewhere. One walk bounds the widest of them; each defect found then says the
            narrowest level at which it occurs (`Defect.reach`).
        loss: For a module: makes the loss `[]` from the module's output; for an ONNX model,
            from its output, or from a mapping of its outputs by name.
        data: A DataLoader, or a list of batches like the example, whose extremes widen the
            ranges: up to 64 batches are read, for up to 10 seconds, without a trace in random
            numbers or workers. Its first batch is the example where none is given; of a batch
            that is a tuple, a module gets as many elements as it takes. For a Keras model also
            a `tf.data.Dataset` (whose shuffling moves on by one epoch), a `PyDataset`, or all of
            `(x, y)`, whose first 32 rows are the example.
        step: "validation" analyses a LightningModule's `validation_step`, in evaluation mode
            and without a backward pass.
        backward: Also analyse the backward pass. By default yes, but an ONNX model without a
            loss is analysed forward only.
        confirm: Also search a failing input for every defect (`ranum.confirm`).
        observe: Record the smallest and largest element of every result, not only of module
            outputs and the loss.
        trust: Read `.pt2` files, which can run code of whoever wrote them.
        execution: How arithmetic is carried out (flush to zero, TF32, fused products); by
            default as torch is set up now; programs of TensorFlow flush to zero.

    Raises:
        ArgumentError: If an argument breaks its rule.
        CaptureError: If the step itself raises; its own error is the cause.
    """
    if is_keras_model(target):
        if data is None and len(example_inputs) == 1 and is_dataset(example_inputs[0]):
            data, example_inputs = example_inputs[0], ()  # as `fit` takes it
        data = keras_batches(data)
    batches = None if data is None else _batches(data, target)
    if batches is not None and not example_inputs and not isinstance(target, Program):
        example_inputs = batch_arguments(target, batches.first())
    program = _program(target, example_inputs, loss=loss, backward=backward, step=step, trust=trust)
    if not isinstance(target, Program):
        program = replace(program, target=target, loss=loss)
    program, made_up = with_data(program, inputs)
    scanned = None
    if batches is not None:
        arguments = program.arguments
        scanned = scan(
            batches,
            lambda batch: program.named(batch_arguments(target, batch, arguments)),
            program.inputs,
        )
    started = time.process_time()
    try:
        graph = program.capture(observe=observe, varying=tuple(inputs or ()))
    except ArgumentError:
        raise
    except Exception as error:
        place = traceback_source(error.__traceback__)
        where = f" at {place}" if place.is_known else ""
        raise CaptureError(
            f"{program.description} could not be recorded: it raised "
            f"{type(error).__name__}{where}: {error}. {_advice(error)}"
        ) from error
    captured = time.process_time()
    graph.execution = _execution(program, execution)
    with unflushed():
        seen = None if scanned is None else scanned.seen
        start = starting_ranges(graph, inputs=inputs, weights=weights, seen=seen)
        found, propagation = find_defects(graph, start)
        unplaced = time.process_time()
        defects = with_reach(graph, propagation.intervals, weights, found)
        placed = time.process_time()
        advice, defects = find_advice(graph, propagation.intervals, defects)
    finished = time.process_time()
    context = Context(
        program=program,
        graph=graph,
        start=start,
        intervals=propagation.intervals,
        varying=tuple(inputs or ()),
    )
    analysis = Analysis(
        graph=graph,
        intervals=propagation.intervals,
        bounds=_bounds(graph, propagation.intervals),
        observed=_observed(graph),
        defects=tuple(replace(defect, context=context) for defect in defects),
        advice=advice,
        unknowns=_unknowns(propagation.unknown),
        notes=(
            *program.notes,
            *_range_notes(graph, scanned, made_up),
            *_notes(graph, propagation.faults),
        ),
        ranges={
            value.name: start[value.index]
            for value in graph.leaves("derived", "input", "parameter")
            if value.name
        },
        weights=describe_weights(weights),
        capture_seconds=captured - started,
        analysis_seconds=finished - captured,
        placing_seconds=placed - unplaced,
        context=context,
    )
    if confirm:
        from ranum.analysis.confirm import confirm_all

        return confirm_all(analysis)
    return analysis


def _program(
    target: Any,
    arguments: tuple[Any, ...],
    *,
    loss: Callable[[Any], Tensor] | None,
    backward: bool | None,
    step: Step,
    trust: bool,
) -> Program:
    if step not in get_args(Step):
        raise ArgumentError(f"step must be 'training' or 'validation'; got {step!r}.")
    if step != "training" and not is_lightning_module(target):
        raise ArgumentError("step='validation' is for a LightningModule; this target has one step.")
    if isinstance(target, Program):
        return target
    if loss is not None and not callable(loss):
        raise ArgumentError(f"loss must be callable or None; got {loss!r}.")
    if is_onnx_model(target):
        return onnx_program(target, arguments, loss=loss, backward=bool(backward))
    backward = backward is not False
    program = tensorflow_program(target, arguments, loss=loss, backward=backward)
    if program is not None:
        return program
    if isinstance(target, (str, Path)) and str(target).endswith(".pt2"):
        target = exported_file(target, trust=trust)
    if is_exported(target):
        return exported_program(target, arguments, loss=loss, backward=backward)
    if is_lightning_module(target):
        if len(arguments) != 1:
            raise ArgumentError(
                f"example_inputs of a LightningModule must be one batch; got {len(arguments)}."
            )
        return lightning_program(target, arguments[0], backward=backward, kind=step)
    if isinstance(target, nn.Module):
        return module_program(target, arguments, loss=loss, backward=backward)
    if callable(target):
        if loss is not None:
            raise ArgumentError("loss must be None for a function; let the function return it.")
        return function_program(target, arguments, backward=backward)
    raise ArgumentError(
        "target must be a module, a compiled Keras model, a function that returns a loss, an "
        "ONNX model or the folder of a SavedModel; "
        f"got {target!r}."
    )


def _bounds(graph: Graph, intervals: Mapping[int, Interval]) -> dict[str, Interval]:
    bounds = {name: intervals[value] for name, value in graph.module_outputs.items()}
    if graph.loss is not None:
        bounds["loss"] = intervals[graph.loss]
    return bounds


def _observed(graph: Graph) -> dict[str, tuple[float, float]]:
    named = dict(graph.module_outputs)
    if graph.loss is not None:
        named["loss"] = graph.loss
    seen = {}
    for name, number in named.items():
        extremes = graph.values[number].observed
        if extremes is not None:
            seen[name] = (float(extremes[0]), float(extremes[1]))
    return seen


def _unknowns(nodes: list[Node]) -> tuple[Unknown, ...]:
    by_op: dict[str, list[Source]] = {}
    for node in nodes:
        by_op.setdefault(node.op, []).append(node.source)
    return tuple(
        Unknown(op=op, count=len(sources), source=sources[0]) for op, sources in by_op.items()
    )


def _execution(program: Program, chosen: Execution | None) -> Execution | None:
    if chosen is not None and not isinstance(chosen, Execution):
        raise ArgumentError(f"execution must be a ranum.Execution or None; got {chosen!r}.")
    if chosen is None:
        tensors = [*program.parameters.values(), *program.inputs.values()]
        chosen = Execution.of_torch("cuda" if any(each.is_cuda for each in tensors) else "cpu")
        if program.flush_to_zero:
            chosen = replace(chosen, flush_to_zero=True)
    return None if chosen.is_plain else chosen


def _advice(error: Exception) -> str:
    text = str(error)
    if any(word in text for word in ("NVIDIA", "CUDA", "cuda")):
        return (
            "It asks for a GPU: analyse it where there is one, or move the model and the batch "
            "to the CPU, and take device names out of the step."
        )
    if "NestedTensor" in text:
        return "Nested tensors are followed in the layout torch.jagged only."
    return (
        "Run the step once by itself first; if it passes there, call it with the same "
        "arguments here."
    )


def _batches(data: Any, target: Any) -> Batches:
    """Checked data; what it holds goes where the module's weights are."""
    batches = Batches.of(data)
    weight = next(target.parameters(), None) if isinstance(target, nn.Module) else None
    if weight is None or weight.device.type == "cpu" or batches.convert is not None:
        return batches
    device = weight.device
    return replace(
        batches,
        convert=lambda batch: tree_map_only(Tensor, lambda tensor: tensor.to(device), batch),
    )


def _range_notes(graph: Graph, scanned: Scan | None, made_up: Sequence[str]) -> Iterator[str]:
    """What the starting ranges take for granted."""
    if scanned is not None:
        yield (
            f"input ranges come from the example and {scanned.batches} batches of data"
            if scanned.batches
            else "the data could not be read without a trace: input ranges come from the example"
        )
    if made_up:
        yield f"random numbers stand in for {', '.join(made_up)}, which came without data"
    if graph.execution is not None:
        yield f"bounds allow for how arithmetic is carried out: {graph.execution}"
    integers = [name for name in graph.inputs if name in graph.integers]
    if integers:
        yield (
            f"{', '.join(integers)}: any valid index where used as one; masks made of integers "
            "are those of the recorded batch"
        )
    shares = {
        value.name or "labels" for value in graph.leaves("input", "derived") if value.is_shared
    }
    if shares:
        yield f"rows of {', '.join(sorted(shares))} are taken to sum to 1, as all that were seen"


def _notes(graph: Graph, faults: list[str]) -> tuple[str, ...]:
    notes = [
        f"only the branch taken was analysed: a tensor decides at {source}"
        for source in graph.taken_branches
    ]
    notes += [
        f"a tensor leaves torch at {source}; what is computed from it is not seen"
        for source in graph.escapes
    ]
    notes += [
        f"nothing is assumed of {value.name}, which is complex or sparse"
        for value in graph.leaves("input", "parameter")
        if value.data is None
    ]
    for value in graph.leaves("input"):
        if value.data is not None and not bool(value.data.isfinite().all()):
            notes.append(f"input {value.name} holds non-finite elements; its range leaves them out")
    return tuple(dict.fromkeys([*notes, *faults]))
