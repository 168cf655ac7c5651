"""The models of the contract: imported by the tests as they stand, and the one module of a hub repository.

Each has a part `stem` that is called first and a linear layer `fc`, so that a use can be written for all.
"""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint


class Model(nn.Module):
    def penalty(self):
        return sum(parameter.square().sum() for parameter in self.parameters())

    def features(self, x):
        return self.stem(x)


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.bn(self.conv(x)) + x)


class Cnn(Model):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(2)
        )
        self.layer1 = nn.Sequential(Block(6), Block(6))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(6, 4)

    def forward(self, x):
        return self.fc(self.pool(self.layer1(self.stem(x))).flatten(1))


class Transformer(Model):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(8, 6), nn.Dropout(0.1))
        self.register_buffer("positions", torch.linspace(-1, 1, 30).reshape(5, 6), persistent=False)
        layer = nn.TransformerEncoderLayer(6, 2, 12, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.fc = nn.Linear(6, 4)

    def forward(self, x):
        return self.fc(self.encoder(self.stem(x) + self.positions).mean(1))


class Lstm(Model):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(5, 6), nn.Tanh())
        self.lstm = nn.LSTM(6, 6, 2, dropout=0.2, batch_first=True)
        self.fc = nn.Linear(6, 4)

    def forward(self, x):
        out, (hidden, cell) = self.lstm(self.stem(x))
        return self.fc(out[:, -1]), (hidden, cell)


class UNet(Model):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU())
        self.down = nn.Conv2d(4, 6, 2, stride=2)
        self.middle = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.GELU(), nn.Dropout2d(0.2))
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        skipped = self.stem(x)
        low = self.down(skipped)
        low = self.middle(low) + low
        both = torch.cat([self.up(low), skipped], dim=1)
        return self.fc(both.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Tied(Model):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Embedding(11, 6), nn.LayerNorm(6))
        self.fc = nn.Linear(6, 6)
        self.decoder = nn.Linear(6, 11, bias=False)
        self.decoder.weight = self.stem[0].weight

    def forward(self, ids):
        return self.decoder(torch.tanh(self.fc(self.stem(ids))))


class Dicts(Model):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
        self.high = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))
        self.fc = nn.Linear(6, 4)

    def forward(self, x, *, mask=None):
        low = self.stem(x)
        high = self.high(low)
        logits = self.fc(high if mask is None else high * mask)
        aux = logits.mean() if self.training else None
        return {"logits": logits, "features": {"low": low, "high": high[:, ::2]}, "aux": aux, "mask": mask}


class Lists(Model):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(2, 6, 3), nn.ReLU())
        self.blocks = nn.ModuleList([nn.Conv1d(6, 6, 2) for _ in range(3)])
        self.fc = nn.Linear(6, 4)

    def forward(self, x):
        levels = [self.stem(x)]
        levels += [block(levels[-1]) for block in self.blocks[:2]]
        return levels, (self.fc(levels[-1].mean(-1)), [levels[-1].argmax(-1)]), len(levels), "levels"


class Scripted(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.3), nn.ReLU())
        self.norm = nn.BatchNorm1d(6)
        self.fc = nn.Linear(6, 4)

    def forward(self, x):
        return self.fc(self.norm(self.stem(x)))


class Residual(nn.Module):
    def __init__(self, width, drop):
        super().__init__()
        self.norm = nn.BatchNorm1d(width)
        self.linear = nn.Linear(width, width)
        self.dropout = nn.Dropout(0.3)
        self.drop = drop

    def forward(self, x):
        if not self.training:
            return x + self.linear(self.norm(x))
        if torch.rand(()) < self.drop:
            return x
        kept = torch.empty(x.shape[0], 1, dtype=x.dtype).bernoulli_(1 - self.drop)
        return x + kept * self.dropout(self.linear(self.norm(x)))


class Stochastic(Model):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.5))
        self.blocks = nn.ModuleList([Residual(6, 0.3) for _ in range(3)])
        self.fc = nn.Linear(6, 4)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.fc(F.alpha_dropout(x, 0.1, training=self.training))


class Checkpointed(Model):
    def __init__(self, reentrant):
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(5, 6), nn.Tanh())
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.2), nn.Tanh()) for _ in range(2)])
        self.fc = nn.Linear(6, 4)
        self.reentrant = reentrant

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.reentrant) if self.training else block(x)
        return self.fc(x)


class Rebinding(Model):
    """Its own code replaces a buffer at each call in training, and a parameter when it is asked to."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(5, 6), nn.ReLU())
        self.fc = nn.Linear(6, 4)
        self.scale = nn.Parameter(torch.ones(4))
        self.register_buffer("mean", torch.zeros(5))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        if self.training:
            self.mean = self.mean * 0.75 + x.detach().mean(0) * 0.25
        return self.fc(self.stem(x - self.mean)) * self.scale

    def renew(self):
        self.scale = nn.Parameter(self.scale.detach() * 2)
        self.extra = nn.Linear(2, 2)


def cnn():
    return Cnn()


def transformer():
    return Transformer()


def lstm():
    return Lstm()


def unet():
    return UNet()


def tied():
    return Tied()


def dicts():
    return Dicts()


def lists():
    return Lists()


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and all the same in many repositories
        return torch.jit.script(Scripted())


def stochastic():
    return Stochastic()


def checkpointed():
    return Checkpointed(reentrant=False)


def reentrant():
    return Checkpointed(reentrant=True)


def rebinding():
    return Rebinding()
