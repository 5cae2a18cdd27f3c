"""Loss normalizers over two processes: each loss equals that of one process on all images."""

from __future__ import annotations

import socket
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from small_models import no_objects, random_predictions, random_rectangles, small_config
from torch import distributed, multiprocessing

from embedmask import Criterion, Predictions, Target
from embedmask.config import PRESETS

SIZE = (64, 64)
RANKS = 2
COUNTS = {"both see objects": (5, 2), "one sees none": (4, 0), "none sees any": (0, 0)}
CASES = [f"{preset}: {case}" for preset in PRESETS for case in COUNTS]

pytestmark = pytest.mark.skipif(
    not distributed.is_available(), reason="this torch has no distributed package"
)


def part(rank: int, count: int) -> tuple[Predictions, Target]:
    """Return the batch of process `rank`: one image of `count` objects."""
    target = random_rectangles(count, SIZE, seed=rank) if count else no_objects(SIZE)
    predictions = random_predictions(SIZE, seed=10 + rank)
    predictions.semantic_logits = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(rank))
    return predictions, target


def criterion(case: str) -> Criterion:
    """Build the criterion of a case."""
    return Criterion.from_config(small_config(preset=case.partition(":")[0], embed_dim=4))


def counts_of(case: str) -> tuple[int, int]:
    """Return the number of objects of each process."""
    return COUNTS[case.partition(": ")[2]]


def joined(counts: tuple[int, ...]) -> tuple[Predictions, list[Target]]:
    """Return the images of all processes as one batch."""
    parts = [part(rank, count) for rank, count in enumerate(counts)]
    names = ("class_logits", "box_ltrb", "centerness_logits", "proposal_embed", "proposal_margin")
    maps = {
        name: [torch.cat(level) for level in zip(*(getattr(p, name) for p, _ in parts), strict=True)]
        for name in names
    }
    pixel_embed = torch.cat([p.pixel_embed for p, _ in parts])
    whole = Predictions(**maps, pixel_embed=pixel_embed, strides=parts[0][0].strides)
    whole.semantic_logits = torch.cat([p.semantic_logits for p, _ in parts if p.semantic_logits is not None])
    return whole, [target for _, target in parts]


def spawned_work(index: int, store: str, out: str) -> None:
    """Run `work` in a spawned process; the test process itself is rank 0, because starting is slow."""
    torch.set_num_threads(1)
    work(index + 1, store, out)


def work(rank: int, store: str, out: str) -> None:
    """Compute and save the losses of every case in one process, and check its gradients."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS, timeout=timedelta(seconds=90)
    )
    try:
        losses = {case: case_losses(case, rank) for case in CASES}
    finally:
        distributed.destroy_process_group()
    torch.save(losses, Path(out) / f"{rank}.pt")


def case_losses(case: str, rank: int) -> dict[str, float]:
    """Return the terms of one process and check that gradients are finite."""
    predictions, target = part(rank, counts_of(case)[rank])
    predictions.box_ltrb = [m.requires_grad_() for m in predictions.box_ltrb]
    losses = criterion(case)(predictions, [target])
    losses.total.backward()
    assert all(m.grad is not None and m.grad.isfinite().all() for m in predictions.box_ltrb)
    return {term: value.item() for term, value in losses.as_dict().items()}


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, float]]]:
    """Return the losses of each process."""
    folder = tmp_path_factory.mktemp("processes")
    try:
        socket.create_server(("127.0.0.1", 0)).close()
    except OSError as error:
        pytest.skip(f"processes cannot connect to each other: {error}")
    paths = str(folder / "store"), str(folder)
    others = multiprocessing.spawn(spawned_work, paths, nprocs=RANKS - 1, join=False)
    work(0, *paths)
    while not others.join():
        pass
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.mark.parametrize("case", CASES)
def test_mean_over_processes_equals_the_joined_batch(
    by_rank: list[dict[str, dict[str, float]]], case: str
) -> None:
    whole = criterion(case)(*joined(counts_of(case)))
    average = {term: sum(rank[case][term] for rank in by_rank) / RANKS for term in by_rank[0][case]}
    expected = {term: value.item() for term, value in whole.as_dict().items()}
    assert average == pytest.approx(expected, rel=1e-5)


def test_normalizers_are_shared(by_rank: list[dict[str, dict[str, float]]]) -> None:
    """Check that a process divides by the counts of all processes, not by its own."""
    case = "paper: both see objects"
    for rank, count in enumerate(counts_of(case)):
        predictions, target = part(rank, count)
        by_itself = criterion(case)(predictions, [target]).as_dict()
        assert by_rank[rank][case]["classification"] != pytest.approx(
            by_itself["classification"].item(), rel=0.01
        )
        assert by_rank[rank][case]["mask"] == pytest.approx(by_itself["mask"].item(), rel=1e-5)
