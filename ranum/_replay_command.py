"""`ranum replay incident.pt [FILE.py:NAME]`: a faulty step looked at, and run again."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ranum.errors import ArgumentError

if TYPE_CHECKING:
    from ranum.guards.incident_file import IncidentFile

FINITE, FAILED_AGAIN = 0, 1


def add(commands: Any, build: Callable[[str], tuple[Any, tuple[Any, ...]]]) -> None:
    """Adds the command to the parser's commands.

    Args:
        commands: What `add_subparsers` returned.
        build: Makes what `FILE.py:NAME` names.
    """
    replay = commands.add_parser(
        "replay",
        help="show a faulty step that a guard has saved, and run it again",
        description="Shows what a guard has saved of a step that was not finite: what decided, "
        "the first bad operator, and the extremes of the batch. With a model the step is run again "
        "on the weights and random numbers of then, and the operator named anew. "
        "Exit code: 1 if it fails again, else 0; 2 if it cannot be run.",
    )
    replay.add_argument("file", metavar="INCIDENT.pt", help="as a guard wrote it")
    replay.add_argument(
        "target",
        nargs="?",
        metavar="FILE.py:NAME",
        help="the model that failed: a module, a class built without arguments, or a function "
        "without arguments that returns the model, or (model, loss) with a function of the "
        "model and a batch; LightningModules and models that return a loss need none",
    )

    def run(options: argparse.Namespace) -> int:
        return _replay(options, build)

    replay.set_defaults(run=run)


def _replay(
    options: argparse.Namespace, build: Callable[[str], tuple[Any, tuple[Any, ...]]]
) -> int:
    from ranum.guards.incident_file import load_incident

    saved = load_incident(options.file)
    print(_summary(saved))
    if options.target is None:
        return FINITE
    import torch

    target, rest = build(options.target)
    if not isinstance(target, torch.nn.Module):
        raise ArgumentError(f"FILE.py:NAME must give a module; got {type(target).__name__}.")
    if saved.left_out:
        print(f"not in the file: {', '.join(saved.left_out)}")
    try:
        culprit = saved.replay(target, _step(target, rest[0] if rest else None))
    except (RuntimeError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise ArgumentError(
            f"the step cannot be run by {options.target}: {type(error).__name__}: {error}"
        ) from error
    if culprit is None:
        print("run again: finite. The code has changed, or the hardware or chance did it.")
        return FINITE
    print(f"run again: {culprit}")
    return FAILED_AGAIN


def _step(model: Any, loss: Any) -> Callable[[Any], Any]:
    from ranum.analysis.capture.lightning import is_lightning_module, lightning_program
    from ranum.analysis.capture.torch import as_loss

    if callable(loss):
        return lambda batch: loss(model, batch)
    if is_lightning_module(model):
        return lambda batch: lightning_program(model, batch).step(batch)

    def call(batch: Any) -> Any:
        model.train()
        if isinstance(batch, dict):
            return as_loss(model(**batch))
        return as_loss(model(*batch) if isinstance(batch, (tuple, list)) else model(batch))

    return call


def _summary(saved: IncidentFile) -> str:
    lines = [
        f"step {saved.step:,}, epoch {saved.epoch}: {saved.finding['message']}",
        f"model: {saved.model}, torch {saved.torch_version}",
    ]
    if saved.culprit is not None:
        lines.append(f"then: {_words(saved.culprit)}")
    lines += [f"  {seen}" for seen in saved.extremes()]
    return "\n".join(lines)


def _words(culprit: Any) -> str:
    if culprit["cause"] != "operator":
        return f"{culprit['outcome']} in {culprit['cause']} {culprit['name']!r}"
    source = culprit["source"]
    where = f"{source['file']}:{source['line']}" if source.get("line") else "an unknown place"
    return f"{culprit['outcome']} from {culprit['op']} at {where} ({culprit['phase']})"
