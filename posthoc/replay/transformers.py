"""Networks of the transformers library, made of a config.json; which tensor is which, the library itself decides."""

import contextlib
import copy
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from posthoc.errors import PosthocError
from posthoc.replay.configs import Config, refuse_code
from posthoc.replay.forward import error_line
from posthoc.replay.marks import Merged, Names, find_marks, marked
from posthoc.replay.recognition import Shapes, sentence

TOKENS = 128
"""In a row to trace a network with."""
PREFIXES = 3
"""So many leading components that a trainer put before all names are taken off."""


@dataclass(frozen=True)
class Skeleton:
    """A network of a library without a checkpoint's weights, in single precision and on the CPU.

    names: the tensors of the network, and of a checkpoint whose shapes are given, that hold the same; left_out: tensors
    of the first checkpoint that are none of its own; drawn: another, with new weights from a seed on.
    """

    name: str
    module: nn.Module
    names: Callable[[Shapes], Names]
    left_out: tuple[str, ...]
    drawn: Callable[[int], nn.Module]


@dataclass(frozen=True)
class Fit:
    """How a checkpoint fits a network: names of the network's tensors -> the checkpoint's; what is not the network's."""

    module: nn.Module
    names: Names
    left_out: tuple[str, ...]


def skeleton(config: Config, shapes: Shapes, arguments: Mapping[str, Any]) -> Skeleton:
    """The network that a config describes, for a checkpoint's tensors; `arguments` take the place of its entries.

    Raises PosthocError where the config names code or no class of the library, or the weights are not all there.
    """
    require_transformers(str(config.path))
    refuse_code(config)
    content = _plain(config.content | dict(arguments))
    network_class, settings = _class_and_settings(content, str(config.path))
    first = _fit(network_class, settings, shapes)

    def names(theirs: Shapes) -> Names:
        return first.names if theirs == shapes else _fit(network_class, settings, theirs).names

    def drawn(seed: int) -> nn.Module:
        with _quiet():
            torch.manual_seed(seed)
            module: nn.Module = network_class(copy.deepcopy(settings)).float().eval()
        return module

    return Skeleton(network_class.__name__, first.module, names, first.left_out, drawn)


def example_tokens(module: nn.Module) -> dict[str, NDArray[np.int64]] | None:
    """Rows of tokens to trace a network of the library with, by its inputs; None for one that takes no tokens first."""
    settings: Any = getattr(module, "config", None)
    if getattr(module, "main_input_name", None) != "input_ids" or settings is None:
        return None
    longest = getattr(settings, "max_position_embeddings", TOKENS)
    names = ["input_ids", "decoder_input_ids"] if getattr(settings, "is_encoder_decoder", False) else ["input_ids"]
    length = min(TOKENS, longest if isinstance(longest, int) else TOKENS)
    return {name: np.zeros((4, length), np.int64) for name in names}


def require_transformers(what: str) -> None:
    """Raise PosthocError where the library is not installed."""
    if find_spec("transformers") is None:
        raise PosthocError(f"{what} needs transformers; install posthoc[transformers].")


