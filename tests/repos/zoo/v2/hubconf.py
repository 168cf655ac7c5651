import os

import torch

from models.nets import Cnn, Normed, Tagger, Tied, Vad
from utils.speech import Stream, find_speech, to_chunks
from utils.text import Tokenizer

dependencies = ["torch"]


def cnn(channels=6):
    """A small convolutional network."""
    return Cnn(channels)


def tied():
    return Tied()


def normed():
    return Normed().eval()


def tagger():
    return Tagger()


def vad():
    return Vad(gain=2.0).eval(), (find_speech, to_chunks, Stream)


def scripted():
    return torch.jit.load(os.path.join(os.path.dirname(__file__), "scripted.pt"))


def tokenizer():
    return Tokenizer(" hgfedcba?")
