"""Measure the command line's OpenMP setting: its cost on an idle machine, its gain beside another job.

python benchmarks/threads.py                # 3 rounds; the other job is a busy loop per core, started by this script

Each run is a separate process that trains a small network. The script prints wall and processor seconds of each run,
and the ratios of their medians: on an idle machine to torch's own setting, beside another job to one thread.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from embedmask.cli.threads import OPENMP_SLEEP, OPENMP_VARIABLES

SETTINGS: dict[str, dict[str, str]] = {
    "one thread": {"OMP_NUM_THREADS": "1"},
    "torch's own": {},
    "command line": OPENMP_SLEEP,
}
WARMUP = 2


def train(steps: int) -> None:
    """Train the network of recipe `shapes` on random images; print wall and processor seconds as JSON."""
    import torch

    from embedmask.config.bundled import resolve_recipe
    from embedmask.model.build import build_model
    from embedmask.objective.criterion import Criterion
    from embedmask.structures import Target

    torch.manual_seed(0)
    config = resolve_recipe("shapes", {}).model
    model, criterion = build_model(config), Criterion.from_config(config)
    optimizer = torch.optim.AdamW(model.parameters())
    images = [torch.randint(0, 256, (3, 160, 160), dtype=torch.uint8) for _ in range(8)]
    mask = torch.zeros(1, 160, 160, dtype=torch.bool)
    mask[:, 40:100, 40:100] = True
    target = Target(boxes=torch.tensor([[40.0, 40, 100, 100]]), labels=torch.tensor([0]), masks=mask)
    for step in range(WARMUP + steps):
        # the first steps allocate memory and start threads
        if step == WARMUP:
            wall, processor = time.perf_counter(), time.process_time()
        optimizer.zero_grad()
        criterion(model(model.preprocess(images)), [target] * 8).total.backward()
        optimizer.step()
    print(json.dumps({"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}))


def measure(setting: dict[str, str], steps: int) -> dict[str, float]:
    """Run `train` in a separate process, in an environment with this setting and no other."""
    plain = {
        k: v
        for k, v in os.environ.items()
        if k not in (*OPENMP_VARIABLES, "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    }
    # OpenMP reads its settings once, when it is loaded: hence a new process per run
    done = subprocess.run(
        [sys.executable, __file__, "--child", "--steps", str(steps)],
        env={**plain, **setting}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def spin() -> None:
    """Keep a core busy."""
    while True:
        pass


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Run busy loops in separate processes."""
    loops = [multiprocessing.Process(target=spin, daemon=True) for _ in range(count)]
    for loop in loops:
        loop.start()
    try:
        yield
    finally:
        for loop in loops:
            loop.terminate()


def median(runs: list[dict[str, float]], clock: str) -> float:
    """Return the median seconds of a clock, "wall" or "processor"."""
    return statistics.median(run[clock] for run in runs)


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--busy", type=int, default=len(os.sched_getaffinity(0)), help="busy loops")
    parser.add_argument("--spin", nargs="*", default=[], help="other values of GOMP_SPINCOUNT to try")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure every setting alone and beside the busy loops, interleaved."""
    args = parse()
    if args.child:
        train(args.steps)
        return
    settings = {**SETTINGS, **{f"spin {turns}": {"GOMP_SPINCOUNT": turns} for turns in args.spin}}
    loads = {"alone": 0, f"beside {args.busy} busy loops": args.busy}
    # interleaved, and in the opposite order every other round: drift of the machine affects all settings alike
    runs: dict[tuple[str, str], list[dict[str, float]]] = {}
    for turn in range(args.rounds):
        for load, count in loads.items():
            for name, setting in list(settings.items())[:: 1 if turn % 2 else -1]:
                with busy(count):
                    seconds = measure(setting, args.steps)
                runs.setdefault((load, name), []).append(seconds)
                wall, processor = seconds["wall"], seconds["processor"]
                print(f"{load:24}{name:16}{wall:8.2f} s wall {processor:8.2f} s processor", flush=True)
    for load, reference in zip(loads, ("torch's own", "one thread"), strict=True):
        for name in settings:
            wall, processor = (
                median(runs[load, name], clock) / median(runs[load, reference], clock)
                for clock in ("wall", "processor")
            )
            print(
                f"{load}: {name}: {wall:.2f} of the wall time of {reference}, {processor:.2f} of its processor time"
            )


if __name__ == "__main__":
    main()
