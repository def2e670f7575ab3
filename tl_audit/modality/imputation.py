"""What stands in for removed pixels: noisy linear imputation (ROAD), blur, mean, other pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

# Jacobi steps before and after each correction from the level below. The nine-point mean damps whatever lives on one level only to a third
# per step, so two are enough. Distance to the exact solution on 224 px photos, 10 to 90 % removed, as a share of the range: mean 0.001 to
# 0.004, largest 0.03, below the noise that is added on top.
STEPS = 2
COARSEST_STEPS = 8
COARSEST = 4
# Values solved together (8 pictures of 224 px): more would not stay in the processor's cache, fewer would pay for the small levels each time.
CHUNK = 8 * 3 * 224 * 224


class _Level(NamedTuple):
    """One resolution. ``unknown``: (R, 1, H, W) bool; ``factor``: one over the weight of a pixel's neighbours, 0 where it is known; ``held``: known values, else 0."""

    unknown: torch.Tensor
    factor: torch.Tensor
    held: torch.Tensor


def _neighbour_sum(framed: torch.Tensor) -> torch.Tensor:
    """(..., H, W) weighted sum of the 8 neighbours of values framed by zeros (..., H+2, W+2): weights 2 direct and 1 diagonal. [1 2 1] twice, less the centre."""
    rows = framed[..., :-2, :] + framed[..., 2:, :]
    rows.add_(framed[..., 1:-1, :], alpha=2)
    both = rows[..., :-2] + rows[..., 2:]
    both.add_(rows[..., 1:-1], alpha=2)
    return both.sub_(_inner(framed), alpha=4)


def _inner(framed: torch.Tensor) -> torch.Tensor:
    return framed[..., 1:-1, 1:-1]


def _framed(x: torch.Tensor) -> torch.Tensor:
    return F.pad(x, (1, 1, 1, 1))


def _halved(x: torch.Tensor) -> torch.Tensor:
    """Means of 2 x 2 pixels; of those there are at the rim of an odd side."""
    if x.shape[-2] % 2 or x.shape[-1] % 2:
        return F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
    rows = x[..., ::2, :] + x[..., 1::2, :]  # ten times as fast as avg_pool2d
    return (rows[..., ::2] + rows[..., 1::2]).mul_(0.25)


