"""The normalisers over two processes: each loss is what one process over all images would say."""

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
    """What process `rank` sees: one image of `count` objects."""
    target = random_rectangles(count, SIZE, seed=rank) if count else no_objects(SIZE)
    predictions = random_predictions(SIZE, seed=10 + rank)
    predictions.semantic_logits = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(rank))
    return predictions, target


def criterion(case: str) -> Criterion:
    """Of the version that a case is about."""
    return Criterion.from_config(small_config(preset=case.partition(":")[0], embed_dim=4))


def counts_of(case: str) -> tuple[int, int]:
    """Objects of each process."""
    return COUNTS[case.partition(": ")[2]]


def joined(counts: tuple[int, ...]) -> tuple[Predictions, list[Target]]:
    """The images of all processes as one batch."""
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


def work_of_another(index: int, store: str, out: str) -> None:
    """In a new process: rank 0 is the one that runs the tests, since starting takes most of the time."""
    torch.set_num_threads(1)
    work(index + 1, store, out)


def work(rank: int, store: str, out: str) -> None:
    """One process: its losses of every case, and whether its gradients are finite."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS, timeout=timedelta(seconds=90)
    )
    try:
        found = {case: case_losses(case, rank) for case in CASES}
    finally:
        distributed.destroy_process_group()
    torch.save(found, Path(out) / f"{rank}.pt")


def case_losses(case: str, rank: int) -> dict[str, float]:
    """Terms of one process; its gradients must be finite."""
    predictions, target = part(rank, counts_of(case)[rank])
    predictions.box_ltrb = [m.requires_grad_() for m in predictions.box_ltrb]
    losses = criterion(case)(predictions, [target])
    losses.total.backward()
    assert all(m.grad is not None and m.grad.isfinite().all() for m in predictions.box_ltrb)
    return {term: value.item() for term, value in losses.as_dict().items()}


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, float]]]:
    """Losses of each process."""
    folder = tmp_path_factory.mktemp("processes")
    try:
        socket.create_server(("127.0.0.1", 0)).close()
    except OSError as error:
        pytest.skip(f"processes cannot talk to each other here: {error}")
    paths = str(folder / "store"), str(folder)
    others = multiprocessing.spawn(work_of_another, paths, nprocs=RANKS - 1, join=False)
    work(0, *paths)
    while not others.join():
        pass
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.mark.parametrize("case", CASES)
def test_the_average_over_processes_is_the_loss_of_the_whole_batch(
    by_rank: list[dict[str, dict[str, float]]], case: str
) -> None:
    whole = criterion(case)(*joined(counts_of(case)))
    average = {term: sum(rank[case][term] for rank in by_rank) / RANKS for term in by_rank[0][case]}
    expected = {term: value.item() for term, value in whole.as_dict().items()}
    assert average == pytest.approx(expected, rel=1e-5)


def test_normalisers_are_shared(by_rank: list[dict[str, dict[str, float]]]) -> None:
    """A process alone would divide by its own count; here the other's objects make its share smaller or larger."""
    case = "paper: both see objects"
    for rank, count in enumerate(counts_of(case)):
        predictions, target = part(rank, count)
        by_itself = criterion(case)(predictions, [target]).as_dict()
        assert by_rank[rank][case]["classification"] != pytest.approx(
            by_itself["classification"].item(), rel=0.01
        )
        assert by_rank[rank][case]["mask"] == pytest.approx(by_itself["mask"].item(), rel=1e-5)
