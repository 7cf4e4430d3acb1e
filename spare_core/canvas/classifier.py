"""The judges of the built-in models: a small convolutional network that names a picture's object and its style."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from spare_core.canvas.grid import Grid


class Logits(NamedTuple):
    """Logits of the objects and of the styles, ``(B, names)``; the pooled features ``(B, F)`` that FID uses."""

    objects: Tensor
    styles: Tensor
    features: Tensor


class _Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(8, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(8, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Classifier(nn.Module):
    """A residual network over 64 x 64 RGB in [-1, 1] with two linear heads on shared pooled features."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        widths = grid.judge_widths
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1)]
        for width, following in zip(widths, (*widths[1:], None), strict=True):
            layers.append(_Block(width))
            if width > widths[0]:
                layers.append(_Block(width))
            if following is not None:
                layers.append(nn.Conv2d(width, following, 4, stride=2, padding=1))
        self.trunk = nn.Sequential(*layers, nn.GroupNorm(8, widths[-1]), nn.SiLU())
        self.object_head = nn.Linear(widths[-1], len(grid.objects))
        self.style_head = nn.Linear(widths[-1], len(grid.styles))

    def forward(self, pictures: Tensor) -> Logits:
        """What is seen in ``pictures``, ``(B, 3, 64, 64)`` in [-1, 1]."""
        features = self.trunk(pictures).mean(dim=(2, 3))
        return Logits(self.object_head(features), self.style_head(features), features)
