"""Local linear models of many samples at once: lime's weighted ridge regression in closed form."""

from __future__ import annotations

from typing import NamedTuple

import torch

FORWARD_UP_TO = 6  # features: more are selected by their weights (lime's "auto")
SELECTION_ALPHA = 0.01


class Fit(NamedTuple):
    """Of n samples.

    Attributes
    ----------
    slopes : (n, d); zero for features that were not selected
    errors : (n, d) standard errors of the slopes (sandwich), NaN for features that were not selected
    intercept : (n,)
    r2 : (n,) share of the weighted variance of the values that the model explains; NaN where all values are equal
    """

    slopes: torch.Tensor
    errors: torch.Tensor
    intercept: torch.Tensor
    r2: torch.Tensor


def weighted_ridge(
    features: torch.Tensor, weights: torch.Tensor, values: torch.Tensor, *, alpha: float = 1.0, used: torch.Tensor | None = None
) -> Fit:
    """Ridge regressions with an intercept that is not penalised, as lime fits them; one per sample, all solved together.

    A feature that is zero everywhere (of a sample with fewer parts than the others) gets slope 0. Samples with values that are not
    finite get NaN.

    Parameters
    ----------
    features : (n, d, R) float64, one column per neighbour
    weights : (n, R) float64, positive
    values : (n, R) float64
    used : (n, d) bool, the features that may have a slope; None: all

    References
    ----------
    White (1980). A heteroskedasticity-consistent covariance matrix estimator and a direct test for heteroskedasticity. doi:10.2307/1912934
    """
    finite = torch.isfinite(values).all(dim=1)
    constant = values.amax(dim=1) == values.amin(dim=1)
    y = torch.where(finite[:, None], values, 0.0)
    gram, mean_x, mean_y, right = _moments(features, weights, y)
    eye = torch.eye(features.shape[1], dtype=features.dtype, device=features.device)
    if used is not None:
        gram = gram * (used[:, :, None] & used[:, None, :])
        right = right * used
    bread = torch.linalg.inv(gram + alpha * eye)
    slopes = (bread @ right[:, :, None])[:, :, 0]
    offset = (slopes * mean_x).sum(dim=1)
    residual = y - mean_y[:, None] + offset[:, None] - torch.bmm(slopes[:, None], features)[:, 0]
    squares = (weights * (y - mean_y[:, None]) ** 2).sum(dim=1)
    r2 = 1 - (weights * residual**2).sum(dim=1) / torch.where(constant, 1.0, squares)
    # diag(bread · meat · bread) without the meat: the rows of bread · x, weighted and squared
    reach = torch.bmm(bread, features).sub_(torch.bmm(bread, mean_x[:, :, None]))
    errors = reach.mul_((weights * residual)[:, None]).square_().sum(dim=2).sqrt()
    nothing = torch.nan
    blank = constant[:, None]
    slopes, errors = slopes.masked_fill(blank, 0.0), errors.masked_fill(blank, 0.0)
    if used is not None:
        errors = errors.masked_fill(~used, nothing)
    broken = ~finite
    return Fit(
        slopes.masked_fill(broken[:, None], nothing),
        errors.masked_fill(broken[:, None], nothing),
        (mean_y - offset).masked_fill(broken, nothing),
        r2.masked_fill(broken | constant, nothing),
    )


def selected(features: torch.Tensor, weights: torch.Tensor, values: torch.Tensor, own: torch.Tensor, k: int) -> torch.Tensor:
    """(n, d) bool: the k features that lime selects ("auto").

    Up to 6: one after another, each time the one with which an unpenalised model explains most. Above: those of largest
    |slope · own value| in a ridge with alpha 0.01.

    Parameters
    ----------
    own : (n, d) the sample's own features
    """
    n, d, _ = features.shape
    chosen = torch.zeros((n, d), dtype=torch.bool, device=features.device)
    if k > FORWARD_UP_TO:
        slopes = weighted_ridge(features, weights, values, alpha=SELECTION_ALPHA).slopes
        order = torch.argsort((slopes * own).abs().nan_to_num(nan=0.0), dim=1, descending=True, stable=True)
        return chosen.scatter(1, order[:, :k], True)
    gram, _, _, right = _moments(features, weights, torch.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0))
    scale = gram.diagonal(dim1=1, dim2=2).clone()
    rows = torch.arange(n, device=features.device)
    for _ in range(min(k, d)):
        left = gram.diagonal(dim1=1, dim2=2)
        alive = left > 1e-10 * scale.clamp(min=1e-300)
        gain = torch.where(alive, right**2 / left.where(alive, torch.ones_like(left)), 0.0).masked_fill(chosen, -1.0)
        best = gain.argmax(dim=1)
        chosen[rows, best] = True
        # what is left of the others once this one is in the model (Schur complement)
        pivot = left[rows, best]
        factor = torch.where(alive[rows, best][:, None], gram[rows, :, best] / torch.where(pivot > 0, pivot, 1.0)[:, None], 0.0)
        right = right - factor * right[rows, best][:, None]
        gram = gram - factor[:, :, None] * gram[rows, best][:, None, :]
    return chosen


def _moments(
    features: torch.Tensor, weights: torch.Tensor, y: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weighted and centred: gram (n, d, d), mean of the features (n, d) and of the values (n,), features x values (n, d)."""
    n, d, size = features.shape
    mean_y = (weights * y).sum(dim=1) / weights.sum(dim=1)
    # one product of matrices for all moments: matrix times vector is several times as slow for its size
    root = weights.sqrt()
    pushed = features.new_empty((n, d + 2, size))
    torch.mul(features, root[:, None], out=pushed[:, :d])
    pushed[:, d] = root
    pushed[:, d + 1] = root * (y - mean_y[:, None])
    raw = torch.bmm(pushed, pushed.transpose(1, 2))
    total = raw[:, d, d]
    mean_x = raw[:, :d, d] / total[:, None]
    gram = raw[:, :d, :d] - total[:, None, None] * mean_x[:, :, None] * mean_x[:, None, :]
    right = raw[:, :d, d + 1] - mean_x * raw[:, d, d + 1, None]
    return gram, mean_x, mean_y, right
