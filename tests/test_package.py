"""The package as a whole: its floors, its lazy names, its dependencies, its version."""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ranum

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ranum"

# Which parts of the package a part may import, besides itself. A part is the longest prefix
# that is listed; a part that is not listed is on the top floor, where everything is allowed.
BASEMENT = ("ranum._dispatch", "ranum._untouched", "ranum._version", "ranum.errors", "ranum.source")
GROUND = ("ranum.analysis", "ranum.guards")
ALLOWED = {
    **dict.fromkeys(BASEMENT, BASEMENT),
    **dict.fromkeys(GROUND, BASEMENT),
    "ranum.repair": (*BASEMENT, *GROUND),
    "ranum.report": (*BASEMENT, *GROUND),
}

# Where the packages that not everybody has may be imported.
ADAPTERS = {
    "lightning": ("ranum.callbacks", "ranum.analysis.capture.lightning"),
    "pytorch_lightning": ("ranum.callbacks", "ranum.analysis.capture.lightning"),
    "keras": ("ranum.analysis.capture.tensorflow", "ranum.callbacks._keras"),
    "tensorflow": ("ranum.analysis.capture.tensorflow", "ranum.callbacks._keras"),
    "onnx": ("ranum.analysis.capture.onnx",),
    "optuna": ("ranum.repair.search",),
    "scipy": ("ranum.repair",),
    "tensorboard": ("ranum.report", "ranum.callbacks"),
    "torch.utils.tensorboard": ("ranum.report", "ranum.callbacks"),
    "rich": ("ranum.report",),
    "jinja2": ("ranum.report", "ranum.analysis.confirm.saved"),
}
EXTRAS = {
    "keras": "keras",
    "lightning": "lightning",
    "pytorch_lightning": "lightning",
    "onnx": "onnx",
    "optuna": "repair",
    "tensorboard": "tensorboard",
    "tensorflow": "tensorflow",
    "transformers": "huggingface",
}


def module_name(file: Path, root: Path) -> str:
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(file: Path, root: Path):
    """Every module that a file imports, at any depth, with the line; type checking included."""
    name = module_name(file, root)
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *filter(None, [base])])
            for alias in node.names:
                yield f"{base}.{alias.name}", node.lineno


def within(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def broken_arrows(root: Path = ROOT) -> list[str]:
    """Imports that go up or sideways between the floors, or that escape their adapter."""
    found = []
    for file in sorted((root / "ranum").rglob("*.py")):
        name = module_name(file, root)
        part = next((part for part in ALLOWED if within(name, part)), None)
        for target, line in imports(file, root):
            place = f"{file.relative_to(root)}:{line} imports {target}"
            if within(target, "ranum") and part is not None:
                allowed = (part, *ALLOWED[part])
                if not any(within(target, other) for other in allowed):
                    found.append(place)
            for foreign, homes in ADAPTERS.items():
                if within(target, foreign) and not any(within(name, home) for home in homes):
                    found.append(place)
    return found


def test_arrows_go_down_only():
    assert broken_arrows() == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("analysis/a.py", "from ranum.guards.types import Reading"),
        ("analysis/a.py", "from ranum.repair import clipping"),
        ("analysis/a.py", "from ranum import report"),
        ("analysis/a.py", "from ranum import Guard"),
        ("analysis/deep/a.py", "from ...guards import types"),
        ("guards/a.py", "import ranum.analysis.interval as interval"),
        ("guards/a.py", "def f():\n    from ranum.callbacks import lightning"),
        ("guards/a.py", "if TYPE_CHECKING:\n    from ranum.analysis import Analysis"),
        ("guards/a.py", "import optuna"),
        ("repair/a.py", "from ranum.callbacks import lightning"),
        ("repair/a.py", "from ranum.report import write_html"),
        ("report/a.py", "from ranum.repair import patch"),
        ("analysis/a.py", "from torch.utils.tensorboard import SummaryWriter"),
        ("source.py", "from ranum.analysis import graph"),
        ("errors.py", "from . import guards"),
        ("cli.py", "import lightning.pytorch"),
    ],
)
def test_broken_arrow_is_found(tmp_path, file, line):
    planted = tmp_path / "ranum" / file
    planted.parent.mkdir(parents=True, exist_ok=True)
    planted.write_text(line)
    assert len(broken_arrows(tmp_path)) == 1


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("analysis/a.py", "from ranum.analysis.interval import Interval"),
        ("analysis/a.py", "from . import interval"),
        ("guards/a.py", "from ranum.source import Source"),
        ("repair/a.py", "from ranum.analysis import graph\nfrom ranum.guards import types"),
        ("repair/search/a.py", "import optuna"),
        ("callbacks/lightning.py", "import lightning\nfrom ranum.report import write_html"),
        ("source.py", "from ranum.errors import RanumError"),
        ("guards/a.py", "import torch"),
    ],
)
def test_good_arrow_is_left_alone(tmp_path, file, line):
    planted = tmp_path / "ranum" / file
    planted.parent.mkdir(parents=True, exist_ok=True)
    planted.write_text(line)
    assert broken_arrows(tmp_path) == []


# --- dependencies --------------------------------------------------------------------------


