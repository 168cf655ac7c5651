"""What the author of a hubconf.py may import: `pretrained`.

It needs torch and the standard library alone, and works in a worker, under plain torch.hub and without either.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

__all__ = ["pretrained"]


def pretrained(
    url: str, *, check_hash: bool = False, weights_only: bool = True
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give an entrypoint a keyword `pretrained`, which loads weights into the module that it returns.

    Called with `pretrained=True` the entrypoint gets its weights from `url`, by
    `torch.hub.load_state_dict_from_url`; otherwise nothing is downloaded. All other arguments reach the
    entrypoint as they are.

    Args:
        url: Where the state dict lies.
        check_hash: Whether the name in `url` holds the beginning of the SHA-256, as in
            `resnet18-bfd8deac.pth`, and the file must have that hash.
        weights_only: Whether to load a state dict alone, and no code; as in `torch.load`.

    Raises:
        TypeError: The entrypoint has a parameter `pretrained` of its own, or is none (`@pretrained`
            without a URL).

    Example:
        >>> from isohub.authoring import pretrained
        >>> @pretrained("https://example.org/resnet18-bfd8deac.pth", check_hash=True)
        ... def resnet18(num_classes=1000):
        ...     return ResNet18(num_classes)
    """
    if not isinstance(url, str):
        raise TypeError(f"@pretrained takes the URL of the weights: @pretrained('https://...'), not {url!r}")

    def decorate(entrypoint: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(entrypoint)
        if "pretrained" in signature.parameters:
            raise TypeError(f"{entrypoint.__name__} has a parameter `pretrained`, which @pretrained adds: remove it")

        @functools.wraps(entrypoint)
        def with_weights(*args: Any, pretrained: bool = False, **kwargs: Any) -> Any:
            model = entrypoint(*args, **kwargs)
            if pretrained:
                _load_into(model, url, check_hash=check_hash, weights_only=weights_only)
            return model

        with_weights.__signature__ = _with_pretrained(signature)  # type: ignore[attr-defined]
        return with_weights

    return decorate


def _load_into(model: Any, url: str, *, check_hash: bool, weights_only: bool) -> None:
    import torch

    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"@pretrained loads weights into a torch.nn.Module, and the entrypoint returned {type(model)}")
    # Looked up when it is called: a worker puts a function of its own in this place. On the CPU, because
    # weights are often saved from a GPU that this machine does not have; they are copied to where the model is.
    state = torch.hub.load_state_dict_from_url(
        url, map_location="cpu", check_hash=check_hash, weights_only=weights_only
    )
    model.load_state_dict(state)


def _with_pretrained(signature: inspect.Signature) -> inspect.Signature:
    added = inspect.Parameter("pretrained", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=bool)
    parameters = list(signature.parameters.values())
    last_is_keywords = bool(parameters) and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD
    parameters.insert(len(parameters) - last_is_keywords, added)
    return signature.replace(parameters=parameters)
