"""ARCHITECTURE.md and docs/paper_map.md match the code: names, paths, values, folders and imports."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import embedmask
from embedmask.config import PRESETS, DataConfig, ModelConfig, TrainConfig, from_dict
from embedmask.errors import BadInput

SRC = Path(embedmask.__file__).parent
ROOT = Path(__file__).parents[1]
ARCHITECTURE, PAPER_MAP = ROOT / "ARCHITECTURE.md", ROOT / "docs" / "paper_map.md"
DOCS = [ARCHITECTURE, PAPER_MAP]
CONFIGS: tuple[Any, ...] = (ModelConfig, DataConfig, TrainConfig)
DATA_COMMANDS = ("data shapes", "data check", "data show", "data split")
FIGURE_COMMANDS = ("report", "explain", "compare")
COMMANDS = (
    "train",
    "eval",
    "predict",
    "convert",
    "export",
    "recipes",
    "bench",
    *FIGURE_COMMANDS,
    *DATA_COMMANDS,
)
BASE = {"errors", "fields", "config", "structures", "masks", "run_lengths", "files", "unpickling"}
"""Units that all may import, omitted in the table of arrows."""
MODULES = {path: path.relative_to(SRC).with_suffix("").parts for path in sorted(SRC.rglob("*.py"))}


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def assigned(node: ast.stmt) -> list[str]:
    """List the names that a statement of a module or class binds."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    names = [
        part for target in targets for part in (target.elts if isinstance(target, ast.Tuple) else [target])
    ]
    return [name.id for name in names if isinstance(name, ast.Name)]


def defined(body: list[ast.stmt], prefix: str) -> Iterator[str]:
    """Yield the dotted names of the members of a module or class, recursively."""
    for node in body:
        yield from (f"{prefix}.{name}" for name in assigned(node))
        if isinstance(node, ast.ClassDef):
            yield from defined(node.body, f"{prefix}.{node.name}")


def all_names() -> set[str]:
    """Return every qualified name of the package, and every dotted suffix of it."""
    full: set[str] = set()
    for path, parts in MODULES.items():
        module = ".".join(["embedmask", *(parts[:-1] if parts[-1] == "__init__" else parts)])
        full |= {module, module.rpartition(".")[0] or module, *defined(parse(path).body, module)}
    return {".".join(name.split(".")[start:]) for name in full for start in range(name.count(".") + 1)}


def literal_words() -> set[str]:
    """Return the values of all `Literal[...]` annotations, and the names of the presets."""
    words = set(PRESETS)
    for path in MODULES:
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Literal":
                constants = (c.value for c in ast.walk(node.slice) if isinstance(c, ast.Constant))
                words |= {value for value in constants if isinstance(value, str)}
    return words


NAMES, WORDS = all_names(), literal_words()


