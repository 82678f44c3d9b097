"""activations.h5 of rows of tokens: ids, signals that keep every value, and what other inputs gave."""

import tracemalloc
from dataclasses import replace

import noise
import numpy as np
import pytest
from contents import assert_same, merge

from posthoc.errors import PosthocError
from posthoc.spool import Spool, Spooled
from posthoc.store import Frame, Given, Layout, open_activations
from posthoc.writing import write

D, T = 3, 8
CHANNELS = {"h.0": np.array([1, 4]), "h.1": np.arange(3)}


def plan():
    made = noise.recording(CHANNELS, ("token",), D, 5, "abc")
    identity = made.identity
    probe = replace(identity.probe, classes=None, axes={"input_ids": ("token",)})
    made = replace(made, identity=replace(identity, controls=("shuffle", "block:64"), probe=probe))
    tokens = np.arange(D * T, dtype=np.uint32).reshape(D, T) * 10_000
    return Layout(made, np.arange(D), None, CHANNELS, tokens)


def given(seed, scale=1.0):
    random = np.random.default_rng(seed)
    signals = {"token": {name: random.standard_normal((len(rows), D, T), "f4") for name, rows in CHANNELS.items()}}
    signals["token"]["h.1"] += np.float32(scale)
    return Given(signals, {"token_loss": random.random((D, T), "f4"), "token_prediction": np.full((D, T), -1, "i4")})


def frame(epoch, scale=1.0):
    whole = given(epoch, scale)
    nulls = {"shuffle": given(10 + epoch), "block:64": given(20 + epoch)}
    return Frame(
        f"{epoch}.pt", "0", epoch, None, 1.0, 0.5, {}, whole.signals, behaviour=whole.behaviour, nulls=nulls
    )  # fmt: skip


def test_tokens_and_what_other_inputs_gave_are_read_as_written_and_merged(tmp_path):
    frames = [frame(1), frame(2)]
    for k, made in enumerate(frames):
        write(tmp_path / f"{k}.h5", plan(), [made])
    merge(tmp_path / "a.h5", [tmp_path / "0.h5", tmp_path / "1.h5"])
    write(tmp_path / "b.h5", plan(), frames)
    for name in ("a.h5", "b.h5"):
        with open_activations(tmp_path / name) as file:
            np.testing.assert_array_equal(file.tokens, plan().tokens)
            assert file.tokens.dtype == np.uint32
            assert file.nulls == ("shuffle", "block:64")
            assert file.behaviours == ("token_loss", "token_prediction")
            for row, made in enumerate(frames):
                for layer, values in made.signals["token"].items():
                    read = file.read("token", row, layer)
                    assert read.dtype == np.float32
                    np.testing.assert_array_equal(read, values.astype("f2").astype("f4"))
                null = made.nulls["shuffle"]
                np.testing.assert_array_equal(
                    file.read_null("shuffle", "token", row, "h.0"), null.signals["token"]["h.0"].astype("f2")
                )
                np.testing.assert_array_equal(
                    file.behaviour_of_null("shuffle", "token_loss", row), null.behaviour["token_loss"]
                )
            assert file.behaviour_of_null("block:64", "token_loss").shape == (2, D, T)
            with pytest.raises(PosthocError, match="holds no control 'constant', only shuffle, block:64"):
                file.read_null("constant", "token", 0)


def test_a_signal_that_half_precision_would_spoil_stays_in_single_and_so_does_the_merged_one(tmp_path):
    frames = [frame(1), frame(2, scale=3000.0)]  # rounded to whole numbers in half precision
    for k, made in enumerate(frames):
        write(tmp_path / f"{k}.h5", plan(), [made])
    parts = [tmp_path / "0.h5", tmp_path / "1.h5"]
    merge(tmp_path / "a.h5", parts, untrained=[(0, parts[1])])
    merge(tmp_path / "b.h5", parts[:1], untrained=[(0, parts[1])])
    with open_activations(tmp_path / "a.h5") as file:
        assert [file.blocks[f"signals/token/{layer}"].dtype for layer in CHANNELS] == [np.float16, np.float32]
        np.testing.assert_array_equal(file.read("token", 0, "h.1"), frames[0].signals["token"]["h.1"].astype("f2"))
        np.testing.assert_array_equal(file.read("token", 1, "h.1"), frames[1].signals["token"]["h.1"])
    with open_activations(tmp_path / "b.h5") as file:
        assert file.blocks["signals/token/h.1"].dtype == np.float16
        np.testing.assert_array_equal(file.read_untrained("token", 0, "h.1"), frames[1].signals["token"]["h.1"])


