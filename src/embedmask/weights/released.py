"""The resolver of weights: a local path, the name of a bundled model, or a name on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from embedmask.errors import BadInput
from embedmask.fields import nearest
from embedmask.files import bundled_folder
from embedmask.weights.hub import WEIGHTS, fetch, is_hub_name


def find_weights(path: str | Path) -> Path:
    """Return the path of a weights file.

    Args:
        path: a file; else a folder with a `model.safetensors`, as training writes; else the name of a bundled model
            such as `nuclei`; else a model of the Hugging Face Hub, `user/model`, which is downloaded once.

    Raises:
        BadInput: there is none of these; the message lists the bundled models, or has the reason of the hub.
    """
    path = Path(path)
    for file in (path, path / WEIGHTS):
        if file.is_file():
            return file
    name = path.as_posix()
    if path.name == name:
        released = models_folder() / f"{path.name}.safetensors"
        if released.is_file():
            return released
    elif is_hub_name(name) and not path.exists():
        return fetch(name)
    names = released_names()
    hint = nearest(path.stem, names) if path.name == name else ""
    raise missing_weights_error(path, f"{hint}; released models: {', '.join(names)}")


def missing_weights_error(path: Path, hint: str = "") -> BadInput:
    """Return the error for a missing weights file."""
    if path.is_dir():
        return BadInput(f"{path}: a folder without {WEIGHTS}; give the weights file")
    return BadInput(f"{path}: no such weights file{hint}")


def released_names() -> list[str]:
    """Return the names of the released models."""
    return sorted(path.stem for path in models_folder().glob("*.safetensors"))


def models_folder() -> Path:
    """Return the folder of the released models and their cards."""
    return bundled_folder("models")
