from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchvision.transforms.functional import adjust_gamma

from embedmask.data.colors import change_camera, uniform

from .images import seeded


def noisy_square(side: int = 40) -> Tensor:
    return torch.randint(60, 180, (3, side, side), dtype=torch.uint8, generator=seeded())


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 2), (40, 31)])
@pytest.mark.parametrize("gray", [False, True])
def test_any_size_stays_uint8_and_gray_stays_gray(shape: tuple[int, int], gray: bool) -> None:
    image = torch.randint(0, 256, (1 if gray else 3, *shape), dtype=torch.uint8, generator=seeded())
    image = image.expand(3, *shape)
    before = image.clone()
    for seed in range(4):
        changed = change_camera(image, 0.5, 3.0, 0.2, seeded(seed))
        assert changed.dtype == torch.uint8
        assert changed.shape == image.shape
        assert not gray or ((changed[0] == changed[1]).all() and (changed[1] == changed[2]).all())
    assert torch.equal(image, before)


def test_zero_strength_changes_nothing_and_samples_nothing() -> None:
    image, generator = noisy_square(), seeded(3)
    assert torch.equal(change_camera(image, 0, 0, 0, generator), image)
    assert torch.equal(generator.get_state(), seeded(3).get_state())


def test_gamma_equals_torchvision() -> None:
    image = torch.arange(256, dtype=torch.uint8).repeat(3, 2, 1)
    generator = torch.Generator().manual_seed(3)
    exponent = math.exp(uniform(-math.log1p(0.5), math.log1p(0.5), torch.Generator().manual_seed(3)))
    assert torch.equal(change_camera(image, 0.5, 0, 0, generator), adjust_gamma(image, exponent))


def test_gamma_is_symmetric_and_keeps_black_and_white() -> None:
    ramp = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 256).expand(3, 1, 256)
    changed = torch.stack([change_camera(ramp, 1.0, 0, 0, seeded(seed))[0, 0] for seed in range(200)]).float()
    assert (changed[:, 0] == 0).all()
    assert (changed[:, 255] == 255).all()
    middle = changed[:, 128] / 255
    exponents = middle.log() / torch.tensor(128 / 255).log()
    assert 0.48 < exponents.min() < 0.55
    assert 1.8 < exponents.max() < 2.05
    assert abs(exponents.log().mean()) < 0.1


def test_blur_smooths_up_to_its_sigma_and_keeps_the_mean() -> None:
    point = torch.zeros(3, 41, 41, dtype=torch.uint8)
    point[:, 18:23, 18:23] = 200
    spread = torch.arange(41) - 20.0
    variances = []
    for seed in range(40):
        changed = change_camera(point, 0, 2.0, 0, seeded(seed))[0].double()
        assert abs(changed.sum() / (25 * 200) - 1) < 0.05
        variances.append(float((changed.sum(0) * spread**2).sum() / changed.sum()) - 2.0)
    assert min(variances) < 0.1
    assert 2.5 < max(variances) < 4.2


def test_noise_is_unbiased_and_bounded_by_its_deviation() -> None:
    image = torch.full((3, 60, 60), 128, dtype=torch.uint8)
    image[0] = 100  # not gray: each channel has its own noise
    residues = [change_camera(image, 0, 0, 0.1, seeded(s)).float() - image for s in range(40)]
    sigmas = torch.stack([residue.std() for residue in residues]) / 255
    assert sigmas.min() < 0.02
    assert 0.085 < sigmas.max() < 0.102
    assert abs(torch.stack(residues).mean()) < 0.2
    assert not torch.equal(residues[0][0], residues[0][1])
