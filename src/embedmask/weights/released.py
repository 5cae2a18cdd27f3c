"""The models that come with the package: found by name, as recipes are."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from embedmask.errors import BadInput
from embedmask.fields import nearest


def find_weights(path: str | Path) -> Path:
    """A weights file, or the released model of that name, `nuclei`; a file of that name comes first.

    Raises:
        BadInput: neither; the released models are named.
    """
    path = Path(path)
    if path.is_file():
        return path
    released = models_folder() / f"{path.name.removesuffix('.safetensors')}.safetensors"
    if path.name == str(path) and released.is_file():
        return released
    names = released_names()
    hint = nearest(str(path), names) if path.name == str(path) else ""
    raise no_weights(path, f"{hint}; models that come with the package: {', '.join(names)}")


def no_weights(path: Path, hint: str = "") -> BadInput:
    """What to raise where a weights file was asked for and there is none."""
    if path.is_dir():
        return BadInput(f"{path}: a folder; give the weights file in it")
    return BadInput(f"{path}: no such weights file{hint}")


def released_names() -> list[str]:
    """The models that come with the package."""
    return sorted(path.stem for path in models_folder().glob("*.safetensors"))


def models_folder() -> Path:
    """Where the released models and their cards lie."""
    return Path(str(resources.files("embedmask"))) / "models"
