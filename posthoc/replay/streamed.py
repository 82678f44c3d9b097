"""Signals that sum a document's tokens up while the network runs, so that all channels can be recorded."""

import torch
from torch import Tensor

from posthoc.analysis.scales import START, octaves, token_lags, token_scales


def fluctuation(x: Tensor) -> Tensor:
    """Sums [B, C, S] over the windows of each of `token_scales` of squared residuals: of x [B, C, T] without the tokens at
    its start, the profile cumsum(x - mean x), less a line in each window.

    With n = T // s windows, sqrt(sum / (n s)) is F(s) as of `posthoc.analysis.dfa`.
    """
    profile = _centred(x[..., START:]).cumsum(-1)
    sums = []
    for s in token_scales(x.shape[-1]).tolist():
        windows = _centred(profile[..., : profile.shape[-1] // s * s].unflatten(-1, (-1, s)))
        line = torch.arange(s, device=x.device, dtype=x.dtype) - (s - 1) / 2
        line = line / line.square().sum().sqrt()
        rest = windows - (windows * line).sum(-1, keepdim=True) * line
        sums.append(rest.square().sum((-2, -1)))
    return torch.stack(sums, -1)


def autocovariance(x: Tensor) -> Tensor:
    """Of x [B, C, T] without the tokens at its start, at each of `token_lags` k: sum of (x_t - m) (x_t+k - m), divided by the number of tokens;
    m: the mean of the document."""
    centred = _centred(x[..., START:])
    T = centred.shape[-1]
    products = [(centred[..., : T - k] * centred[..., k:]).sum(-1) / T for k in token_lags(x.shape[-1]).tolist()]
    return torch.stack(products, -1)


def covariance(x: Tensor) -> Tensor:
    """Of x [B, C, T] without the tokens at its start, between any two channels over the tokens of a document, [B, C, C]."""
    centred = _centred(x[..., START:])
    return centred @ centred.mT / centred.shape[-1]


def position_mean(x: Tensor) -> Tensor:
    """Mean of x [B, C, T] over the positions of each of `octaves`, [B, C, P]."""
    return torch.stack([piece.mean(-1) for piece in _by_octave(x)], -1)


def position_var(x: Tensor) -> Tensor:
    """As `position_mean`, the variance (population)."""
    return torch.stack([piece.var(-1, correction=0) for piece in _by_octave(x)], -1)


def _by_octave(x: Tensor) -> list[Tensor]:
    starts = octaves(x.shape[-1]).tolist()
    return [x[..., start:stop] for start, stop in zip(starts, [*starts[1:], x.shape[-1]], strict=True)]


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)
