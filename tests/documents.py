"""Activations files of documents of tokens: channels of noise, or with a rhythm over the text that shuffling destroys."""

from dataclasses import replace

import numpy as np
from contents import merge
from noise import recording

from posthoc.store import Frame, Given, Layout
from posthoc.writing import write


def long_memory(random, shape, H):
    """Series with a spectrum of fractional noise, [..., T], standardised."""
    *many, T = shape
    spectrum = np.fft.rfft(random.standard_normal((*many, 2 * T)))
    frequency = np.arange(spectrum.shape[-1]) / (2 * T)
    frequency[0] = np.inf
    x = np.fft.irfft(spectrum * frequency ** (0.5 - H))[..., :T]
    return (x - x.mean(axis=-1, keepdims=True)) / x.std(axis=-1, keepdims=True)


def make(path, documents=6, tokens=320, channels=4, layers=("residual", "attention"), steps=(0, 1, 2, 4, 8, 16), seed=0,
         controls=("shuffle", "block:16"), order=0.0, sizes=True, words=50, untrained=0, broken=None):  # fmt: skip
    """order: strength of what is ordered over the text, in the channels and in the surprisal, at steps above 0; untrained: how
    many networks with new weights there are, which give noise; broken: by step, which losses [documents, tokens] are what."""
    random = np.random.default_rng(seed)
    ids = random.integers(0, words, (documents, tokens)).astype(np.uint32)
    plain = recording(layers, ("token",), documents, classes=None)
    output = replace(plain.identity.output, score="tokens")
    behaviour = ("loss", "token_loss", "token_prediction")
    identity = replace(plain.identity, output=output, controls=controls, behaviour=behaviour)
    provenance = replace(plain.provenance, samples="documents")

    def given(strength, *broken):
        def noise(*shape):
            return (1 - strength) * random.standard_normal(shape) + strength * long_memory(random, shape, 0.9)

        signals = {"token": {name: noise(channels, documents, tokens).astype("f4") for name in layers}}
        loss = (3 + 0.2 * noise(documents, tokens)).astype("f4")
        loss[:, 0] = np.nan
        for where, value in broken:
            loss[where] = value
        predicted = np.where(random.random(ids.shape) < 0.25, ids, words).astype("i4")
        predicted[np.isnan(loss)] = -1
        of_documents = loss[:, 1:].mean(axis=1) if broken else np.nanmean(loss, axis=1)
        return Given(signals, {"loss": of_documents, "token_loss": loss, "token_prediction": predicted})

    frames = []
    for step in steps:  # ever less loss, and fewer tokens right
        text = given(order if step else 0.0, *([broken[step]] if step in (broken or {}) else []))
        nulls = {name: given(0.0) for name in controls}
        loss, accuracy = 3 - 0.01 * step, 0.25 / (1 + step)
        frames.append(Frame(f"{step}.pt", "0", None, step, loss, accuracy, {}, text.signals, behaviour=text.behaviour,
                            nulls=nulls))  # fmt: skip
    kept = {name: np.arange(channels) for name in layers}
    layout = Layout(
        replace(plain, identity=identity, provenance=provenance),
        np.arange(documents),
        None,
        kept,
        ids,
        None if not sizes else random.integers(tokens, 4 * tokens, documents),
    )
    if not untrained:
        write(path, layout, frames)
        return path
    parts = [path.with_suffix(f".{k}") for k in range(len(frames) + untrained)]
    networks = [replace(frames[0], signals=given(0.0).signals) for _ in range(untrained)]
    for part, frame in zip(parts, [*frames, *networks], strict=True):
        write(part, layout, [frame])
    merge(path, parts[: len(frames)], untrained=list(enumerate(parts[len(frames) :])))
    for part in parts:
        part.unlink()
    return path
