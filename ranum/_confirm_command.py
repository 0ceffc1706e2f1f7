"""`ranum confirm FILE:NAME [--training]`: proofs of the defects of a model, as files."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ranum.errors import ArgumentError

if TYPE_CHECKING:
    from ranum.analysis.result import Analysis, Defect

FOUND = 1


def add(
    commands: Any,
    add_program: Callable[[argparse.ArgumentParser], None],
    analysis: Callable[[argparse.Namespace], Analysis],
) -> None:
    """Adds the command to the parser's commands.

    Args:
        commands: What `add_subparsers` returned.
        add_program: Adds the arguments that say what is analysed.
        analysis: Carries out the analysis that they ask for.
    """
    confirm = commands.add_parser(
        "confirm",
        help="prove the defects of a model: inputs, weights, training data that make it fail",
        description="Analyzes a model as `ranum analyze` does, and looks for inputs and weights, "
        "inside their ranges, that make each defect happen; with --training, also for data on "
        "which ordinary training gets there. Exit code: 1 if a failure was confirmed, 2 if there "
        "was nothing to analyze, else 0.",
    )
    add_program(confirm)
    confirm.add_argument(
        "--training", action="store_true", help="look for training runs into the defects as well"
    )
    confirm.add_argument(
        "--optimizer",
        type=_settings,
        metavar="NAME,KEY=VALUE,...",
        help="what you train with, say SGD,lr=0.1: of torch.optim, or of keras.optimizers for a "
        "TensorFlow program; by default what a LightningModule configures, or what a Keras model "
        "was compiled with",
    )
    confirm.add_argument("--steps", type=int, default=20_000, help="the most steps of a run")
    confirm.add_argument("--seconds", type=float, default=60.0, help="for each search (default 60)")
    confirm.add_argument(
        "--save",
        metavar="DIR",
        help="write a failing test, or a script that trains into the failure, for each proof",
    )

    def run(options: argparse.Namespace) -> int:
        return _confirm(options, analysis)

    confirm.set_defaults(run=run)


def _confirm(
    options: argparse.Namespace, analysis: Callable[[argparse.Namespace], Analysis]
) -> int:
    if options.optimizer and not options.training:
        raise ArgumentError("--optimizer is for --training; give both.")
    options.confirm = False
    found = analysis(options)
    if not found.defects:
        print(f"no defect found in {len(found.graph.nodes)} operators: nothing to confirm")
        return 0
    proved = [_proved(defect, options) for defect in found.defects]
    for defect in proved:
        print(defect)
        print(f"  {defect.prospect}")
        if options.save:
            for line in _saved(defect, Path(options.save)):
                print(f"  {line}")
    certain = sum(defect.severity == "certain" for defect in proved)
    print(f"{certain} of {len(proved)} confirmed")
    return FOUND if certain else 0


def _proved(defect: Defect, options: argparse.Namespace) -> Defect:
    from ranum.analysis.confirm.training import is_trainable, train_into
    from ranum.analysis.confirm.unit import attempt
    from ranum.analysis.result import Effort

    witness, effort = attempt(defect, seconds=options.seconds, seed=options.seed)
    proved = replace(defect, effort=effort)
    proved = proved if witness is None else proved.certain(witness)
    context = proved.context
    if not options.training or context is None or not is_trainable(context):
        return proved
    make = _optimizer(options.optimizer, context.program) if options.optimizer else None
    training, more = train_into(
        proved, make, steps=options.steps, seconds=options.seconds, seed=options.seed
    )
    both = (proved.effort or Effort()) + more
    severity = proved.severity if training is None else "certain"
    return replace(proved, training=training, effort=both, severity=severity)


def _optimizer(settings: tuple[str, dict[str, Any]], program: Any) -> Any:
    name, options = settings
    home: Any
    if program.origin is not None:
        from ranum.analysis.capture.tensorflow.bridge import keras

        home = keras().optimizers
        options = {"learning_rate" if key == "lr" else key: x for key, x in options.items()}
    else:
        import torch

        home = torch.optim
    kind = getattr(home, name, None)
    if not isinstance(kind, type):
        raise ArgumentError(f"--optimizer must name one of {home.__name__}; got {name!r}.")
    try:
        return kind(**options) if program.origin is not None else lambda p: kind(p, **options)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"--optimizer {name} does not take these settings: {error}") from error


def _saved(defect: Defect, folder: Path) -> list[str]:
    """Writes what proves a defect; a line about each file, or why there is none."""
    place = f"{defect.code}_{defect.op}_{Path(defect.source.file).stem}_{defect.source.line}"
    name = re.sub(r"\W+", "_", place).lower()
    lines = []
    witness = defect.witness
    if witness is not None:
        lines.append(_written(lambda: witness.save_test(folder / f"test_{name}.py")))
    run = defect.training
    if run is not None:
        is_torch = defect.context is not None and defect.context.program.origin is None
        if is_torch:
            lines.append(_written(lambda: run.save_script(folder / f"train_{name}.py")))
        else:
            lines.append(_written(lambda: run.save(folder / f"train_{name}.pt")))
    return lines


def _written(write: Callable[[], Path]) -> str:
    try:
        return f"wrote {write()}"
    except ArgumentError as error:
        return f"not written: {error}"


def _settings(text: str) -> tuple[str, dict[str, Any]]:
    name, *rest = text.split(",")
    settings: dict[str, Any] = {}
    for each in rest:
        key, equals, value = each.partition("=")
        try:
            settings[key] = float(value)
        except ValueError:
            equals = ""
        if not (key.isidentifier() and equals):
            raise argparse.ArgumentTypeError(f"must look like SGD,lr=0.1; got {text!r}")
    if not name.isidentifier():
        raise argparse.ArgumentTypeError(f"must look like SGD,lr=0.1; got {text!r}")
    return name, settings
