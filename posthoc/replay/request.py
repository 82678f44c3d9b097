"""What an extraction is asked for, as far as it can be judged before torch is imported: mistakes answer at once."""

import ast
import ctypes
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, TypedDict, get_args, get_origin

from posthoc.errors import PosthocError, UsageError, nearest, plain_number
from posthoc.recording import MOST_CONTROLS
from posthoc.replay.controls import UNTRAINED, parse
from posthoc.replay.meant import children_of, refuse_folder, refuse_model
from posthoc.replay.probes import PROBES, Asked, check_probe
from posthoc.replay.scores import NONE, SCORES
from posthoc.replay.signals import DEFAULT_SIGNALS, SIGNALS

if TYPE_CHECKING:
    from torch.utils.data import DataLoader, Dataset

    from posthoc.replay.probes import Probe

    ProbeLike = str | Probe | tuple[Any, ...] | Mapping[str, Any] | Dataset[Any] | DataLoader[Any]
    """A probe by its name, or handed over as it is; of data sets any that has a length and items."""

DEVICES = ("cpu", "cuda", "mps", "xpu", "hpu", "xla", "mtia", "ipu", "maia", "meta", "privateuseone")
"""What torch calls the kinds of devices it knows."""
DRIVERS = ("/dev/nvidiactl", "/dev/nvhost-ctrl", "/dev/nvgpu", "/dev/kfd", "/dev/dxg")
"""What on Linux a GPU that torch calls cuda is reached through: NVIDIA's, Tegra's, AMD's, Windows'."""


DTYPES = ("float32", "bfloat16")
MEMORY_FORMATS = ("auto", "contiguous", "channels_last")
MOST_AVERAGED = 1000
"""Checkpoints that a mean is of."""
KINDS = {
    bool: "True or False",
    int: "a whole number",
    Path: "a path",
    str: "a text",
    Sequence: "a list",
    Mapping: "a dictionary",
    type(None): "None",
}
"""Types of options, in words."""
MOST_SETTINGS, LONGEST_SETTING = 100, 200
OTHERWISE = {
    "model": "given by --model",
    "normalization": "given by --normalize",
    "image_size": "given by --image-size",
}
"""What of run.json is told by other options."""
LARGEST_SEED = 2**53
"""Up to here every reader of JSON has whole numbers as they are."""


class OnDuplicate(StrEnum):
    """What becomes of checkpoints that hold the weights of another step."""

    DROP = "drop"
    KEEP = "keep"
    FAIL = "fail"


class PlanOptions(TypedDict, total=False):
    """Options of `Request`, as a caller names them."""

    select: str | None
    order: str | None
    placed: Sequence[str]
    weights_key: str | None
    ema: bool
    model: str | None
    model_arg: Sequence[str]
    settings: Sequence[str] | Mapping[str, Any]
    layers: Sequence[str]
    channels: int | None
    signals: Sequence[str] | None
    images: int | None
    image_size: int | None
    resize: int | None
    crop: int | None
    normalize: str | None
    split: str | None
    columns: str | None
    context: int | None
    documents: int | None
    tokenizer: Path | None
    token_dtype: str | None
    data_root: Path | None
    download: bool
    device: str
    dtype: str
    tf32: bool
    compile: bool
    batch_size: int | None
    memory_format: str
    model_output: str | None
    score: str | None
    features: bool
    seed: int
    untrained: int
    controls: Sequence[str]
    average: Sequence[int]
    between: bool
    spectra: bool
    on_duplicate: str


