import torch


def net():
    return torch.nn.Linear(3, 3)
