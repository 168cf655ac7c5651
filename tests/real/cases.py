"""What is done with each published repository, the same in a worker and under plain torch.hub.

Functions named `*_setup` run in the process that runs the repository's code: in a worker as
`Isolation(setup=...)`, and in the fresh process of `plain_hub.py`. They need only the standard library,
torch and numpy, as does the repository's code behind the stand-ins that they put up.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import numpy as np
import torch

__all__ = ["CASES", "Case"]

Load = Callable[..., Any]


@dataclass(frozen=True)
class Case:
    """A published repository, loaded and then used.

    Attributes:
        setup: Run before hubconf.py is imported.
        load: Given a `load(entrypoint, **keywords)`, returns what `use` needs.
        use: Given what `load` returned, returns plain data and tensors.
        arguments: Keyword arguments of `use`.
    """

    setup: Callable[[], None]
    load: Callable[[Load], Any]
    use: Callable[..., Any]
    arguments: dict[str, Any] = field(default_factory=dict)


def stand_in(*packages: str, **attributes: Any) -> None:
    """Have `import` of these packages and anything below them succeed.

    What is imported from there is an empty class. So a repository that imports torchvision at the top of
    a file, and needs it for data sets alone, runs without it.

    Args:
        *packages: Top-level names.
        **attributes: What the repository does need: dotted names with `__` for the dots.
    """

    class Anything(type):
        def __getattr__(cls, name: str) -> type:
            if name.startswith("__"):
                raise AttributeError(name)
            return Anything(name, (), {})

    class Module(ModuleType):
        __version__ = "9.9.9"

        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            made = Anything(name, (torch.nn.Module,) if self.__name__.startswith("torchvision.ops") else (), {})
            setattr(self, name, made)
            return made

    class Finder:
        def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
            return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] in packages else None

        def create_module(self, spec: ModuleSpec) -> ModuleType:
            return Module(spec.name)

        def exec_module(self, module: ModuleType) -> None:
            for dotted, value in attributes.items():
                owner, _, name = dotted.rpartition("__")
                if owner.replace("__", ".") == module.__name__:
                    setattr(module, name, value)

    sys.meta_path.insert(0, Finder())


# ------------------------------------------------------------------------------------------- silero-vad


def silero_setup() -> None:
    stand_in("torchaudio")


def silero_load(load: Load) -> Any:
    return load("silero_vad")


def silero_use(loaded: Any, audio: torch.Tensor) -> Any:
    model, (get_speech_timestamps, _, _, VADIterator, collect_chunks) = loaded  # noqa: N806
    segments = get_speech_timestamps(audio, model, sampling_rate=16000, max_speech_duration_s=3)
    iterator = VADIterator(model)
    events = [iterator(audio[start : start + 512]) for start in range(0, 100 * 512, 512)]
    return {"segments": segments, "events": events, "speech": collect_chunks(segments, audio).sum()}


def silero_stream(loaded: Any, chunks: torch.Tensor) -> Any:
    model = loaded[0]
    with torch.no_grad():
        return [model(chunk, 16000) for chunk in chunks]


# -------------------------------------------------------------------------------------- facenet-pytorch

FACENET_HUBCONF = """
dependencies = ["torch", "numpy"]

from facenet_pytorch import MTCNN, InceptionResnetV1
"""


def facenet_setup() -> None:
    stand_in(
        "PIL", "requests", "torchvision", "tqdm",
        torchvision__transforms__functional__to_tensor=_to_tensor,
        torchvision__ops__boxes__batched_nms=_batched_nms,
    )  # fmt: skip


def _to_tensor(image: Any) -> torch.Tensor:
    return torch.as_tensor(np.asarray(image)).permute(2, 0, 1)


def _batched_nms(boxes: torch.Tensor, scores: torch.Tensor, groups: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Return the indices of the boxes that torchvision's function keeps, best first."""
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    left = scores.argsort(descending=True, stable=True)
    kept = []
    while len(left):
        best, rest = left[0], left[1:]
        kept.append(best)
        corner = torch.maximum(boxes[best, :2], boxes[rest, :2])
        size = (torch.minimum(boxes[best, 2:], boxes[rest, 2:]) - corner).clamp(min=0)
        overlap = size.prod(1)
        iou = overlap / (areas[best] + areas[rest] - overlap)
        left = rest[(iou <= iou_threshold) | (groups[rest] != groups[best])]
    return torch.stack(kept) if kept else torch.empty(0, dtype=torch.int64)


def facenet_load(load: Load) -> Any:
    torch.manual_seed(0)
    detector = load("MTCNN", image_size=64, keep_all=True, thresholds=[0.5, 0.5, 0.5], min_face_size=16)
    return detector, load("InceptionResnetV1", pretrained=None, num_classes=4).eval()


def facenet_use(loaded: Any, image: np.ndarray[Any, Any]) -> Any:
    detector, embed = loaded
    boxes, scores, points = detector.detect(image, landmarks=True)
    with torch.no_grad():
        embeddings = embed(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)
    return {"boxes": boxes, "scores": scores, "points": points, "embeddings": embeddings}


# ------------------------------------------------------------------------------------------------- timm

TIMM_HUBCONF = """
dependencies = ["torch"]

from timm.models import is_model, list_models, model_entrypoint, mobilenetv3_small_050, resnet10t, vit_tiny_patch16_224
from timm.version import __version__


def version():
    return __version__
"""
_ARCHITECTURES = {
    "mobilenetv3_small_050": {},
    "resnet10t": {},
    "vit_tiny_patch16_224": {"img_size": 64},
}


def timm_setup() -> None:
    stand_in("PIL", "huggingface_hub", "safetensors", "torchvision", "tqdm", "yaml")


def timm_load(load: Load) -> Any:
    models = {}
    for name, keywords in _ARCHITECTURES.items():
        torch.manual_seed(0)
        models[name] = load(name, pretrained=False, num_classes=8, **keywords).eval()
    return load("version"), models


def timm_use(loaded: Any, image: torch.Tensor) -> Any:
    version, models = loaded
    with torch.no_grad():
        logits = {name: model(image) for name, model in models.items()}
        features = models["resnet10t"].forward_features(image)
    weights = {name: dict(model.state_dict()) for name, model in models.items()}
    return {"version": version, "logits": logits, "features": features, "weights": weights}


def facenet_embedder(load: Load) -> Any:
    torch.manual_seed(0)
    return load("InceptionResnetV1", pretrained=None, num_classes=4).eval()


def embed_in_batches(model: Any, batches: torch.Tensor) -> Any:
    with torch.no_grad():
        return [model(batch) for batch in batches]


def timm_resnet(load: Load) -> Any:
    torch.manual_seed(0)
    return load("resnet10t", pretrained=False, num_classes=8).eval()


CASES = {
    "silero stream": Case(silero_setup, silero_load, silero_stream),
    "facenet embeddings": Case(facenet_setup, facenet_embedder, embed_in_batches),
    "timm resnet": Case(timm_setup, timm_resnet, embed_in_batches),
    "silero": Case(silero_setup, silero_load, silero_use),
    "facenet": Case(facenet_setup, facenet_load, facenet_use),
    "timm": Case(timm_setup, timm_load, timm_use),
}
