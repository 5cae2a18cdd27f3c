"""`Shared`: methods that load and share a predictor through the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from embedmask.model.detector import Detector
from embedmask.weights import hub, sharing
from embedmask.weights.released import find_weights


class Shared:
    """Base class of `Predictor`, with the names that users of the hub expect."""

    model: Detector
    class_names: list[str]

    @classmethod
    def load(cls, path: str | Path, *args: Any, **options: Any) -> Self:
        """Load a model; see `Predictor.load`."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, revision: str | None = None, token: str | None = None, **options: Any
    ) -> Self:
        """Load a model of the hub, or from a folder that `save_pretrained` wrote.

        Args:
            name: `user/model`, or any other name that `load` takes.
            revision: branch, tag or commit of the model on the hub; None: `main`.
            token: access token for a private model; None: that of `hf auth login`.
            options: of `load`: `device`, `precision`, `engine`.

        Raises:
            BadInput: as `load`; there is no such model or revision, or the hub cannot be reached.
        """
        is_remote = revision is not None or token is not None
        path = hub.fetch(str(name), revision=revision, token=token) if is_remote else find_weights(name)
        return cls.load(path, **options)

    def save_pretrained(self, folder: str | Path, **contents: Any) -> None:
        """Write weights, config and model card to a folder; `contents` as in `weights.sharing.save_pretrained`."""
        sharing.save_pretrained(self.model, folder, **{"class_names": self.class_names, **contents})

    def push_to_hub(
        self, name: str, *, private: bool | None = None, token: str | None = None, **contents: Any
    ) -> str:
        """Send weights, config and model card to the hub; return the address of the commit.

        See `weights.sharing.push_to_hub` for the arguments and errors.
        """
        contents = {"class_names": self.class_names, **contents}
        return sharing.push_to_hub(self.model, name, private=private, token=token, **contents)
