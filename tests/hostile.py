"""Small files that ask for much: bytes written by hand, which nothing but posthoc should read.

`KINDS` makes each, of about so many bytes, and has what is said of it; nothing where it is read like any other.
"""

import io
import json
import struct
import zipfile
from collections.abc import Callable

PROTOCOL = b"\x80\x02"


def text(word: str) -> bytes:
    """Opcodes that push a text."""
    return b"X" + struct.pack("<I", len(word.encode())) + word.encode()


def raw(data: bytes) -> bytes:
    """Opcodes that push bytes."""
    return b"B" + struct.pack("<I", len(data)) + data


def put(at: int) -> bytes:
    return b"r" + struct.pack("<I", at)


def get(at: int) -> bytes:
    return b"j" + struct.pack("<I", at)


def call(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def number(value: int) -> bytes:
    size = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def storage(name: str, size: int) -> bytes:
    return b"(" + text("storage") + call("torch", "FloatStorage") + text(name) + text("cpu") + number(size) + b"tQ"


def tensor(whole: bytes, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    sides = b"".join(b"(" + b"".join(map(number, row)) + b"t" for row in (shape, stride))
    return call("torch._utils", "_rebuild_tensor_v2") + b"(" + whole + number(offset) + sides + b"\x89}tR"


def older(body: bytes, values: bytes) -> bytes:
    """The older form of torch.save with one storage of single precision, named 0."""
    start = b"".join(PROTOCOL + number(value) + b"." for value in (0x1950A86A20F9469CFC6C, 1001)) + PROTOCOL + b"}."
    end = PROTOCOL + b"(" + text("0") + b"l." + struct.pack("<q", len(values) // 4) + values
    return start + PROTOCOL + body + b"." + end


def zipped(body: bytes, values: bytes) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("archive/data.pkl", PROTOCOL + body + b".")
        archive.writestr("archive/data/0", values)
    return data.getvalue()


def safetensors(header: object, values: bytes = b"") -> bytes:
    content = json.dumps(header).encode()
    return struct.pack("<Q", len(content)) + content + values


LOAD = call("torch.storage", "_load_from_bytes")
ARRAY = call("numpy.core.multiarray", "_reconstruct") + b"(" + call("numpy", "ndarray") + b"(K\0tC\x01btR"
FLOAT = (
    call("numpy", "dtype")
    + b"("
    + text("f4")
    + b"\x89\x88tR(K\x03"
    + text("<")
    + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
)
STATE = {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def files_in_files(size: int) -> bytes:
    """Each storage holds the next one twice: as many readings as two to the power of the depth."""
    level = older(storage("0", 1), bytes(4))
    while len(level) < min(size, 6_000):
        level = PROTOCOL + raw(level) + put(0) + b"0" + (LOAD + get(0) + b"\x85R0") * 2 + LOAD + get(0) + b"\x85R."
    return PROTOCOL + b"}" + text("w") + LOAD + raw(level) + b"\x85Rs."


def file_again_and_again(size: int) -> bytes:
    one = older(storage("0", size // 8), bytes(size // 2))
    return (
        PROTOCOL
        + raw(one)
        + put(1)
        + b"0"
        + LOAD
        + put(2)
        + b"0]("
        + (get(2) + get(1) + b"\x85R") * (size // 24)
        + b"e."
    )


def claimed_storage(size: int) -> bytes:
    return PROTOCOL + b"}" + text("w") + tensor(storage("0", 5 * 10**9), 0, (5 * 10**9,), (1,)) + b"s."


def repeated_number(size: int) -> bytes:
    return zipped(b"}" + text("w") + tensor(storage("0", 2), 0, (5 * 10**9,), (0,)) + b"s", bytes(8))


def many_views(size: int) -> bytes:
    """A storage of half the file, seen from each of its elements on."""
    count = size // 8
    names = [text(f"w{k}") + tensor(get(0), k, (count - k,), (1,)) for k in range(size // 200)]
    return zipped(storage("0", count) + put(0) + b"0}(" + b"".join(names) + b"u", bytes(4 * count))


def list_again_and_again(kind: str) -> Callable[[int], bytes]:
    def make(size: int) -> bytes:
        count = size // 12
        calls = (get(2) + get(1) + b"\x85R") * count
        return (
            PROTOCOL
            + b"]("
            + b"N" * count
            + b"e"
            + put(1)
            + b"0"
            + call(*kind.rsplit(".", 1))
            + put(2)
            + b"0]("
            + calls
            + b"e."
        )

    return make


def text_again_and_again(size: int) -> bytes:
    start = (
        call("_codecs", "encode")
        + put(2)
        + b"0"
        + text("e" * (size // 2))
        + put(1)
        + b"0"
        + text("latin1")
        + put(3)
        + b"0"
    )
    return PROTOCOL + start + b"](" + (get(2) + get(1) + get(3) + b"\x86R") * (size // 40) + b"e."


def one_dictionary_under_many_names(size: int) -> bytes:
    inner = b"}(" + b"".join(text(f"{k:07}") + b"N" for k in range(size // 28)) + b"u" + put(1) + b"0"
    return PROTOCOL + inner + b"}(" + b"".join(text(f"{k:07}") + get(1) for k in range(size // 36)) + b"u."


def equal_keys(size: int) -> bytes:
    keys = b"".join(text("k" * (size // 4)) + put(k) for k in range(2))
    return PROTOCOL + keys + b"}" + (get(0) + b"Ns" + get(1) + b"Ns") * (size // 28) + b"."


def modules(size: int) -> bytes:
    """Each module holds the next one twice."""
    empty = text("_parameters") + b"}" + text("_buffers") + b"}" + text("_modules")
    body = call("m", "M") + b")\x81}(" + text("_parameters") + b"}" + text("w") + tensor(storage("0", 1), 0, (1,), (1,))
    body += b"s" + text("_buffers") + b"}" + text("_modules") + b"}ub" + put(0) + b"0"
    for k in range(min(size // 100, 60)):
        inside = text("a") + get(k) + text("b") + get(k)
        body += call("m", "M") + b")\x81}(" + empty + b"}(" + inside + b"uub" + put(k + 1) + b"0"
    return zipped(body + get(min(size // 100, 60)), bytes(4))


def module_that_holds_itself(size: int) -> bytes:
    empty = text("_parameters") + b"}" + text("_buffers") + b"}" + text("_modules")
    name = "n" * min(size // 2, 5_000)
    return PROTOCOL + call("m", "M") + b")\x81" + put(0) + b"}(" + empty + b"}" + text(name) + get(0) + b"sub."


def arrays_of_the_same_bytes(size: int) -> bytes:
    data = raw(bytes(size // 2)) + put(1) + b"0" + FLOAT + put(2) + b"0"
    array = ARRAY + b"(K\x01(" + number(size // 8) + b"t" + get(2) + b"\x89" + get(1) + b"tb"
    return PROTOCOL + data + b"}(" + b"".join(text(f"{k:07}") + array for k in range(size // 250)) + b"u."


def one_array_under_many_names(size: int) -> bytes:
    data = (
        ARRAY
        + b"(K\x01("
        + number(size // 8)
        + b"t"
        + FLOAT
        + b"\x89"
        + raw(bytes(size // 8 * 4))
        + b"tb"
        + put(1)
        + b"0"
    )
    return PROTOCOL + data + b"}(" + b"".join(text(f"{k:07}") + get(1) for k in range(size // 40)) + b"u."


def nested_json(size: int) -> bytes:
    content = b'{"w":' + b"[" * (size // 2) + b"]" * (size // 2) + b"}"
    return struct.pack("<Q", len(content)) + content


def header_of_many_values(size: int) -> bytes:
    content = b'{"__metadata__":{"a":"b"},"w":[' + b"1," * (size // 2) + b"1]}"
    return struct.pack("<Q", len(content)) + content


def overlapping(size: int) -> bytes:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    return safetensors({f"p{k}.w": entry for k in range(size // 70)}, bytes(8))


def many_parts(size: int) -> bytes:
    count = size // 90
    entries = {f"p{k}.w": {"dtype": "F32", "shape": [2], "data_offsets": [8 * k, 8 * k + 8]} for k in range(count)}
    return safetensors(entries, bytes(8 * count))


def many_entries(size: int) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("archive/data.pkl", PROTOCOL + b"}.")
        for k in range(size // 110):
            archive.writestr(f"archive/x{k}", b"")
    return data.getvalue()


def entry_twice(size: int) -> bytes:
    body = b"}" + text("w") + tensor(storage("0", size // 4), 0, (size // 4,), (1,)) + b"s"
    data = io.BytesIO(zipped(body, bytes(size // 4 * 4)))
    with zipfile.ZipFile(data, "a") as archive:
        archive.writestr("archive/DATA/0", b"\1" * (size // 4 * 4))
    return data.getvalue()


def compressed(size: int) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"N" * (100 * size))
    return data.getvalue()


def long_numbers(size: int) -> bytes:
    long = b"\x8b" + struct.pack("<i", size // 2) + b"a" * (size // 2)
    return PROTOCOL + long + put(0) + b"0}" + (get(0) + b"Ns") * (size // 14) + b"."


def twice_the_one_before(size: int) -> bytes:
    return PROTOCOL + b"}" + text("epoch") + b")" + b"2\x86" * (size // 2) + b"s."


def plain(code: bytes) -> Callable[[int], bytes]:
    return lambda size: PROTOCOL + code * (size // len(code)) + b"."


KINDS: dict[str, tuple[Callable[[int], bytes], str]] = {
    "files in files": (files_in_files, "steps|deep"),
    "file again and again": (file_again_and_again, "claims|steps"),
    "claimed storage": (claimed_storage, "claims 20 GB of tensors"),
    "repeated number": (repeated_number, "claims 20 GB of tensors"),
    "many views": (many_views, "claims|describes"),
    "sets": (list_again_and_again("builtins.set"), "steps"),
    "sizes": (list_again_and_again("torch.Size"), "steps"),
    "dictionaries": (list_again_and_again("collections.OrderedDict"), "steps"),
    "text again and again": (text_again_and_again, "claims"),
    "one dictionary under many names": (one_dictionary_under_many_names, "steps"),
    "equal keys": (equal_keys, "steps"),
    "modules": (modules, "steps"),
    "module that holds itself": (module_that_holds_itself, "claims|steps"),
    "arrays of the same bytes": (arrays_of_the_same_bytes, "claims|describes"),
    "one array under many names": (one_array_under_many_names, ""),
    "nested json": (nested_json, "nests values"),
    "header of many values": (header_of_many_values, "damaged"),
    "overlapping": (overlapping, "two of its tensors lie in the same bytes"),
    "many parts": (many_parts, ""),
    "many entries": (many_entries, "no state dict"),
    "entry twice": (entry_twice, "one name twice"),
    "compressed": (compressed, "compressed inside"),
    "long numbers": (long_numbers, "no state dict"),
    "twice the one before": (twice_the_one_before, "no state dict"),
    "dictionaries on the stack": (plain(b"}"), "no state dict"),
    "records": (lambda size: plain(b"h\0)\x81")(size).replace(PROTOCOL, PROTOCOL + b"cm\nM\nq\0", 1), "no state dict"),
    "memo": (lambda size: PROTOCOL + b"]" + b"\x94" * size + b".", "no state dict"),
}
