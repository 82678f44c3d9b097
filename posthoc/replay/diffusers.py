"""Networks of the diffusers library, made of a config.json."""

import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from posthoc.errors import PosthocError
from posthoc.replay.configs import Config, refuse_code
from posthoc.replay.forward import error_line


def build_diffuser(config: Config, arguments: Mapping[str, Any], seed: int | None = None) -> nn.Module:
    """The network that a config describes, with new weights, of a `seed` on request; `arguments` replace its entries.

    Raises PosthocError where it names code, or no network among the library's own.
    """
    if find_spec("diffusers") is None:
        raise PosthocError(f"{config.path} needs diffusers; install posthoc[diffusers].")
    refuse_code(config)
    import diffusers

    name = config.content["_class_name"]
    network_class = getattr(diffusers, name) if name in dir(diffusers) else None
    if not isinstance(network_class, type) or not issubclass(network_class, diffusers.ModelMixin):
        raise PosthocError(
            f"{config.path}: diffusers {diffusers.__version__} has no network {name!r}; install a version that has."
        )
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[], enabled=seed is None):
            warnings.simplefilter("ignore")
            torch.manual_seed(seed or 0)
            network: nn.Module = network_class.from_config({**config.content, **arguments})
    except Exception as error:  # whatever the library makes of such values
        raise PosthocError(
            f"{config.path}: {name} cannot be built ({error_line(error, whole=True)}); give the config that the weights were saved with."
        ) from error
    return network.float().eval()
