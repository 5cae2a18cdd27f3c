"""The pixel branch: one embedding for every pixel, predicted once on the finest level."""

from __future__ import annotations

from torch import Tensor, nn

from embedmask.model.layers import Tower, conv3x3, in_float32


class PixelBranch(nn.Module):
    """Tower on the finest level and a 3x3 convolution to D dims (figure 2, "pixel head")."""

    def __init__(self, channels: int, embed_dim: int, *, depth: int, groups: int) -> None:
        super().__init__()
        self.tower = Tower(channels, depth, groups)
        self.embed = conv3x3(channels, embed_dim)

    def forward(self, finest: Tensor) -> Tensor:
        """`[N, channels, H, W]` -> p without coordinates, float32 `[N, D, H, W]`."""
        return in_float32(self.embed, self.tower(finest))