def _doubled(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Twice the size, bilinear, cut to the sides of ``like``. What F.interpolate gives, four times as fast."""
    for axis in (-2, -1):
        n = x.shape[axis]
        shape = list(x.shape)
        shape[axis] = 2 * n
        large = x.new_empty(shape)
        even, odd = (large[..., k::2, :] if axis == -2 else large[..., k::2] for k in (0, 1))
        most = x * 0.75
        torch.add(most.narrow(axis, 1, n - 1), x.narrow(axis, 0, n - 1), alpha=0.25, out=even.narrow(axis, 1, n - 1))
        torch.add(most.narrow(axis, 0, n - 1), x.narrow(axis, 1, n - 1), alpha=0.25, out=odd.narrow(axis, 0, n - 1))
        even.narrow(axis, 0, 1).copy_(x.narrow(axis, 0, 1))
        odd.narrow(axis, n - 1, 1).copy_(x.narrow(axis, n - 1, 1))
        x = large
    return x[..., : like.shape[-2], : like.shape[-1]]


def _level(unknown: torch.Tensor, held: torch.Tensor) -> _Level:
    weight = _neighbour_sum(_framed(torch.ones_like(held[:1, :1])))
    return _Level(unknown, unknown.to(held) / weight, held)


def _levels(images: torch.Tensor, unknown: torch.Tensor) -> list[_Level]:
    """The pictures at full size and halved again and again; a small pixel is known where one of its four is, as their mean."""
    levels = [_level(unknown, images.masked_fill(unknown, 0.0))]
    while min(images.shape[-2:]) > COARSEST:
        share = _halved((~levels[-1].unknown).to(images))
        below = share == 0
        images = _halved(levels[-1].held) / share.masked_fill(below, 1.0)
        levels.append(_level(below, images))
    return levels


def _relax(framed: torch.Tensor, level: _Level, right: torch.Tensor, steps: int) -> None:
    """Jacobi steps in place: each unknown pixel becomes the weighted mean of its neighbours plus ``right``, each known one ``right``."""
    inner = _inner(framed)
    for _ in range(steps):
        torch.add(_neighbour_sum(framed).mul_(level.factor), right, out=inner)


def _cycle(framed: torch.Tensor, levels: Sequence[_Level], right: torch.Tensor) -> None:
    """One multigrid V-cycle in place: relax, correct by what the coarser levels say of the residual, relax."""
    level = levels[0]
    if len(levels) == 1:
        _relax(framed, level, right, COARSEST_STEPS)
        return
    _relax(framed, level, right, STEPS)
    residual = _neighbour_sum(framed).mul_(level.factor).add_(right).sub_(_inner(framed))
    # the mean of neighbours differs from the centre by the square of the pixel size
    residual = _halved(residual).mul_(4).masked_fill_(~levels[1].unknown, 0.0)
    correction = _framed(residual)
    _cycle(correction, levels[1:], residual)
    _inner(framed).add_(_doubled(_inner(correction), level.held).mul_(level.unknown))
    _relax(framed, level, right, STEPS)


def linear_fill(images: torch.Tensor, removed: torch.Tensor) -> torch.Tensor:
    """Pictures whose removed pixels are the weighted mean of their neighbours (weights 1/6 direct, 1/12 diagonal), to about half a percent of the range.

    Solved by full multigrid: each level starts from the one below and gets one V-cycle, so that a row's result does
    not depend on the other rows. A picture with nothing left becomes its own channel means.

    Parameters
    ----------
    images : (R, C, H, W) float
    removed : (R, H, W) bool

    References
    ----------
    Rong et al. (2022). A consistent and efficient evaluation strategy for attribution methods. ICML, arXiv:2202.00449
    Brandt (1977). Multi-level adaptive solutions to boundary-value problems. doi:10.1090/S0025-5718-1977-0431719-X
    """
    grey = _as_grey(images)
    if grey is not None:  # the mean of neighbours, and so the fill, follows when a channel is stretched and moved
        scale, shift = grey
        filled = linear_fill(images[:, :1], removed) * scale + shift
        return torch.where(removed[:, None], filled, images)
    out = torch.empty_like(images)
    size = max(1, CHUNK // max(1, images[:1].numel()))
    for start in range(0, len(images), size):
        rows = slice(start, start + size)
        out[rows] = _filled(images[rows], removed[rows, None])
    return out


def _as_grey(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """(1, C, 1, 1) scale and shift that make every channel of every picture of the first one, None where that is not so: pictures without colour, normalised."""
    if images.shape[1] < 2 or not len(images):
        return None
    first = images[:1, 0].flatten()
    at = torch.stack([first.argmin(), first.argmax()])
    low, high = images[0].flatten(1)[:, at].unbind(dim=1)
    if not bool(high[0] > low[0]):
        return None
    scale = (high - low) / (high[0] - low[0])
    shift = low - scale * low[0]
    scale, shift = scale[None, :, None, None], shift[None, :, None, None]
    for part in (images[:1], images):  # mostly one picture is enough to see that there is colour
        apart = (part[:, :1] * scale + shift - part).abs().amax()
        if not bool(apart <= 1e-5 * (part.amax() - part.amin())):
            return None
    return scale, shift


def _filled(images: torch.Tensor, unknown: torch.Tensor) -> torch.Tensor:
    levels = _levels(images, unknown)
    count = (~unknown).sum(dim=(2, 3), keepdim=True)
    means = images.mean(dim=(2, 3), keepdim=True)
    known_means = levels[0].held.sum(dim=(2, 3), keepdim=True) / count.clamp(min=1)
    filled = torch.where(count > 0, known_means, means).expand_as(levels[-1].held)
    for at in range(len(levels) - 1, -1, -1):
        level = levels[at]
        start = filled if at == len(levels) - 1 else _doubled(filled, level.held)
        framed = _framed(torch.where(level.unknown, start, level.held))
        _cycle(framed, levels[at:], level.held)
        filled = _inner(framed)
    # with nothing held, rounding would drift
    return torch.where(unknown, torch.where(count > 0, filled, means), images)


def blurred(images: torch.Tensor) -> torch.Tensor:
    """Heavily blurred pictures: Gaussian, sigma an eighth of the short side, along one axis and then the other."""
    sigma = max(1.0, min(images.shape[-2:]) / 8)
    channels = images.shape[1]
    out = images
    for axis in (2, 3):
        reach = min(int(3 * sigma), images.shape[axis] - 1)
        at = torch.arange(-reach, reach + 1, dtype=images.dtype, device=images.device)
        weights = torch.exp(-(at**2) / (2 * sigma**2))
        shape = (channels, 1, 2 * reach + 1, 1) if axis == 2 else (channels, 1, 1, 2 * reach + 1)
        kernel = (weights / weights.sum()).reshape(1, 1, *shape[2:]).expand(shape)
        pad = (0, 0, reach, reach) if axis == 2 else (reach, reach, 0, 0)
        out = F.conv2d(F.pad(out, pad, mode="reflect") if reach else out, kernel, groups=channels)
    return out
