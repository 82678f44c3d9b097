"""What a network says of the next token: loss, entropy and prediction, in pieces that never hold all scores twice."""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from posthoc.replay.scores import Reduced

VALUES = 2**24
"""Scores that are worked on at a time: 64 MiB in single precision."""


def next_token(scores: "Tensor", ids: "Tensor") -> "Reduced":
    """Of each token what was said of it given those before it; scores [B, T, V], ids [B, T].

    loss: -log p(token); entropy: of p, in nat; prediction: the likeliest; at the first token, of which nothing is said,
    NaN and -1. right: [B], the share of the others that were predicted.
    """
    import torch

    (B, T), V = ids.shape, scores.shape[2]
    loss = torch.full((B, T), math.nan, device=ids.device)
    entropy = loss.clone()
    prediction = torch.full((B, T), -1, dtype=torch.int32, device=ids.device)
    rows = max(1, VALUES // (V * T))
    places = max(1, VALUES // (V * rows))
    for row in range(0, B, rows):
        for place in range(1, T, places):
            said = (slice(row, row + rows), slice(place, place + places))
            piece = scores[row : row + rows, place - 1 : min(place + places, T) - 1].float()
            logs = piece.log_softmax(-1)
            loss[said] = -logs.gather(-1, ids[said][..., None])[..., 0]
            entropy[said] = torch.special.entr(logs.exp()).sum(-1)
            prediction[said] = piece.argmax(-1).int()
    right = (prediction == ids)[:, 1:].double().mean(1)
    return {"token_loss": loss, "token_entropy": entropy, "token_prediction": prediction, "right": right}


def summed_up(reduced: "Reduced") -> tuple[float, float, dict[str, "Tensor"]]:
    """Means over the tokens but the first of each document: of the loss, and of whether they were predicted; and what is
    kept of each document."""
    each = reduced["token_loss"][:, 1:].double().mean(1)
    samples = {"loss": each.float(), **{name: column for name, column in reduced.items() if name != "right"}}
    return each.mean().item(), reduced["right"].mean().item(), samples
