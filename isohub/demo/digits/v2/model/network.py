"""The network of version 2: SiLU, average pooling, and a way round the second convolution."""

import torch
import torch.nn.functional as F
from torch import nn

from model.preprocess import prepare


class DigitNet(nn.Module):
    """A convolution, a residual block around a second one, and one linear layer.

    Its layers have the names and shapes of version 1's, so that a state dict of either version loads into
    the other without a complaint. What `forward` does with them differs.
    """

    def __init__(self) -> None:
        """Make the layers, untrained."""
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, kernel_size=3, padding=1)
        self.bn1 = nn.BatchNorm2d(20)
        self.conv2 = nn.Conv2d(20, 20, kernel_size=3, padding=1)
        self.bn2 = nn.BatchNorm2d(20)
        self.fc = nn.Linear(20 * 2 * 2, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits, `(N, 10)`, for raw images, `(N, 1, 8, 8)` with values 0 to 16."""
        x = F.silu(self.bn1(self.conv1(prepare(images))))  # (N, 20, 8, 8)
        x = x + F.silu(self.bn2(self.conv2(x)))
        x = F.avg_pool2d(x, 4)  # (N, 20, 2, 2)
        logits: torch.Tensor = self.fc(x.flatten(1))
        return logits