@dataclass(frozen=True)
class Request:
    """What is to be replayed, and how.

    order: name or inside, by what the checkpoints are ordered; placed: some of them given their place, as FILE=EPOCH.
    channels: None records all of each layer; otherwise so many, drawn once per run and layer from `seed`. images: so
    many samples of the probe; settings: how the run was trained, as a dictionary or as KEY=VALUE, for comparisons; image_size, normalize: of a probe of images; resize, crop: of a
    folder of them; split, columns: which part of a data set,
    and what of a table is fed and right. dtype: bfloat16 replays under autocast; tf32: allows it on CUDA; compile:
    through torch.compile. memory_format: auto takes channels last where it is faster and gives the same. model_output:
    by name or position, which output is scored, `none` that none is; score: how, by its name in `SCORES`. features:
    what the last layer is given is kept, with its weights. untrained: so many new initialisations of the model are
    replayed beside the run, as controls; controls: names of `CONTROLS`, other inputs that every checkpoint is given
    too. average: of so many checkpoints up to each the mean of the weights
    is replayed, too; between: of each and the one before; spectra: statistics of
    the spectra of the weights are stored. context, documents, tokenizer, token_dtype: of a probe of tokens. signals: None for those of the probe's kind.
    on_duplicate: drop, keep or fail, where checkpoints hold the same weights under different steps.
    """

    probe: "ProbeLike"
    select: str | None = None
    order: str | None = None
    placed: Sequence[str] = ()
    weights_key: str | None = None
    ema: bool = False
    model: str | None = None
    model_arg: Sequence[str] = ()
    settings: Sequence[str] | Mapping[str, Any] = ()
    layers: Sequence[str] = ("default",)
    channels: int | None = 32
    signals: Sequence[str] | None = None
    images: int | None = None
    image_size: int | None = None
    resize: int | None = None
    crop: int | None = None
    normalize: str | None = None
    split: str | None = None
    columns: str | None = None
    context: int | None = None
    documents: int | None = None
    tokenizer: Path | None = None
    token_dtype: str | None = None
    data_root: Path | None = None
    download: bool = False
    device: str = "auto"
    dtype: str = "float32"
    tf32: bool = False
    compile: bool = False
    batch_size: int | None = None
    memory_format: str = "auto"
    model_output: str | None = None
    score: str | None = None
    features: bool = False
    seed: int = 0
    untrained: int = 0
    controls: Sequence[str] = ()
    average: Sequence[int] = ()
    between: bool = False
    spectra: bool = False
    on_duplicate: str = OnDuplicate.DROP

    def __post_init__(self) -> None:
        for option in fields(self):
            if option.name != "probe":
                object.__setattr__(self, option.name, _plain(getattr(self, option.name)))

    @property
    def asked(self) -> Asked:
        """Of the probe."""
        names = sorted({name for kind in PROBES.values() for name in kind.options} & self.__dataclass_fields__.keys())
        options = {name: getattr(self, name) for name in names}
        given, spec = (None, self.probe) if isinstance(self.probe, str) else (self.probe, "probe")
        return Asked(spec, self.images, self.data_root, self.download, options, given=given)

    @property
    def recorded(self) -> tuple[str, ...]:
        """The signals: as asked for, else those of the probe's kind."""
        kind = PROBES.get(self.asked.kind)
        default = kind.signals if kind else DEFAULT_SIGNALS
        return tuple(dict.fromkeys(default if self.signals is None else self.signals))

    @property
    def inputs(self) -> tuple[str, ...]:
        """The controls of other inputs."""
        return tuple(dict.fromkeys(name for name in self.controls if name != UNTRAINED))

    @property
    def averaged(self) -> tuple[int, ...]:
        """Of how many checkpoints means are replayed; what lies between two is the mean of both."""
        return tuple(sorted({*self.average, *([2] if self.between else [])}))

    @property
    def networks(self) -> int:
        """How many untrained networks there are."""
        return max(self.untrained, int(UNTRAINED in self.controls))

    def check(self) -> None:
        """Raise UsageError for values that no run could be replayed with."""
        for option in fields(self):
            if option.name != "probe":
                _require_type(option.name, getattr(self, option.name), option.type)
        if not self.layers:
            raise UsageError("No layers asked for; give default, all, or globs.")
        unknown = set(self.recorded) - set(SIGNALS)
        if unknown or not self.recorded:
            raise UsageError(f"Unknown signal {', '.join(sorted(unknown)) or '(none)'}; give {' or '.join(SIGNALS)}.")
        if self.dtype not in DTYPES:
            raise UsageError(f"Unknown --dtype {self.dtype!r}; give {' or '.join(DTYPES)}.")
        if self.memory_format not in MEMORY_FORMATS:
            raise UsageError(f"Unknown --memory-format {self.memory_format!r}; give {' or '.join(MEMORY_FORMATS)}.")
        if self.on_duplicate not in list(OnDuplicate):
            raise UsageError(f"Unknown --on-duplicate {self.on_duplicate!r}; give {', '.join(OnDuplicate)}.")
        if self.score not in (None, NONE, *SCORES):
            raise UsageError(f"Unknown --score {self.score!r}; give {', '.join(SCORES)} or none.")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise UsageError(f"--seed {self.seed}: give a number from 0 to {LARGEST_SEED} (2^53).")
        for name in self.inputs:
            parse(name)
        if wrong := [count for count in self.average if not 2 <= count <= MOST_AVERAGED]:
            raise UsageError(f"--average {wrong[0]}: give numbers of checkpoints from 2 to {MOST_AVERAGED}.")
        if not 0 <= self.untrained <= MOST_CONTROLS:
            raise UsageError(f"--untrained {self.untrained}: give a number from 0 to {MOST_CONTROLS}.")

    def check_places(self, places: Sequence[Path], here: bool = True) -> None:
        """As `check`; raises PosthocError for what is not there, too. The rest is found in the planning.

        here: whether the work is done on this machine, whose devices then count.
        """
        self.check()
        parse_arguments(self.model_arg)
        parse_settings(self.settings)
        for place in places:
            if not os.path.lexists(place):
                raise PosthocError(f"No such file or folder: {place}.")
            if place.is_dir():
                children_of(place)
        if len(places) == 1:  # of several some may be left out
            refuse_folder(places[0], self.select, self.placed)
        check_probe(self.asked)
        refuse_model(self.model)
        file = (self.model or "").partition(":")[0]
        if file.endswith(".py") and not Path(file).is_file():
            raise PosthocError(
                f"{file} is no file of Python; give one." if os.path.lexists(file) else f"No such file: {file}."
            )
        _check_device(self.device, here)