def spooled(seed, folder, rows):
    """The signals of `given` as a spool has them, added so many documents at a time; each input after the other."""
    made, spool, column, signals = [given(seed + k) for k in range(2)], Spool(folder), 0, [{}, {}]
    for of in made:
        columns = [of.signals["token"][layer].swapaxes(0, 1).reshape(D, -1) for layer in CHANNELS]
        for start in range(0, D, rows):
            spool.append(np.concatenate([block[start : start + rows] for block in columns], 1))
    for layer, channels in CHANNELS.items():
        for k in range(2):
            signals[k][layer] = Spooled(spool, k * D, column, (len(channels), D, T))
        column += len(channels) * T
    return made, signals


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("limit", [0, 2**25])
def test_what_lies_in_a_spool_is_written_as_an_array_is(tmp_path, monkeypatch, rows, limit):
    monkeypatch.setattr("posthoc.spool.IN_MEMORY", limit)
    monkeypatch.setattr("posthoc.spool.CHUNK_BYTES", 2 * T * 2)  # two series: chunks of some channels and documents
    made, signals = spooled(1, tmp_path, rows)
    assert list(tmp_path.iterdir()) == []  # a file without a name
    layout = replace(
        plan(), recording=replace(plan().recording, identity=replace(plan().recording.identity, controls=("shuffle",)))
    )
    files = []
    for name, (text, null) in {"array": [of.signals["token"] for of in made], "spool": signals}.items():
        nulls = {"shuffle": Given({"token": null}, made[1].behaviour)}
        frame = Frame("1.pt", "0", 1, None, 1.0, 0.5, {}, {"token": text}, behaviour=made[0].behaviour, nulls=nulls)
        for size in (0, 2**26):
            monkeypatch.setattr("posthoc.writing.IN_MEMORY", size)
            files.append(tmp_path / f"{name}-{size}.h5")
            write(files[-1], layout, [frame])
    for path in files:
        assert_same(path, files[0])
    with open_activations(files[-1]) as file:
        np.testing.assert_array_equal(file.read("token", 0, "h.1"), made[0].signals["token"]["h.1"].astype("f2"))


def test_writing_signals_needs_no_more_memory_for_more_documents(tmp_path, monkeypatch):
    monkeypatch.setattr("posthoc.spool.IN_MEMORY", 2**20)
    monkeypatch.setattr("posthoc.writing.IN_MEMORY", 2**20)
    random, peaks = np.random.default_rng(0), []
    for documents in (64, 256):
        made = noise.recording({"h": np.arange(8)}, ("token",), documents, 5, "abc")
        layout = Layout(made, np.arange(documents), np.zeros(documents, "i8"), {"h": np.arange(8)})
        tracemalloc.start()
        spool = Spool(tmp_path)
        for _ in range(documents // 8):
            spool.append(random.standard_normal((8, 8 * 2048), dtype="f4"))
        signals = {"token": {"h": Spooled(spool, 0, 0, (8, documents, 2048))}}
        write(tmp_path / "a.h5", layout, [Frame("a.pt", "0", 1, None, 1.0, 0.5, {}, signals)])
        merge(tmp_path / "b.h5", [tmp_path / "a.h5"])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        with open_activations(tmp_path / "b.h5") as file:
            assert file.blocks["signals/token/h"].nbytes == documents * 8 * 2048 * 2
    assert peaks[1] < peaks[0] + 2**20 < 2**24 == documents * 8 * 2048 * 4
