"""Weights files on the Hugging Face Hub, by the name `user/model`."""

from __future__ import annotations

import re
import threading
from pathlib import Path

from huggingface_hub import constants, errors, get_session, hf_hub_download, try_to_load_from_cache

from embedmask.errors import BadInput

WEIGHTS = "model.safetensors"
"""Name of the weights file in a repository of the hub, and in a results folder."""
NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
FILE_SUFFIX = re.compile(r"\.(safetensors|pth?|pkl|ckpt|bin|onnx|xml|ya?ml|json)", re.IGNORECASE)
TIMEOUT = 5.0
"""Time limit in seconds for the first response of the hub."""


def is_hub_name(name: str) -> bool:
    """Return whether a name has the form `user/model` and not that of a path: a file's suffix, or a folder `user`."""
    owner, _, model = name.partition("/")
    is_file = FILE_SUFFIX.fullmatch(Path(model).suffix) is not None
    return NAME.fullmatch(name) is not None and not is_file and not Path(owner).is_dir()


def fetch(name: str, *, revision: str | None = None, token: str | None = None) -> Path:
    """Download the weights file of a model of the hub, unless the cache of `huggingface_hub` has it already.

    Without a connection, the cached file is used.

    Args:
        name: `user/model`.
        revision: branch, tag or commit; None: `main`.
        token: access token; None: that of `hf auth login`, if there is one.

    Raises:
        BadInput: there is no such model, revision or file, or it is neither cached nor can it be downloaded.
    """
    hub = constants.ENDPOINT
    try:
        if not constants.HF_HUB_OFFLINE:
            check_connection(hub)
        return Path(hf_hub_download(name, WEIGHTS, revision=revision, token=token))
    except errors.GatedRepoError:
        reason = f"its owner restricts access; accept the terms on {hub}/{name}, then run: hf auth login"
    except errors.RepositoryNotFoundError:
        reason = (
            f"no such file or model, here or on {hub}; check the name; for a private one run: hf auth login"
        )
    except errors.RevisionNotFoundError:
        reason = f"has no revision {revision!r} on {hub}; choose another branch, tag or commit"
    except errors.RemoteEntryNotFoundError:
        reason = f"has no {WEIGHTS} on {hub}; it is not a model of embedmask"
    except errors.HFValidationError as error:
        reason = f"not a name on the hub ({first_line(error)}); write user/model"
    except Exception as error:  # the network and the disk raise errors of several libraries
        cached = try_to_load_from_cache(name, WEIGHTS, revision=revision)
        if isinstance(cached, str):
            return Path(cached)
        reason = (
            f"no such file, and {hub} could not be reached ({first_line(error)}); "
            "check the path or the connection"
        )
    raise BadInput(f"{name}: {reason}")


def first_line(error: Exception) -> str:
    """Return the start of an error's message, or its type if it has none."""
    return str(error).splitlines()[0][:120] if str(error) else type(error).__name__


def check_connection(url: str) -> None:
    """Send one request and raise its error within `TIMEOUT` seconds; the retries of the hub would take a minute."""
    problems: list[BaseException] = [TimeoutError(f"no answer within {TIMEOUT:.0f} s")]

    def request() -> None:
        try:
            get_session().head(url, timeout=TIMEOUT)
            problems.clear()
        except Exception as error:
            problems.insert(0, error)

    # the timeout of the request does not cover the DNS lookup, which may block: wait for a thread instead
    thread = threading.Thread(target=request, daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    if problems:
        raise problems[0]
