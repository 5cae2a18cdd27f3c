"""Released models that are part of the package, by name."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from embedmask.errors import BadInput
from embedmask.fields import nearest


def find_weights(path: str | Path) -> Path:
    """Return the path of a weights file or of a released model such as `nuclei`; an existing file takes precedence.

    Raises:
        BadInput: there is neither; the message lists the released models.
    """
    path = Path(path)
    if path.is_file():
        return path
    released = models_folder() / f"{path.name.removesuffix('.safetensors')}.safetensors"
    if path.name == str(path) and released.is_file():
        return released
    names = released_names()
    hint = nearest(str(path), names) if path.name == str(path) else ""
    raise missing_weights_error(path, f"{hint}; released models: {', '.join(names)}")


def missing_weights_error(path: Path, hint: str = "") -> BadInput:
    """Return the error for a missing weights file."""
    if path.is_dir():
        return BadInput(f"{path}: a folder; give the weights file in it")
    return BadInput(f"{path}: no such weights file{hint}")


def released_names() -> list[str]:
    """Return the names of the released models."""
    return sorted(path.stem for path in models_folder().glob("*.safetensors"))


def models_folder() -> Path:
    """Return the folder of the released models and their cards."""
    return Path(str(resources.files("embedmask"))) / "models"