def _plain(value: Any) -> Any:
    """A config without what would choose or fetch kernels and other weights; keys and values are kept by no pass."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {key: _plain(item) for key, item in value.items() if not key.endswith("_implementation")}
    if kept.get("use_pretrained_backbone"):
        kept["use_pretrained_backbone"] = False
    return kept


def _class_and_settings(content: dict[str, Any], where: str) -> tuple[Any, Any]:
    """The library's class and its config object; both only by exact membership of the library's tables."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    version = transformers.__version__
    kind = content.get("model_type")
    if kind not in set(CONFIG_MAPPING.keys()):
        raise PosthocError(
            f"{where}: transformers {version} has no model_type {kind!r}; install a version that has, or pass your own with --model FILE.py:FACTORY."
        )
    if content.get("quantization_config"):
        raise PosthocError(f"{where}: the weights are quantised, and are not replayed; save the network unquantised.")
    listed = content.get("architectures")
    names = [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []
    if not names:
        default = MODEL_MAPPING_NAMES.get(kind, ())
        names = [default] if isinstance(default, str) else list(default[:1])
    known = _class_names()
    name = next((name for name in names if name in known), None)
    if name is None:
        raise PosthocError(
            f"{where}: transformers {version} has no network {', '.join(names) or f'of model_type {kind}'}; install a version that has."
        )
    try:
        with _quiet():
            network_class = getattr(transformers, name)
            settings = CONFIG_MAPPING[kind].from_dict(copy.deepcopy(content))
    except Exception as error:  # whatever the library makes of such values, or of what is not installed
        raise PosthocError(
            f"{where}: {name} cannot be configured so ({error_line(error, whole=True)}); mend the config.json."
        ) from error
    wanted = getattr(network_class, "config_class", None)
    if wanted is not None and not isinstance(settings, wanted):
        raise PosthocError(f"{where}: {name} is no network of model_type {kind}; mend the config.json.")
    part: Any
    for part in [settings, *(getattr(settings, key, None) for key in getattr(settings, "sub_configs", ()))]:
        if getattr(part, "use_cache", False):  # of keys and values, which no pass of a probe goes on from
            part.use_cache = False
    return network_class, settings


def _class_names() -> frozenset[str]:
    """All classes that the library's own tables name."""
    from transformers.models.auto import modeling_auto

    tables = [table for name, table in vars(modeling_auto).items() if name.endswith("MAPPING_NAMES")]
    values = itertools.chain.from_iterable(table.values() for table in tables)
    return frozenset(itertools.chain.from_iterable([value] if isinstance(value, str) else value for value in values))


def _fit(network_class: Any, settings: Any, shapes: Shapes) -> Fit:
    """The network with the checkpoint's tensors in place, and by which names; a trainer's prefix is taken off."""
    failed = None
    for inner in _unwrapped(shapes):
        try:
            fit = _fit_names(network_class, settings, {short: shapes[name] for name, short in inner.items()})
        except PosthocError as error:
            failed = failed or error
            continue
        full = {short: name for name, short in inner.items()}
        left_out = [full.get(name, name) for name in fit.left_out] + [name for name in shapes if name not in inner]
        names = {
            name: theirs.renamed(full.__getitem__) if isinstance(theirs, Merged) else full[theirs]
            for name, theirs in fit.names.items()
        }
        return Fit(fit.module, names, tuple(left_out))
    assert failed
    raise failed


def _unwrapped(names: Iterable[str]) -> Iterator[dict[str, str]]:
    """Names as they are, then without the leading components that they share."""
    short = {name: name for name in names}
    yield short
    for _ in range(PREFIXES):
        heads = {name.partition(".")[0] for name in short.values()}
        if len(heads) != 1 or not all("." in name for name in short.values()):
            return
        short = {name: inner.partition(".")[2] for name, inner in short.items()}
        yield short


def _fit_names(network_class: Any, settings: Any, shapes: Shapes) -> Fit:
    """Which tensor is which shows where the library puts marked ones."""
    marks = marked(shapes)
    module, info = load(network_class, settings, marks)
    differences = {
        "missing": sorted(info["missing_keys"]),
        "of another shape": [_shape_in_words(row, module, shapes) for row in sorted(info["mismatched_keys"])],
    }
    if any(differences.values()) or info.get("error_msgs"):
        kinds = {kind: names for kind, names in differences.items() if names}
        words = sentence(kinds) or "; ".join(info["error_msgs"])
        raise PosthocError(
            f"The checkpoints do not fit {network_class.__name__}: {words}; give the config.json that they were saved with."
        )
    names, others = find_marks(module, marks)
    if others:
        raise PosthocError(
            f"transformers makes {others[0]} of {network_class.__name__} of other tensors of the file in a way that is "
            f"not replayed; pass your own network with --model FILE.py:FACTORY."
        )
    return Fit(module, names, tuple(sorted(info["unexpected_keys"])))


def _shape_in_words(row: Any, module: nn.Module, shapes: Shapes) -> str:
    """Of a tensor's name with both shapes, or of its name alone, which is all that versions before 5 give."""
    if isinstance(row, str):
        name, theirs, ours = row, shapes.get(row, ()), module.state_dict()[row].shape
    else:
        name, theirs, ours = row
    return f"{name} {list(theirs)} instead of {list(ours)}"


def load(network_class: Any, settings: Any, tensors: Mapping[str, Tensor]) -> tuple[nn.Module, dict[str, Any]]:
    """The network with these tensors, as the library loads them, and what it says of the loading.

    Raises PosthocError where it fails.
    """
    import transformers

    numbers = [int(part) for part in transformers.__version__.split(".")[:2]]
    single = {"dtype" if numbers >= [4, 56] else "torch_dtype": torch.float32}
    options = {"output_loading_info": True, "ignore_mismatched_sizes": True, **single}
    try:
        with _quiet():
            module, info = network_class.from_pretrained(
                None, config=copy.deepcopy(settings), state_dict=dict(tensors), **options
            )
    except Exception as error:  # whatever the library raises
        raise PosthocError(
            f"{network_class.__name__} cannot be built for these weights ({error_line(error, whole=True)}); give the config.json that they were saved with."
        ) from error
    return module.eval(), info


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's progress bars and reports, and with torch's random numbers as they were."""
    from transformers.utils import logging as library

    level, bars = library.get_verbosity(), library.is_progress_bar_enabled()
    library.set_verbosity(logging.CRITICAL)
    library.disable_progress_bar()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        library.set_verbosity(level)
        if bars:
            library.enable_progress_bar()