def requirements() -> dict[str, set[str]]:
    """Import names by extra; the core is ""."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lists = dict(config["options.extras_require"], **{"": config["options"]["install_requires"]})
    return {
        extra: {re.split(r"[\[<>=~! ;]", line, maxsplit=1)[0].replace("-", "_") for line in text}
        for extra, text in ((extra, text.split("\n")[1:]) for extra, text in lists.items())
    }


def test_imports_are_declared_and_declarations_are_used():
    core = requirements()[""]
    used = {
        target.partition(".")[0]
        for file in PACKAGE.rglob("*.py")
        for target, _ in imports(file, ROOT)
    }
    used -= set(sys.stdlib_module_names) | {"ranum", "__future__"}
    assert used - core <= set(EXTRAS), "declare it in setup.cfg, or in EXTRAS here"
    assert core <= used, "nothing imports it: drop it from install_requires"


def test_each_extra_installs_what_it_is_for():
    declared = requirements()
    missing = {
        package
        for package, extra in EXTRAS.items()
        if not {package, f"pytorch_{package}"} & declared[extra]
    }
    assert missing == set()


def test_pinned_tools_agree():
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    )
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    versions = re.findall(r"\b(ruff)==([\w.]+)", hooks)
    assert versions
    assert all(pins[tool] == version for tool, version in versions)
    assert not any("+" in version for version in pins.values()), "a local label fits one machine"


# --- names ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ranum.__all__)
def test_public_name_resolves(name):
    value = getattr(ranum, name)
    assert name in dir(ranum)
    assert name == "__version__" or value.__doc__


def test_type_checkers_see_the_same_homes():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == ranum._HOMES
    assert set(seen) < set(ranum.__all__)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        _ = ranum.no_such_name


def test_version_is_one():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert config["metadata"]["version"] == "attr: ranum._version.__version__"
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", ranum.__version__)
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {ranum.__version__}" in changelog
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version: {ranum.__version__}\n" in citation


# --- import cost ---------------------------------------------------------------------------


def loaded_by(statement: str) -> set[str]:
    """Top-level modules in `sys.modules` after a statement, in a fresh interpreter."""
    code = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stdout.split())


OPTIONAL = {
    "keras",
    "tensorflow",
    "lightning",
    "pytorch_lightning",
    "onnx",
    "optuna",
    "tensorboard",
    "sklearn",
    "scipy",
}


def test_importing_ranum_loads_nothing_heavy():
    heavy = {"torch", "numpy", "jinja2", "rich", *OPTIONAL}
    assert heavy & loaded_by("import ranum") == set()


def test_analysis_and_guard_load_nothing_optional():
    loaded = loaded_by("import ranum; ranum.analyze, ranum.Guard")
    assert "torch" in loaded
    assert {"jinja2", "rich", *OPTIONAL} & loaded == set()


def test_loading_is_noticed():
    assert "rich" in loaded_by("import ranum, rich")


# --- no machine's paths --------------------------------------------------------------------

MACHINE_PATH = re.compile(r"(?<![\w.~}])/(?:home|root|tmp|work|Users|opt)/\w|\b[A-Z]:\\\\?\w")


def machine_paths(root: Path) -> list[str]:
    found = []
    for folder in ("ranum", "examples", "docs", "benchmarks", "."):
        files = (root / folder).glob("*") if folder == "." else (root / folder).rglob("*")
        for file in files:
            if file.suffix in {".py", ".md", ".cfg", ".toml", ".txt", ".j2", ".html", ".ini"}:
                text = file.read_text(encoding="utf-8")
                found += [
                    f"{file.relative_to(root)}:{number}: {line.strip()}"
                    for number, line in enumerate(text.splitlines(), 1)
                    if MACHINE_PATH.search(line)
                ]
    return found


def test_no_machine_path_in_the_product():
    assert machine_paths(ROOT) == []


@pytest.mark.parametrize("path", ["/" + "home/me/x", "/" + "tmp/log", "C:" + r"\models"])
def test_machine_path_is_found(tmp_path, path):
    (tmp_path / "ranum").mkdir()
    (tmp_path / "ranum" / "a.py").write_text(f'FILE = "{path}"\n')
    assert len(machine_paths(tmp_path)) == 1


# --- documents -----------------------------------------------------------------------------


def dead_references(root: Path) -> list[str]:
    """Files of the repository that a document names or links to, but that do not exist."""
    found = []
    for document in (*root.glob("*.md"), *(root / "docs").rglob("*.md")):
        text = document.read_text(encoding="utf-8")
        named = re.findall(r"`((?:ranum|tests|docs|examples|benchmarks)/[\w./-]+)`", text)
        linked = re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", text)
        found += [f"{document.name}: {name}" for name in named if not (root / name).exists()]
        found += [
            f"{document.name}: {name}" for name in linked if not (document.parent / name).exists()
        ]
    return found


def test_documents_name_files_that_exist():
    assert dead_references(ROOT) == []


@pytest.mark.parametrize("text", ["see `ranum/gone.py`", "[decisions](docs/gone.md)"])
def test_dead_reference_is_found(tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    assert len(dead_references(tmp_path)) == 1
