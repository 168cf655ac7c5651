"""From raw pixels to what the network is trained on."""

import torch


def prepare(images: torch.Tensor) -> torch.Tensor:
    """Give each image zero mean and unit variance, so that thin and thick pens look alike."""
    mean = images.mean(dim=(-2, -1), keepdim=True)
    deviation = images.std(dim=(-2, -1), keepdim=True)
    # A blank image has no deviation; it becomes all zeros instead of NaN.
    return (images - mean) / deviation.clamp_min(1e-3)
