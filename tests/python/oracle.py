"""The operator one tap at a time, in plain Python floats: the formulas of the definition and nothing else.

    y = oy*s_h - p_h + (kH-1)/2*d_h + (ky - (kH-1)/2)*d_h*D[b,g,oy,ox]        x alike, g = c // (C/G)
    output[b, (c*kH + ky)*kW + kx, oy*Wo + ox] = bilinear(zero-extended input[b,c], y, x)

or, with padding_mode="border", of coordinates clamped to the image.

Slow on purpose, so that it can be checked by reading. For small tensors.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from helpers import Case
from torch import Tensor


class Tap(NamedTuple):
    output: tuple[int, int, int]  # batch, column, position
    plane: tuple[int, int]  # batch, channel
    rate: tuple[int, int, int, int]  # map batch, group, oy, ox
    y: float
    x: float
    offset_y: float  # dy/dD
    offset_x: float


def taps(case: Case, rates: Tensor) -> Iterator[Tap]:
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = case.pairs
    map_batch, _, out_h, out_w = rates.shape
    values = rates.tolist()
    for b in range(case.batch):
        mb = 0 if map_batch == 1 else b
        for c in range(case.channels):
            g = c // (case.channels // case.groups)
            for ky in range(kh):
                for kx in range(kw):
                    for oy in range(out_h):
                        for ox in range(out_w):
                            offset_y = (ky - (kh - 1) / 2) * dh
                            offset_x = (kx - (kw - 1) / 2) * dw
                            rate = values[mb][g][oy][ox]
                            y = oy * sh - ph + (kh - 1) / 2 * dh + offset_y * rate
                            x = ox * sw - pw + (kw - 1) / 2 * dw + offset_x * rate
                            target = (b, (c * kh + ky) * kw + kx, oy * out_w + ox)
                            yield Tap(target, (b, c), (mb, g, oy, ox), y, x, offset_y, offset_x)


class Cell(NamedTuple):
    """The four pixels around a tap that are inside the image, with their weights and the weights' derivatives."""

    index: tuple[int, int]
    weight: float
    weight_dy: float
    weight_dx: float


def cells(case: Case, tap: Tap) -> Iterator[Cell]:
    border = case.padding_mode == "border"
    for row, wy, dy in pixels_of(tap.y, case.height, border):
        for column, wx, dx in pixels_of(tap.x, case.width, border):
            yield Cell((row, column), wy * wx, dy * wx, wy * dx)


def pixels_of(position: float, size: int, border: bool) -> list[tuple[int, float, float]]:
    """Along one axis: index, weight, and the weight's derivative."""
    if border and not 0 <= position < size - 1:
        return [(0 if position < 0 else size - 1, 1.0, 0.0)]
    first = math.floor(position)  # floor: the right-hand derivative at whole positions
    fraction = position - first
    pair = [(first, 1 - fraction, -1.0), (first + 1, fraction, 1.0)]
    return [pixel for pixel in pair if 0 <= pixel[0] < size]


def is_finite(tap: Tap, rates: Tensor) -> bool:
    return bool(rates[tap.rate].isfinite())


def unfold(case: Case, input: Tensor, rates: Tensor) -> Tensor:
    output = torch.zeros(case.output_shape, dtype=torch.float64)
    pixels = input.tolist()
    for tap in taps(case, rates):
        if not is_finite(tap, rates):
            output[tap.output] = math.nan
            continue
        b, c = tap.plane
        output[tap.output] = sum(cell.weight * pixels[b][c][cell.index[0]][cell.index[1]] for cell in cells(case, tap))
    return output


def unfold_backward(case: Case, grad: Tensor, input: Tensor, rates: Tensor) -> tuple[Tensor, Tensor]:
    grad_input = torch.zeros(input.shape, dtype=torch.float64)
    grad_map = torch.zeros(rates.shape, dtype=torch.float64)
    pixels, grads = input.tolist(), grad.tolist()
    for tap in taps(case, rates):
        if not is_finite(tap, rates):
            grad_map[tap.rate] = math.nan
            continue
        b, column, position = tap.output
        upstream = grads[b][column][position]
        for cell in cells(case, tap):
            value = pixels[b][tap.plane[1]][cell.index[0]][cell.index[1]]
            grad_input[(*tap.plane, *cell.index)] += upstream * cell.weight
            slope = cell.weight_dy * tap.offset_y + cell.weight_dx * tap.offset_x
            grad_map[tap.rate] += upstream * slope * value
    return grad_input, grad_map
