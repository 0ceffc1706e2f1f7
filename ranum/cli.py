"""The command line: `ranum analyze model.py:Net --input 8,1,28,28`, `ranum fix model.py:Net`."""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ranum import _confirm_command, _replay_command
from ranum._version import __version__
from ranum.errors import ArgumentError, PatchError, RanumError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from ranum.analysis.result import Analysis

OK, FOUND, FAILED = 0, 1, 2
"""Exit codes: nothing certain found, a certain defect found, could not do what was asked."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    Args:
        arguments: Without the program's name; the process's own by default.
    """
    options = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except RanumError as error:
        print(f"ranum: {error}", file=sys.stderr)
        return FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ranum", description="Keeps PyTorch training runs free of NaN and Inf."
    )
    parser.add_argument("--version", action="version", version=f"ranum {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    analyze = commands.add_parser(
        "analyze",
        help="find the operators of a model that can produce NaN or Inf",
        description="Runs one step of a model, bounds every operator in it, and lists those that "
        f"can fail. Exit code: {FOUND} if a failure was confirmed, {FAILED} if there was nothing "
        f"to analyze, else {OK}.",
    )
    _add_program(analyze)
    analyze.add_argument(
        "--save", metavar="PATH", help="also write the analysis to a .html or .json file"
    )
    analyze.set_defaults(run=_analyze)

    _confirm_command.add(commands, _add_program, _analysis)
    _replay_command.add(commands, _build)

    fix = commands.add_parser(
        "fix",
        help="remove the defects of a model from its source",
        description="Analyzes a model as `ranum analyze` does, and shows how each defect is "
        "removed: by another spelling where there is a better one, else by the smallest clip; or "
        "by the loosest ranges of inputs or weights (--where). The patched program is recorded, "
        "analysed and run again. No file is changed without "
        f"--write. Exit code: {OK} if no defect is left, {FOUND} if one is, {FAILED} if there "
        "was nothing to analyze or a file could not be written.",
    )
    _add_program(fix)
    fix.add_argument(
        "--diff",
        action="store_true",
        help="print only the diff, for `git apply`; what else there is to say goes to stderr",
    )
    fix.add_argument(
        "--write",
        action="store_true",
        help="change the files, in one step each; FILE.py.orig keeps the old text",
    )
    fix.add_argument(
        "--no-rewrite",
        dest="rewrite",
        action="store_false",
        help="only clips, no other spellings",
    )
    fix.add_argument(
        "--where",
        default="operators",
        metavar="PLACE",
        help="where the cure goes: operators (the default), or the ranges of inputs, weights, all, "
        "or of some by name or pattern: x, 'encoder.*'; encoder is what that module returns",
    )
    fix.add_argument(
        "--seconds",
        type=float,
        default=30.0,
        help="for the search of ranges (default 30)",
    )
    fix.set_defaults(run=_fix)

    explain = commands.add_parser(
        "explain", help="show the page of a rule", description="Shows the page of a rule."
    )
    explain.add_argument("code", nargs="?", help="RN101, say; without it, all codes are listed")
    explain.set_defaults(run=_explain)
    return parser


def _add_program(analyze: argparse.ArgumentParser) -> None:
    """What is analysed, and how."""
    analyze.add_argument(
        "target",
        metavar="FILE.py:NAME | FILE.onnx | FILE.pt2 | FOLDER",
        help="a module, a class built without arguments, or a function without arguments that "
        "returns a module or a tuple (target, *example_inputs) or (target, DataLoader); "
        "package.module:NAME works too; a compiled Keras model; the folder of a SavedModel; "
        "an ONNX model, analysed forward only; or an exported program, with --trust",
    )
    analyze.add_argument(
        "--input",
        action="append",
        default=[],
        type=_example,
        metavar="SHAPE",
        help="an example input, once per argument of the model: 8,1,28,28 for standard normal "
        "float32 numbers, 8,16:1000 for integers from 0 to 999",
    )
    analyze.add_argument(
        "--size",
        action="append",
        default=[],
        type=_size,
        metavar="NAME=SIZE",
        help="of a named dimension that an ONNX model leaves open, for inputs without --input",
    )
    analyze.add_argument(
        "--range",
        action="append",
        default=[],
        type=_range,
        metavar="NAME=LOW:HIGH",
        help="range of an input by name or pattern, say x=0:1; by default what the examples show",
    )
    analyze.add_argument(
        "--weights",
        action="append",
        default=[],
        type=_weights,
        metavar="LEVEL",
        help="initial, envelope (the default), anything, or a number r for [-r, r]; for some "
        "weights by name or pattern: 'head.*=initial', 'head.*=-1:1'",
    )
    analyze.add_argument(
        "--step",
        choices=("training", "validation"),
        default="training",
        help="which step of a LightningModule (default training)",
    )
    analyze.add_argument(
        "--trust",
        action="store_true",
        help="read .pt2 files, which can run code of whoever wrote them",
    )
    analyze.add_argument(
        "--forward-only", action="store_true", help="leave the gradients out of the analysis"
    )
    analyze.add_argument(
        "--no-confirm",
        dest="confirm",
        action="store_false",
        help="do not look for inputs and weights that make a defect happen",
    )
    analyze.add_argument("--seed", type=int, default=0, help="of the example inputs (default 0)")


