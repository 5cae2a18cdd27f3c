"""Random changes of an image's values; masks and boxes stay as they are."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from embedmask.data.sampling import between, happens

COLORS: Any = v2.functional  # torchvision does not declare what it exports here
HUE_SHARE = 0.25
"""Part of the colour strength that goes to the hue, in turns of the colour circle."""


def change_colors(image: Tensor, strength: float, invert: float, generator: torch.Generator) -> Tensor:
    """Random brightness, contrast, saturation and hue, then perhaps the negative.

    Args:
        image: uint8 `[3, H, W]`.
        strength: 0..1; factors lie in 1 - strength .. 1 + strength, the hue moves by a quarter of it.
        invert: probability of the negative.
        generator: draws.
    """
    if strength:
        brightness, contrast, saturation, hue = (strength * between(-1, 1, generator) for _ in range(4))
        image = COLORS.adjust_brightness(image, 1 + brightness)
        image = COLORS.adjust_contrast(image, 1 + contrast)
        if not _is_grey(image):  # where these two change nothing, but cost most
            image = COLORS.adjust_saturation(image, 1 + saturation)
            image = COLORS.adjust_hue(image, hue * HUE_SHARE)
    negative: Tensor = COLORS.invert(image) if happens(invert, generator) else image
    return negative


def change_camera(
    image: Tensor, gamma: float, blur: float, noise: float, generator: torch.Generator
) -> Tensor:
    """As another microscope or camera would have taken it: random gamma, defocus and noise, in this order.

    What is 0 draws nothing. Grey images stay grey.

    Args:
        image: uint8 `[3, H, W]`.
        gamma: the exponent lies in 1 / (1 + gamma) .. 1 + gamma, log-uniform.
        blur: largest standard deviation of the Gaussian blur, px.
        noise: largest standard deviation of the Gaussian noise, as a part of white.
        generator: draws.
    """
    if gamma:
        most = math.log1p(gamma)
        image = COLORS.adjust_gamma(image, math.exp(between(-most, most, generator)))
    if blur:
        image = _blurred(image, between(0, blur, generator))
    if noise:
        channels = 1 if _is_grey(image) else 3
        drawn = torch.randn((channels, *image.shape[-2:]), generator=generator)
        sigma = 255 * between(0, noise, generator)
        image = drawn.mul_(sigma).add(image).round_().clamp_(0, 255).to(torch.uint8)
    return image


def _blurred(image: Tensor, sigma: float) -> Tensor:
    reach = min(math.ceil(3 * sigma), min(image.shape[-2:]) - 1)  # the library mirrors no more than there is
    blurred: Tensor = COLORS.gaussian_blur(image, 2 * reach + 1, sigma) if reach else image
    return blurred


def _is_grey(image: Tensor) -> bool:
    return bool((image[0] == image[1]).all() and (image[1] == image[2]).all())