def without_fences(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def spans(path: Path) -> list[str]:
    """Return all text in backticks outside code blocks."""
    return sorted(set(re.findall(r"`([^`\n]+)`", without_fences(path.read_text(encoding="utf-8")))))


def section(path: Path, title: str) -> str:
    """Return the text of a section, from its heading to the next of level two."""
    match = re.search(
        rf"^## {title}\n(.*?)(?=^## |\Z)", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    assert match is not None, f"{path.name} has no section {title!r}"
    return match[1]


def rows(text: str) -> list[list[str]]:
    """Return the cells of the tables in a text, without headers."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    heads = {index - 1 for index, row in enumerate(cells) if set("".join(row)) <= set("- ")}
    return [row for i, row in enumerate(cells) if i not in heads and i - 1 not in heads]


def is_accepted(field: str, value: str) -> bool:
    """Return whether a config has this field and accepts this value."""
    for config in CONFIGS:
        if field in {f.name for f in dataclasses.fields(config)}:
            try:
                from_dict(config, {field: yaml.safe_load(value)}, where="docs")
            except BadInput:
                return False
            return True
    return False


def is_true(span: str) -> bool:
    """Return whether text in backticks is an existing command, setting, path or name."""
    if span.startswith("embedmask "):
        return span.removeprefix("embedmask ") in COMMANDS
    setting = re.fullmatch(r"(\w+): (.+)", span)
    if setting is not None:
        return is_accepted(setting[1], setting[2])
    if "/" in span or re.search(r"\.(py|md|ya?ml|toml|npz|json)$", span):
        return (ROOT / span).exists() or (SRC / span).exists()
    return span in NAMES or span in WORDS


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.stem)
def test_names_exist(path: Path) -> None:
    named = spans(path)
    assert len(named) > 50
    assert [span for span in named if not is_true(span)] == []


FALSE = """objective/nothing.py docs/none.md nothing.yaml coupling.no_such ModelConfig.lovasz_hinge no_such_name"""


@pytest.mark.parametrize(
    "span", [*FALSE.split(), "margin: predict", "embed_dims: 8", "box_expansion: 0.5", "embedmask fly"]
)
def test_missing_names_are_detected(span: str) -> None:
    assert not is_true(span)


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.stem)
def test_links_exist(path: Path) -> None:
    links = re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8"))
    assert links
    for link in links:
        assert link.startswith("https://") or (path.parent / link.partition("#")[0]).exists(), link


def test_commands_are_those_of_the_command_line() -> None:
    from embedmask.cli.commands import COMMANDS as table

    flat = [
        f"{name} {inner}".rstrip()
        for name, entry in table.items()
        for inner in (entry if isinstance(entry, dict) else [""])
    ]
    assert flat == list(COMMANDS)


def tree() -> dict[Path, str]:
    """Return the paths of the tree in ARCHITECTURE.md with their descriptions."""
    fence = re.search(r"```\n(.*?)```", section(ARCHITECTURE, "The tree"), re.DOTALL)
    assert fence is not None
    described: dict[Path, str] = {}
    folders: dict[int, Path] = {}
    for line in fence[1].splitlines():
        name, description = line.split(maxsplit=1)
        depth = len(line) - len(line.lstrip())
        path = folders.get(depth - 2, ROOT) / name
        if name.endswith("/"):
            folders[depth] = path
        assert path not in described
        described[path] = description
    return described


def test_tree_matches_the_files() -> None:
    described = tree()
    assert [path for path in described if not path.exists()] == []
    # every folder and every file of the package's root has a line, except its entry points
    units = {SRC / parts[0] if len(parts) > 1 else path for path, parts in MODULES.items()}
    assert units - set(described) == {SRC / "__init__.py", SRC / "__main__.py"}
    named = [
        (folder if folder.is_dir() else SRC) / name
        for folder, text in described.items()
        for name in re.findall(r"\b[a-z_]+\.(?:py|md)\b", text)
    ]
    assert len(named) > 30
    assert [path for path in named if not path.exists()] == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_first_line_describes_the_file(path: Path) -> None:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    assert re.match(r'"""[A-Z`_].{15,}', first), f"{path}: begins with {first!r}"


def imports() -> dict[str, set[str]]:
    """Return the imported units of each unit (folder or file of the package's root), without the base."""
    imported: dict[str, set[str]] = defaultdict(set)
    for path, parts in MODULES.items():
        for node in ast.walk(parse(path)):
            if not isinstance(node, ast.ImportFrom):
                continue
            # the files that other projects copy use relative imports
            name = f"embedmask.{node.module}" if node.level == 1 else node.module or ""
            if name.startswith("embedmask."):
                imported[parts[0]].add(name.split(".")[1])
    imported.pop("__init__")
    return {unit: others - {unit} for unit, others in imported.items()}


def test_arrows_match_the_imports() -> None:
    stated: dict[str, set[str]] = {}
    for units, others in rows(section(ARCHITECTURE, "The arrows")):
        for unit in re.findall(r"`(\w+)`", units):
            stated[unit] = set(re.findall(r"`(\w+)`", others))
    imported = imports()
    for unit in {parts[0] for parts in MODULES.values()} - BASE - {"__init__", "__main__"}:
        assert stated[unit] == imported.get(unit, set()) - BASE, f"arrows of {unit}"
    for unit in BASE:
        assert imported.get(unit, set()) <= BASE, f"{unit} is below everything"


def test_versions_match_the_presets() -> None:
    presets = {name: ModelConfig.preset(name) for name in ("paper", "ijcai21", "fused", "fast")}
    table = rows(section(PAPER_MAP, "The versions"))
    for field, *cells, _ in table:
        stated = dict(zip(presets, map(yaml.safe_load, cells), strict=True))
        assert stated == {name: getattr(config, field.strip("`")) for name, config in presets.items()}, field
    listed = {row[0].strip("`") for row in table}
    values = [dataclasses.asdict(config) for config in presets.values()]
    assert {name for name in values[0] if any(other[name] != values[0][name] for other in values)} <= listed
    assert set(PRESETS) == set(presets), "a preset without a column"


def test_all_parts_of_the_paper_are_mapped() -> None:
    first = {title: " ".join(row[0] for row in rows(section(PAPER_MAP, title))) for title in PARTS}
    for title, parts in PARTS.items():
        for part in parts:
            assert re.search(rf"(?<![\w.]){re.escape(part)}(?![\w.])", first[title]), f"{title}: {part}"


PARTS = {
    "Equations": [str(number) for number in range(1, 9)],
    "Sections": ["3.1", "3.2", "3.3", "3.4", "3.5", "3.6", "4.1", "4.2", "4.3"],
    "Figures": ["1", "2", "3", "4"],
    "Tables": ["1", "2a", "2b", "2c", "2d", "2e"],
}
