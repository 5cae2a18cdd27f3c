"""One `openvino.Core` for the process: others, freed in the order of their creation, end it at the next signal."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = """
import gc, signal, sys
from embedmask.runtime import Session

first, second = (Session(sys.argv[1], threads=1) for _ in range(2))
del first
gc.collect()
del second
gc.collect()
signal.signal(signal.SIGCHLD, lambda *_: print("handled"))
signal.raise_signal(signal.SIGCHLD)
"""


def test_a_signal_after_two_sessions_is_handled(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    if not hasattr(signal, "SIGCHLD"):
        pytest.skip("this system has no SIGCHLD")
    operators = openvino.opset13
    images = operators.parameter([1, 3, 8, 8], np.float32, name="images")
    openvino.save_model(openvino.Model([operators.relu(images)], [images]), tmp_path / "model.xml")
    words = [sys.executable, "-c", SCRIPT, str(tmp_path / "model.xml")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
