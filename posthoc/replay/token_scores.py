"""What a network says of the next token: loss, entropy and prediction, in pieces that never hold all scores twice."""

import math
from typing import TYPE_CHECKING

from posthoc.replay.padding import followed

if TYPE_CHECKING:
    from torch import Tensor

    from posthoc.replay.scores import Reduced

VALUES, VALUES_ON_CPU = 2**24, 2**16
"""Scores that are worked on at a time: 64 MiB in single precision; on a CPU as many as its caches hold beside others."""
LOWEST = -1e4
"""Below the largest score: what stands for minus infinity."""


def next_token(scores: "Tensor", ids: "Tensor", real: "Tensor | None" = None) -> "Reduced":
    """Of each token what was said of it given those before it; scores [B, T, V], ids [B, T].

    loss: -log p(token); entropy: of p, in nat; prediction: the likeliest; at the first token, of which nothing is said, and
    where scores are no numbers, NaN and -1. right: [B], the share of all but the first that were predicted, NaN with such.

    real: [B, T], where some tokens are padding, which are not. Those alone that follow another are scored; then `scored`
    says which [B, T], and right is how many were predicted.
    """
    import torch

    loss = torch.full(ids.shape, math.nan, device=ids.device)
    entropy = loss.clone()
    prediction = torch.full(ids.shape, -1, dtype=torch.int32, device=ids.device)
    (_compiled if _compiles(ids) else _by_torch)(scores, ids, loss, entropy, prediction)
    prediction = torch.where(entropy.isnan(), -1, prediction)  # of scores that are no numbers nothing is the likeliest
    hits = torch.where(prediction < 0, math.nan, (prediction == ids).double())
    if real is not None:
        scored = followed(real)
        return {
            "token_loss": loss.where(scored, math.nan),
            "token_entropy": entropy.where(scored, math.nan),
            "token_prediction": prediction.where(scored, -1),
            "right": hits.where(scored, 0).sum(1),
            "scored": scored,
        }
    right = hits[:, 1:].mean(1)
    return {"token_loss": loss, "token_entropy": entropy, "token_prediction": prediction, "right": right}


def _compiles(ids: "Tensor") -> bool:
    """Whether this is work for a CPU, and there is a compiler for it."""
    if ids.device.type != "cpu":
        return False
    from posthoc.analysis.kernels import config

    return not config.DISABLE_JIT


def _compiled(scores: "Tensor", ids: "Tensor", loss: "Tensor", entropy: "Tensor", prediction: "Tensor") -> None:
    """On a CPU: in two passes over each row of scores, the second while it is in the cache."""
    from posthoc.analysis.kernels import in_threads
    from posthoc.analysis.kernels.next_token import loss_and_entropy

    (B, T), V = ids.shape, scores.shape[2]
    at_once = max(1, VALUES_ON_CPU // V)
    pieces = [(row, place) for row in range(B) for place in range(1, T, at_once)]
    tokens, of_loss, of_entropy, predicted = (tensor.numpy() for tensor in (ids, loss, entropy, prediction))

    def work(first: int, last: int) -> None:
        for row, place in pieces[first:last]:
            here = row, slice(place, place + at_once)
            values = scores[row, place - 1 : min(place + at_once, T) - 1].float().contiguous().numpy()
            likeliest = values.argmax(-1)
            loss_and_entropy(values, likeliest, tokens[here], of_loss[here], of_entropy[here])
            predicted[here] = likeliest

    in_threads(work, len(pieces))


def _by_torch(scores: "Tensor", ids: "Tensor", loss: "Tensor", entropy: "Tensor", prediction: "Tensor") -> None:
    """On any device, in pieces whose memory is taken once."""
    import torch

    (B, T), V = ids.shape, scores.shape[2]
    rows = max(1, VALUES // (V * T))
    places = max(1, VALUES // (V * rows))
    room = torch.empty(2, min(rows, B) * min(places, T) * V, device=ids.device)  # new memory costs as much as the work
    for row in range(0, B, rows):
        for place in range(1, T, places):
            positions = (slice(row, row + rows), slice(place, place + places))
            piece = scores[row : row + rows, place - 1 : min(place + places, T) - 1].float()
            likeliest = piece.argmax(-1, keepdim=True)
            below, p = (memory[: piece.numel()].view(piece.shape) for memory in room)
            torch.sub(piece, piece.gather(-1, likeliest), out=below)
            token = below.gather(-1, ids[positions][..., None])
            total = torch.exp(below, out=p).sum(-1, keepdim=True)
            loss[positions] = (total.log() - token)[..., 0]
            p *= below.clamp_(min=LOWEST)  # of p = 0 nothing comes
            entropy[positions] = (total.log() - p.sum(-1, keepdim=True) / total)[..., 0]
            prediction[positions] = likeliest[..., 0].int()


def summed_up(reduced: "Reduced") -> tuple[float, float, dict[str, "Tensor"]]:
    """Means over the tokens but the first of each document, and without padding: of the loss, and of whether they were
    predicted; and what is kept of each document."""
    if "scored" in reduced:
        counts = reduced["scored"].sum(1)
        sums = reduced["token_loss"].double().where(reduced["scored"], 0).sum(1)
        total = counts.sum()
        samples = {"loss": (sums / counts).float()}
        samples |= {name: column for name, column in reduced.items() if name not in ("right", "scored")}
        return (sums.sum() / total).item(), (reduced["right"].sum() / total).item(), samples
    each = reduced["token_loss"][:, 1:].double().mean(1)
    samples = {"loss": each.float(), **{name: column for name, column in reduced.items() if name != "right"}}
    return each.mean().item(), reduced["right"].mean().item(), samples