def _explain(options: argparse.Namespace) -> int:
    from ranum import pages

    if options.code is None:
        for code, rule in pages.rules().items():
            print(f"{code}  {rule.__name__:<24}{pages.summary(rule)}")
    else:
        print(pages.explain(options.code), end="")
    return OK


def _analyze(options: argparse.Namespace) -> int:
    analysis = _analysis(options)
    print(analysis)
    if options.save:
        print(f"saved {analysis.save(options.save)}")
    return FOUND if any(defect.severity == "certain" for defect in analysis.defects) else OK


def _fix(options: argparse.Namespace) -> int:
    from ranum.repair.clipping import Clips, fix
    from ranum.repair.writing import refusal, write_edits

    analysis = _analysis(options)
    say = functools.partial(print, file=sys.stderr if options.diff else sys.stdout)
    if not analysis.defects:
        say(f"no defect found in {len(analysis.graph.nodes)} operators: nothing to fix")
        return OK
    cures = fix(analysis, options.where, rewrite=options.rewrite, seconds=options.seconds)
    for cure in cures:
        say(cure)
        if cure.reason and cure.is_found:
            say(f"  no diff: {cure.reason}")
    refused = {edit.file: refusal(edit) for edit in cures.edits}
    for reason in filter(None, refused.values()):
        say(f"no diff: {reason}")
    complete = all(cure.edit is not None and not refused[cure.edit.file] for cure in cures)
    if isinstance(cures, Clips):
        kept = [cure for cure in cures if cure.edit is not None and not refused[cure.edit.file]]
        cures = Clips(tuple(kept), analysis)
    elif any(refused.values()) or len(cures.edits) < len(cures.kept):
        return FOUND  # ranges hold together or not at all
    if not cures.edits:
        return FOUND
    found = cures.verify()
    say(f"patched program: {found}")
    for defect in found.remaining:
        say(f"  left: {defect}")
    if options.diff or not options.write:
        print(cures.diff(), end="")
    if options.write:
        if found.problem or found.new:
            raise PatchError(f"Nothing was written: {found}.")
        for path, old in write_edits(cures.edits):
            say(f"wrote {path}; the old text is in {old}")
    return OK if complete and found.is_clean and not found.remaining else FOUND


def _analysis(options: argparse.Namespace) -> Analysis:
    import torch

    from ranum.analysis import analyze

    torch.manual_seed(options.seed)
    made = tuple(make() for make in options.input)
    data: Any = None
    target: Any
    inputs: tuple[Any, ...]
    if options.target.endswith(".onnx"):
        from ranum.analysis.capture.onnx import onnx_program

        target, inputs = onnx_program(options.target, made, sizes=dict(options.size)), ()
    elif options.target.endswith(".pt2"):
        target, inputs = options.target, made
    else:
        if options.size:
            raise ArgumentError("--size is for ONNX models; give --input instead.")
        target, inputs = _build(options.target)
        if len(inputs) == 1 and isinstance(inputs[0], torch.utils.data.DataLoader):
            data, inputs = inputs[0], ()
        inputs = made or inputs
    return analyze(
        target,
        *inputs,
        inputs=dict(options.range),
        weights=_weight_argument(options.weights),
        data=data,
        step=options.step,
        backward=not options.forward_only,
        confirm=options.confirm,
        trust=options.trust,
    )


