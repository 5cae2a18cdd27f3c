"""The arrows of ARCHITECTURE.md, read from the imports: who may know whom, and who may do what."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import embedmask
from embedmask.cli.threads import OPENMP_VARIABLES

ROOT = Path(embedmask.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
MAX_LINES = 400

RANKS = {
    "errors": 0,
    "fields": 1,
    "run_lengths": 1,
    "masks": 2,
    "structures": 3,
    "config": 2,
    "files": 1,
    "unpickling": 1,
    "_supervision": 1,
    "device": 4,
    "distributed": 4,
    "runtime_file": 4,
    "runtime_masks": 3,
    "runtime": 5,
    "locations": 4,
    "coupling": 4,
    "anchors": 4,
    "objective.losses": 4,
    "visualize": 4,
    "model": 5,
    "data": 5,
    "synthetic": 5,
    "weights": 6,
    "objective": 7,
    "inference": 7,
    "benchmark": 8,
    "evaluation": 8,
    "samples": 8,
    "figures": 9,
    "machine": 4,
    "run_table": 4,
    "export": 9,
    "predict": 9,
    "napari": 9,
    "training": 9,
    "demo": 10,
    "cli": 11,
    "__main__": 12,
    "": 12,
}
"""A module may import its own unit and units of a lower rank: those of one rank do not know each other."""
COPIED = ("runtime", "runtime_file", "runtime_masks")
"""Files that other projects copy: they import each other by relative imports and nothing else of the package."""


def module_name(path: Path) -> str:
    """Dotted name inside the package; "" for the package itself."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def unit(module: str) -> str:
    """The longest prefix of a module's name that has a rank."""
    parts = module.split(".")
    prefixes = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in RANKS), "" if module == "" else parts[0])


def imported(tree: ast.AST, *, relative: bool = False) -> Iterator[str]:
    """Absolute names of all imported modules, inside functions too; `relative` imports are of files beside it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level == 1 and relative:
                continue
            assert node.level == 0, f"line {node.lineno}: relative import"
            assert node.module is not None
            # "from embedmask import config" names a module, "from embedmask.config import X" an object of one
            if node.module == "embedmask":
                names = [alias.name for alias in node.names if alias.name != "__version__"]
                yield from (f"embedmask.{name}" for name in names)
            else:
                yield node.module


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    yield from (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: module_name(path) or "embedmask")


def test_every_file_has_a_rank() -> None:
    assert {unit(module_name(path)) for path in FILES} <= set(RANKS)
    assert unit("objective.losses") == "objective.losses"
    assert unit("objective.criterion") == unit("objective") == "objective"


@each_file
def test_arrows(path: Path) -> None:
    own = unit(module_name(path))
    for name in imported(parse(path), relative=own in COPIED):
        if name.split(".")[0] != "embedmask":
            continue
        assert own not in COPIED, f"the file is copied into other projects: it must not import {name}"
        other = unit(name.removeprefix("embedmask").removeprefix("."))
        assert other == own or RANKS[other] < RANKS[own], f"{own or 'embedmask'} must not import {name}"


@each_file
def test_only_the_command_line_talks(path: Path) -> None:
    # runtime works without the package, and so without its command line
    if unit(module_name(path)) in ("cli", "runtime"):
        return
    tree = parse(path)
    printing = [
        c.lineno for c in calls(tree) if isinstance(c.func, ast.Name) and c.func.id in ("print", "exit")
    ]
    assert printing == [], "print outside cli"
    names = imported(tree, relative=module_name(path) in COPIED)
    parsers = {name.split(".")[0] for name in names} & {"argparse", "jsonargparse"}
    assert parsers == set(), "argument parsing outside cli"


@each_file
def test_devices_are_chosen_not_assumed(path: Path) -> None:
    if unit(module_name(path)) in ("cli", "training"):
        return
    found = [
        c.lineno for c in calls(parse(path)) if isinstance(c.func, ast.Attribute) and c.func.attr == "cuda"
    ]
    assert found == [], ".cuda() outside cli and training; use .to(device)"


@each_file
def test_public_functions_are_annotated(path: Path) -> None:
    for node in ast.walk(parse(path)):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or node.name.startswith("_"):
            continue
        given = node.args
        arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
        bare = [a.arg for a in arguments if a and a.annotation is None and a.arg not in ("self", "cls")]
        assert bare == [], f"{node.name}: {bare}"
        assert node.returns is not None, f"{node.name} does not say what it returns"


@each_file
def test_files_fit_in_a_head(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{lines} lines: make it two files"


@each_file
def test_torch_files_are_read_with_weights_only(path: Path) -> None:
    for call in calls(parse(path)):
        if isinstance(call.func, ast.Attribute) and ast.unparse(call.func) == "torch.load":
            assert "weights_only=True" in ast.unparse(call)


def test_predicting_needs_no_extra() -> None:
    """What the `train` extra brings is not imported before it is used."""
    script = (
        "import sys\n"
        "for name in ('lightning', 'matplotlib', 'tensorboard', 'pycocotools'): sys.modules[name] = None\n"
        "import embedmask, embedmask.visualize, embedmask.evaluation.run, embedmask.cli\n"
        "for name in embedmask.__all__: getattr(embedmask, name)\n"
        f"import os; assert not set(os.environ) & set({OPENMP_VARIABLES!r}), 'imports change the environment'\n"
    )
    plain = {name: value for name, value in os.environ.items() if name not in OPENMP_VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", script], env=plain, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
