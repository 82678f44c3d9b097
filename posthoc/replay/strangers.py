"""Which other kind of file one is that is no checkpoint, by its first bytes."""

import re
import struct
import zipfile
from pathlib import Path

from posthoc.errors import PosthocError
from posthoc.files import HDF5, open_regular

ACTIVATIONS = "an activations file, which posthoc extract wrote: give the checkpoints that it was made of"
MAGIC = (
    (b"version https://git-lfs.github.com/spec/", "a Git LFS pointer, not the file itself: run git lfs pull where it was cloned"),
    (
        HDF5,
        "an HDF5 file, such as Keras writes: load it there and save its arrays by name with safetensors.numpy.save_file",
    ),
    (b"GGUF", "a GGUF file, weights prepared for inference: give the checkpoint that it was converted from"),
    (b"\x93NUMPY", "a NumPy array: put the network's arrays by name into a dictionary, and torch.save it"),
    (b"\x1f\x8b", "compressed with gzip: decompress it first"),
    (b"BZh", "compressed with bzip2: decompress it first"),
    (b"\xfd7zXZ\0", "compressed with xz: decompress it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstandard: decompress it first"),
    (b"\x04\x22\x4d\x18", "compressed with LZ4: decompress it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive: unpack it and give a checkpoint from it"),
    (b"Rar!\x1a\x07", "a RAR archive: unpack it and give a checkpoint from it"),
    (b"\x7fELF", "a program: give the checkpoint"),
    (b"\x89PNG\r\n", "a picture: give the checkpoint"),
    (b"\xff\xd8\xff", "a picture: give the checkpoint"),
    (b"%PDF-", "a PDF document: give the checkpoint"),
    (b"SQLite format 3\0", "an SQLite database: give the checkpoint"),
    (b"PAR1", "a Parquet table: give the checkpoint"),
    (b"\x03\0\0\0\x01\0\0\0", "a file of Torch7 (Lua): convert it to PyTorch first"),
    (b"\x04\0\0\0\x01\0\0\0", "a file of Torch7 (Lua): convert it to PyTorch first"),
)  # fmt: skip
"""First bytes, and what a file that begins so is, with the way out."""
TENSORFLOW = (
    "a part of a TensorFlow checkpoint: load it in TensorFlow and save the arrays with safetensors or torch.save"
)
TABLE_END = 0xDB4775248B80FB57.to_bytes(8, "little")
"""What the index of a TensorFlow checkpoint ends with."""
ARCHIVES = (
    (
        r"model\.weights\.h5",
        "a Keras archive: load it there and save its arrays by name with safetensors.numpy.save_file",
    ),
    (r"pytorch_variables\.pth", "an archive of Stable-Baselines3 without a policy.pth: save the agent again"),
    (r".*\.npy", "an archive of NumPy arrays: put the network's arrays by name into a dictionary, and torch.save it"),
    (
        r".*serialized_exported_program\.json|[^/]+/archive_format",
        "an exported program of torch.export: give the checkpoint it was made from",
    ),
    (r".*/\.data/extern_modules", "a torch.package: save the network's state_dict() with torch.save"),
    (r"\[Content_Types\]\.xml", "a document of an office program: give the checkpoint"),
    (r"AndroidManifest\.xml|META-INF/.*", "a program in a zip archive: give the checkpoint"),
)
"""Names in a zip archive, and what an archive with one of them is."""
PLAIN_ARCHIVE = "a zip archive, but not one of torch.save: unpack it and give a checkpoint from it"


class NoWeightsError(PosthocError):
    """The file is sound and holds no network's weights; what: so in a few words."""

    def __init__(self, message: str, what: str = "no network's weights") -> None:
        super().__init__(message)
        self.what = what


class StrangerError(NoWeightsError):
    """The file is something else than a checkpoint that is read here: that, and after a colon the way out."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"{path} is {what}.", what.partition(": ")[0])


class UnsupportedError(ValueError):
    """What the file holds is not damaged and is not read here; the message says what it is, remedy what to do."""

    def __init__(
        self, what: str, remedy: str = "save the weights again, with today's torch.save or as safetensors"
    ) -> None:
        super().__init__(what)
        self.remedy = remedy


def stranger(path: Path, head: bytes, tail: bytes) -> str | None:
    """What a file is, and the way out, where it is of a kind that is known and not read here; else None.

    Decided by its first and last bytes and for a zip archive by what is in it; for TensorFlow's data by the name.
    """
    if head.startswith(HDF5):
        from posthoc.store import FORMAT  # here, for h5py takes long to import

        if FORMAT.encode() in head:
            return ACTIVATIONS
    for magic, what in MAGIC:
        if head.startswith(magic):
            return what
    if tail == TABLE_END or re.search(r"\.data-\d{5}-of-\d{5}\Z", path.name):
        return TENSORFLOW
    if head[257:262] == b"ustar":
        return "a tar archive: unpack it and give a checkpoint from it"
    if b"joblib.numpy_pickle" in head or b"joblib\x94" in head or head[:2] in (b"x\x9c", b"x\x01", b"x\xda", b"x^"):
        return "a file of joblib, such as scikit-learn's, which holds no network: give a checkpoint"
    if head[:1] == b"\x08" and head[1:2] < b"\x20" and head[2:3] in (b"\x12", b"\x1a", b"\x3a", b"\x42"):
        return "an ONNX network: give the PyTorch checkpoint that it was exported from"
    if head[4:8] == b"TFL3":
        return "a TensorFlow Lite network, prepared for inference: give the checkpoint that it was converted from"
    if re.match(rb"[\x81-\x8f][\xa1-\xbf][A-Za-z_]", head):
        return (
            "a MessagePack file, such as Flax writes: restore it with flax.serialization and save its arrays by name with "
            "safetensors.flax.save_file"
        )
    if head.startswith(b"PK\3\4") and (names := entries(path)):
        return next((what for form, what in ARCHIVES if any(re.fullmatch(form, name) for name in names)), PLAIN_ARCHIVE)
    return _text(head)


def entries(archive: Path) -> list[str]:
    """The names in a zip archive; none where it is damaged."""
    try:
        with open_regular(archive) as file:
            return zipfile.ZipFile(file).namelist()
    except (OSError, PosthocError, zipfile.BadZipFile, ValueError, NotImplementedError, struct.error):
        return []


def nothing_known(head: bytes) -> str | None:
    """What a file is that could not be read, where it is no damaged checkpoint either; None where it may be one.

    A damaged checkpoint still begins as one: as a zip archive, with the number of a pickle's protocol, or with a
    length and the JSON object of safetensors.
    """
    beginning = head.startswith(b"PK\3\4") or (head[:1] == b"\x80" and head[1:2] <= b"\x05") or head[8:9] == b"{"
    if len(head) < 9 or beginning:
        return None
    if head.isascii() and not re.search(rb"[^\t\n\r\f\x20-\x7e]", head):
        return "a text file: give the checkpoint"
    return "of none of the formats that are read here (torch.save, safetensors, pickles of tensors): save the weights as one of them"


def _text(head: bytes) -> str | None:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:200].lower()
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<svg", b"<error", b"<body")):
        return "an HTML or XML page, such as a server sends in place of a file: download it again, perhaps logged in"
    if start.startswith(b"model_checkpoint_path:"):
        return "the list of TensorFlow's checkpoints: convert them to PyTorch first"
    if re.match(rb'[{]\s*("|[}])|\[\s*["{\[\d]', start) and head.lstrip().isascii():
        return "a JSON text: give the checkpoint"
    return "a script: give the checkpoint" if start.startswith(b"#!") else None
