"""The network of version 1: two convolutions with ReLU and max pooling."""

import torch
import torch.nn.functional as F
from torch import nn

from model.preprocess import prepare


class DigitNet(nn.Module):
    """Convolution, normalisation, ReLU and max pooling, twice; then one linear layer."""

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
        x = prepare(images)
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)  # (N, 20, 4, 4)
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)  # (N, 20, 2, 2)
        logits: torch.Tensor = self.fc(x.flatten(1))
        return logits
