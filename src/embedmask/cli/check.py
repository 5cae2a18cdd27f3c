"""Printed report of `embedmask data check`."""

from __future__ import annotations

from collections.abc import Iterator

from embedmask.data.check import Report, SplitSummary

NUM_SHOWN = 5
"""Number of problems printed for each type."""
NUM_CLASSES = 40
"""Number of classes printed: those with the most objects."""


def report_lines(report: Report) -> Iterator[str]:
    """Yield a table for each split, the problems by type, and the verdict."""
    for split, summary in report.splits.items():
        yield from _table(split, summary)
        yield ""
    for kind, problems in report.by_kind():
        label = "error" if problems[0].fatal else "warning"
        yield f"{label}: {kind}, {len(problems)}"
        yield from (f"  {problem.message}" for problem in problems[:NUM_SHOWN])
        if len(problems) > NUM_SHOWN:
            yield f"  ... and {len(problems) - NUM_SHOWN} more (--json lists all)"
    errors = sum(problem.fatal for problem in report.problems)
    warnings = len(report.problems) - errors
    verdict = "training would stop" if errors else "training can start"
    yield f"{errors} errors, {warnings} warnings: {verdict}"


def _table(split: str, summary: SplitSummary) -> Iterator[str]:
    """Yield the object counts of a split by class and size."""
    yield f"{split}: {summary.layout}"
    yield f"{summary.num_images} images, {summary.num_empty} without objects, at most {summary.most} in one"
    rows = sorted(summary.counts.items(), key=lambda row: -sum(row[1]))
    width = max([len("class"), *(len(name) for name, _ in rows[:NUM_CLASSES])])
    yield f"{'class':{width}}  {'small':>8}{'medium':>8}{'large':>8}{'all':>8}"
    for name, sizes in rows[:NUM_CLASSES]:
        yield f"{name:{width}}  " + "".join(f"{count:8}" for count in (*sizes, sum(sizes)))
    if len(rows) > NUM_CLASSES:
        yield f"... and {len(rows) - NUM_CLASSES} more classes (--json lists all)"
    if len(rows) > 1:
        sums = [sum(column) for column in zip(*summary.counts.values(), strict=True)]
        yield f"{'all':{width}}  " + "".join(f"{count:8}" for count in (*sums, sum(sums)))
