"""All scripts in benchmarks/ agree with the names of the package."""

from __future__ import annotations

from scripts import BENCHMARKS, load_script

OWN_ENVIRONMENT = {"stardist_nuclei"}
"""Scripts that need packages which the project does not depend on."""


def test_scripts_are_importable() -> None:
    names = sorted(path.stem for path in BENCHMARKS.glob("*.py") if path.stem not in OWN_ENVIRONMENT)
    assert len(names) > 15
    for name in names:
        load_script(name)