def require_options(options: Mapping[str, object]) -> None:
    """Raise UsageError for names that are no options, with the nearest that is one."""
    for name in options:
        if name not in PlanOptions.__annotations__:
            raise UsageError(f"There is no option {name!r}; {nearest(name, PlanOptions.__annotations__)}")


def _plain(value: Any) -> Any:
    """An option whose numbers are Python's, also those in a list or dictionary."""
    if isinstance(value, Mapping):
        return {key: plain_number(each) for key, each in value.items()}
    return type(value)(map(plain_number, value)) if type(value) in (list, tuple) else plain_number(value)


def _require_type(name: str, value: object, kind: Any) -> None:
    """Raise UsageError for a value of an option that is not of its type; one text is no list of texts.

    >>> _require_type("layers", "all", Sequence[str])
    Traceback (most recent call last):
    posthoc.errors.UsageError: layers is 'all'; give a list, such as ['all'].
    """
    kinds = [get_origin(each) or each for each in (get_args(kind) if isinstance(kind, UnionType) else (kind,))]
    kinds += [str] if Path in kinds else []
    if isinstance(value, tuple(kinds)) and (not isinstance(value, str) or str in kinds):
        return
    example = f", such as [{value!r}]" if isinstance(value, str) else ""
    words = [f"{KINDS[each]}{example if each is Sequence else ''}" for each in kinds if each in KINDS]
    raise UsageError(f"{name} is {value!r}; give {' or '.join(words)}.")


def parse_settings(pairs: Sequence[str] | Mapping[str, Any]) -> dict[str, Any]:
    """Read `key=value` of --set: numbers and texts; a dictionary is taken as it is.

    >>> parse_settings(["lr=1e-3", "schedule=cosine"]) == parse_settings({"lr": 0.001, "schedule": "cosine"})
    True
    """
    settings = dict(pairs) if isinstance(pairs, Mapping) else parse_arguments(pairs, "--set", "lr=0.1")
    require_settings(settings, "--set")
    if taken := sorted(settings.keys() & OTHERWISE.keys()):
        raise UsageError(f"--set {taken[0]}: that is {OTHERWISE[taken[0]]}; leave it out.")
    return settings


def require_settings(settings: Any, where: str) -> None:
    """Raise UsageError for what are no hyperparameters: names with a number or text each; give such."""
    if not isinstance(settings, dict) or len(settings) > MOST_SETTINGS:
        raise UsageError(
            f"{where}: settings are an object of at most {MOST_SETTINGS} names with a number or text each; give such."
        )
    for key, value in settings.items():
        if not isinstance(value, bool | int | float | str) or len(str(value)) > LONGEST_SETTING:
            raise UsageError(
                f"{where}: the setting {key} is no number, and no text of up to {LONGEST_SETTING} characters; give one of these."
            )


def parse_arguments(pairs: Sequence[str], option: str = "--model-arg", example: str = "width=8") -> dict[str, Any]:
    """Read `key=value` arguments of a model's factory; values are Python literals, or else text.

    >>> parse_arguments(["width=64", "act=relu", "stages=[2, 2]"])
    {'width': 64, 'act': 'relu', 'stages': [2, 2]}
    """
    arguments = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise UsageError(f"{option} {pair!r} is not KEY=VALUE, such as {example}.")
        try:
            arguments[key] = ast.literal_eval(value)
            json.dumps(arguments[key])
        except (ValueError, SyntaxError, MemoryError, RecursionError):  # of which the last two come of deep brackets
            arguments[key] = value
        except TypeError as error:
            raise UsageError(f"{option} {pair!r}: give a number, text, a list or a dictionary ({error}).") from error
    return arguments


def _check_device(name: str, here: bool) -> None:
    kind = name.partition(":")[0]
    if name != "auto" and (kind not in DEVICES or not re.fullmatch(r"(:\d+)?", name[len(kind) :])):
        raise UsageError(f"--device {name}: there is no such device; give auto, cpu, cuda or cuda:N.")
    if here and kind == "cuda" and not _may_have_cuda():
        raise PosthocError(f"--device {name}: this machine has no such device (no driver of a GPU); pass --device cpu.")


def _may_have_cuda() -> bool:
    """Whether torch may find a GPU: False only where there is neither a device nor a driver to load."""
    if sys.platform != "linux" or any(Path(driver).exists() for driver in DRIVERS):
        return True
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True
