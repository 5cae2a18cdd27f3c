"""All scripts in benchmarks/ agree with the names of the package."""

from __future__ import annotations

import subprocess
import sys

from scripts import BENCHMARKS

OWN_ENVIRONMENT = {"stardist_nuclei"}
"""Scripts that need packages which the project does not depend on."""


def test_scripts_are_importable() -> None:
    names = sorted(path.stem for path in BENCHMARKS.glob("*.py") if path.stem not in OWN_ENVIRONMENT)
    assert len(names) > 15
    code = f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); import {', '.join(names)}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
