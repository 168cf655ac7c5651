"""From raw pixels to what the network is trained on."""

import torch


def prepare(images: torch.Tensor) -> torch.Tensor:
    """Scale pixels from 0..16 to 0..1."""
    return images / 16.0
