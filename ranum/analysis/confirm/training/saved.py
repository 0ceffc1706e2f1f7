"""Writes a failing training run: its data, and a script that trains into the failure."""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ranum._untouched import untouched
from ranum.analysis.confirm.saved import Recipe, environment, module_state, recipe_of, written_call
from ranum.analysis.confirm.training.optimizers import hyperparameters
from ranum.analysis.result import Context, Defect, TrainingWitness
from ranum.errors import ArgumentError


def save(witness: TrainingWitness, path: str | Path) -> Path:
    """Writes the data set; see `TrainingWitness.save`."""
    target = Path(path)
    if target.suffix != ".pt":
        raise ArgumentError(f"path must end in .pt; got {str(target)!r}.")
    inputs = _context(witness)[1].program.inputs
    target.parent.mkdir(parents=True, exist_ok=True)
    torch.save(
        {
            "batches": [
                {name: batch.get(name, tensor).detach().clone() for name, tensor in inputs.items()}
                for batch in witness.batches
            ],
            "order": list(witness.order),
            "optimizer": witness.optimizer,
            "seed": witness.seed,
        },
        target,
    )
    return target


def save_script(
    witness: TrainingWitness, path: str | Path, make: str | None, optimizer: str | None
) -> Path:
    """Writes the script, and runs it once to see that it fails.

    Raises:
        ArgumentError: If the path is no Python file, the target or the optimizer cannot be made
            again, or the script that was written does not fail.
    """
    target = Path(path)
    if target.suffix != ".py":
        raise ArgumentError(f"path must end in .py; got {str(target)!r}.")
    defect, context = _context(witness)
    if context.program.origin is not None or context.program.flush_to_zero:
        raise ArgumentError(
            "path must end in .pt, with save: scripts are written for torch programs only."
        )
    how = recipe_of(context, target.parent, make)
    named = _places(how, context)
    text = _text(defect, context, witness, how, _optimizer(witness, named, optimizer, target))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    beside = target.with_suffix(".pt")
    batches = [context.program.batch(dict(batch)) for batch in witness.batches]
    torch.save((module_state(how, context, witness.start), batches, list(witness.order)), beside)
    problem = _problem(text, target, how)
    if problem:
        target.unlink()
        beside.unlink()
        raise ArgumentError(
            f"make must return what was analysed, so that it fails again; {problem}"
        )
    return target


def _context(witness: TrainingWitness) -> tuple[Defect, Context]:
    if witness.defect is None or witness.defect.context is None:
        raise ArgumentError(
            "witness must come from confirm_training; this one has lost its defect."
        )
    return witness.defect, witness.defect.context


def _places(how: Recipe, context: Context) -> dict[str, str]:
    """For each parameter of the program, the expression that finds it in the script."""
    found: dict[int, str] = {}
    for expression, module in how.holders.items():
        for name, parameter in module.named_parameters():
            found.setdefault(id(parameter), f"{expression}.get_parameter({name!r})")
    places = {
        name: found[id(parameter)]
        for name, parameter in context.program.parameters.items()
        if id(parameter) in found
    }
    if len(places) < len(context.program.parameters):
        raise ArgumentError("make must be given: some weights belong to no module of the target.")
    return places


def _optimizer(
    witness: TrainingWitness, named: Mapping[str, str], given: str | None, target: Path
) -> str:
    """The expression that makes the optimizer."""
    if not named:
        return "None"
    if given is not None:
        module, separator, function = given.partition(":")
        if not separator or not callable(getattr(importlib.import_module(module), function, None)):
            raise ArgumentError(f"optimizer must be 'module:function'; got {given!r}.")
        return f"importlib.import_module({module!r}).{function}([{', '.join(named.values())}])"
    context = _context(witness)[1]
    made = witness.recipe.make(context.program.parameters)
    kind = type(made)
    if getattr(torch.optim, kind.__name__, None) is not kind:
        raise ArgumentError(
            "optimizer must be given as 'module:function', a function from parameters to the "
            f"optimizer: {kind.__name__} is none of torch.optim's."
        )
    names = {id(p): name for name, p in context.program.parameters.items()}
    groups = []
    for group in made.param_groups:
        parameters = ", ".join(named[names[id(p)]] for p in group["params"])
        settings = hyperparameters(kind, group)
        groups.append((f"[{parameters}]", settings))
    if len(groups) == 1:
        parameters, settings = groups[0]
        written = "".join(f", {key}={value!r}" for key, value in settings.items())
        return f"torch.optim.{kind.__name__}({parameters}{written})"
    written = ", ".join(
        "{" + ", ".join([f'"params": {parameters}', *(f"{k!r}: {v!r}" for k, v in s.items())]) + "}"
        for parameters, s in groups
    )
    return f"torch.optim.{kind.__name__}([{written}])"


def _text(
    defect: Defect, context: Context, witness: TrainingWitness, how: Recipe, optimizer: str
) -> str:
    source = defect.source
    text: str = (
        environment()
        .get_template("training.py.jinja")
        .render(
            code=defect.code,
            expression=" ".join((source.expression or defect.op).split()),
            place=f"{Path(source.file).name}:{source.line}",
            outcome=witness.outcome.replace("gradient not finite", "a gradient that is not finite"),
            steps=witness.steps,
            root=repr(how.root),
            module=repr(how.module),
            target=how.target,
            holders=list(how.holders),
            op=defect.op,
            call=written_call(how),
            optimizer=optimizer,
            words=witness.optimizer,
            gradient_only=defect.gradient_only,
            seed=witness.seed,
        )
    )
    return text


def _problem(text: str, path: Path, how: Recipe) -> str:
    """Why the script does not do what it is for; "" if it trains into the failure."""
    space: dict[str, Any] = {"__file__": str(path.resolve()), "__name__": path.stem}
    searched = list(sys.path)
    said = io.StringIO()
    kept = nn.ModuleList(how.holders.values()) if how.is_shared else None
    try:
        with untouched(kept), torch.enable_grad(), contextlib.redirect_stdout(said):
            exec(compile(text, str(path), "exec"), space)
            code = space["main"]()
    except Exception as error:
        return f"the script raised {type(error).__name__}: {error}"
    finally:
        sys.path[:] = searched
    if code == 1:
        return ""
    return f"the script says: {said.getvalue().strip().splitlines()[-1]}"
