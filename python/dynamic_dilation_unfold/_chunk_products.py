"""torch's products of a chunk's columns.

They obey the flags of torch's matrix products, not those of its convolutions: which of them use TF32 is for a whole
process to say, and a call that changed it for itself would change it for other threads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def multiply(out: Tensor, a: Tensor, b: Tensor, beta: int = 0) -> None:
    """``out [n, g, m, p] = beta * out + a [g, m, k] @ b [n, g, k, p]``."""
    if a.shape[0] > 1:
        for each, of_image in zip(out, b, strict=True):
            torch.baddbmm(each, a, of_image, beta=beta, out=each)
    elif out.shape[0] == 1:
        torch.addmm(out[0, 0], a[0], b[0, 0], beta=beta, out=out[0, 0])
    else:
        torch.baddbmm(out[:, 0], a.expand(out.shape[0], -1, -1), b[:, 0], beta=beta, out=out[:, 0])


def add_product(total: Tensor, a: Tensor, b: Tensor, most: int) -> None:
    """``total [g, m, k] += the sum over n of a [n, g, m, p] @ b [n, g, k, p]^T``, in the total's dtype.

    Several images are multiplied at once, if their products take no more than so many bytes.
    """
    if a.dtype != total.dtype:  # on a device with products of half types
        images = max(1, most // max(1, total.nbytes))
        for each, of_images in zip(a.split(images), b.split(images), strict=True):
            products = torch.bmm(each.flatten(0, 1), of_images.flatten(0, 1).mT, **_wide(total.dtype))
            total += products.unflatten(0, (len(each), -1)).sum(0, dtype=total.dtype)
    elif total.shape[0] > 1:
        for each, of_image in zip(a, b, strict=True):
            total += torch.bmm(each, of_image.mT)
    else:
        for each, of_image in zip(a, b, strict=True):
            torch.addmm(total[0], each[0], of_image[0].mT, out=total[0])


def _wide(dtype: torch.dtype) -> dict[str, Any]:
    """Has a product of half types keep its float32 sums, in a torch that can."""
    return {"out_dtype": dtype} if hasattr(torch.ops.aten.bmm, "dtype") else {}
