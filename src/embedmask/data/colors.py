"""Random changes of an image's values, which leave masks and boxes as they are."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from embedmask.data.sampling import bernoulli, uniform

TF: Any = v2.functional  # torchvision does not declare its exports
HUE_SHARE = 0.25
"""Range of the hue, in turns of the color circle, per unit of color strength."""


def change_colors(image: Tensor, strength: float, invert: float, generator: torch.Generator) -> Tensor:
    """Change brightness, contrast, saturation and hue at random, then invert with some probability.

    Args:
        image: uint8 `[3, H, W]`.
        strength: 0..1; factors lie in 1 - strength .. 1 + strength, the hue shifts by up to a quarter of it.
        invert: probability of the negative.
    """
    if strength:
        brightness, contrast, saturation, hue = (strength * uniform(-1, 1, generator) for _ in range(4))
        image = TF.adjust_brightness(image, 1 + brightness)
        image = TF.adjust_contrast(image, 1 + contrast)
        # the two slowest steps, which do not change a gray image
        if not _is_gray(image):
            image = TF.adjust_saturation(image, 1 + saturation)
            image = TF.adjust_hue(image, hue * HUE_SHARE)
    negative: Tensor = TF.invert(image) if bernoulli(invert, generator) else image
    return negative


def change_camera(
    image: Tensor, gamma: float, blur: float, noise: float, generator: torch.Generator
) -> Tensor:
    """Simulate another camera or microscope: random gamma, defocus and noise, in this order.

    A step of strength 0 is skipped and samples no random number. Gray images stay gray.

    Args:
        image: uint8 `[3, H, W]`.
        gamma: the exponent is log-uniform in 1 / (1 + gamma) .. 1 + gamma.
        blur: largest standard deviation of the Gaussian blur, px.
        noise: largest standard deviation of the Gaussian noise, as a fraction of white.
    """
    if gamma:
        max_log = math.log1p(gamma)
        # a table of the 256 values: torchvision computes the power of each pixel
        values = torch.arange(256, dtype=torch.uint8)[None, None]
        table = TF.adjust_gamma(values, math.exp(uniform(-max_log, max_log, generator))).flatten()
        image = torch.from_numpy(table.numpy()[image.numpy()])
    if blur:
        sigma = uniform(0, blur, generator)
        # the blur pads by reflection, which needs a kernel no wider than the image
        reach = min(math.ceil(3 * sigma), min(image.shape[-2:]) - 1)
        image = TF.gaussian_blur(image, 2 * reach + 1, sigma) if reach else image
    if noise:
        # one channel of noise for a gray image keeps it gray
        channels = 1 if _is_gray(image) else 3
        normal = torch.randn((channels, *image.shape[-2:]), generator=generator)
        sigma = 255 * uniform(0, noise, generator)
        image = normal.mul_(sigma).add(image).round_().clamp_(0, 255).to(torch.uint8)
    return image


def _is_gray(image: Tensor) -> bool:
    return bool((image[0] == image[1]).all() and (image[1] == image[2]).all())