def _example(text: str) -> Callable[[], torch.Tensor]:
    shape_text, colon, limit_text = text.partition(":")
    try:
        shape = tuple(int(size) for size in shape_text.split(",") if size.strip())
        limit = int(limit_text) if colon else None
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must look like 8,1,28,28 or 8,16:1000; got {text!r}"
        ) from None
    if any(size < 1 for size in shape) or (limit is not None and limit < 1):
        raise argparse.ArgumentTypeError(f"sizes and limit must be positive; got {text!r}")

    def make() -> torch.Tensor:
        import torch

        return torch.randn(shape) if limit is None else torch.randint(limit, shape)

    return make


def _size(text: str) -> tuple[str, int]:
    name, equals, size = text.rpartition("=")
    if not (name and equals and size.isascii() and size.isdigit() and int(size) > 0):
        raise argparse.ArgumentTypeError(f"must look like batch=4; got {text!r}")
    return name, int(size)


def _range(text: str) -> tuple[str, tuple[float, float]]:
    name, equals, ends = text.rpartition("=")
    low, colon, high = ends.partition(":")
    try:
        if not (name and equals and colon):
            raise ValueError
        return name, (float(low), float(high))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must look like x=0:1; got {text!r}") from None


def _weights(text: str) -> tuple[str, Any]:
    name, equals, level = text.rpartition("=")
    if ":" in level and equals:
        return _range(text)
    if level in ("initial", "envelope", "anything"):
        return name, level
    try:
        return name, float(level)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must look like initial, 3, head.*=initial or head.*=-1:1; got {text!r}"
        ) from None


def _weight_argument(chosen: Sequence[tuple[str, Any]]) -> Any:
    """One level for all weights, or ranges and levels by name with that level at the end."""
    usual: Any = next((level for name, level in reversed(chosen) if not name), "envelope")
    named: dict[str, Any] = {name: level for name, level in chosen if name}
    if not named:
        return usual
    ranges = named | {"*": usual}
    return {
        name: (-level, level) if isinstance(level, float) else level
        for name, level in ranges.items()
    }


def _build(spec: str) -> tuple[Any, tuple[Any, ...]]:
    """What `FILE.py:NAME` names: the thing to analyze and, if it brings any, its inputs."""
    import torch

    from ranum.analysis.capture.tensorflow.target import is_keras_model

    if Path(spec).is_dir():
        return spec, ()
    path, colon, name = spec.rpartition(":")
    if not colon or not path or not name:
        raise ArgumentError(f"target must look like model.py:Net; got {spec!r}.")
    module = _attempt(f"importing {path}", lambda: _import(path))
    if not hasattr(module, name):
        public = [key for key, value in vars(module).items() if _is_own(value, module)]
        raise ArgumentError(
            f"{path} has no {name!r}; it defines {', '.join(sorted(public)) or 'nothing'}."
        )
    target = getattr(module, name)
    if not (isinstance(target, torch.nn.Module) or is_keras_model(target)):
        if not callable(target):
            raise ArgumentError(
                f"{name} must be a module, a class or a function; got {type(target).__name__}."
            )
        target = _attempt(f"calling {name}() without arguments", target)
    if isinstance(target, tuple) and target:
        return target[0], target[1:]
    return target, ()


def _import(path: str) -> Any:
    if not path.endswith(".py"):
        sys.path.insert(0, "")
        return importlib.import_module(path)
    file = Path(path).resolve()
    if not file.is_file():
        raise ArgumentError(f"there is no file {path!r}.")
    sys.path.insert(0, str(file.parent))
    name = file.stem if file.stem not in sys.modules else f"{file.stem}_analyzed"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ArgumentError(f"{path!r} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up there
    spec.loader.exec_module(module)
    return module


def _attempt(doing: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except RanumError:
        raise
    except Exception as error:
        from ranum.source import traceback_source

        source = traceback_source(error.__traceback__)
        where = f" at {source}" if source.is_known else ""
        raise ArgumentError(f"{doing} failed{where}: {type(error).__name__}: {error}") from error


def _is_own(value: Any, module: Any) -> bool:
    return getattr(value, "__module__", None) == module.__name__ and hasattr(value, "__name__")


if __name__ == "__main__":
    sys.exit(main())
