"""The convolution on DTensors: gloo ranks on the CPU, NCCL ranks where there are GPUs. Values against one process's."""

from typing import NamedTuple

import torch
from dynamic_dilation_unfold import dynamic_dilation_conv2d
from helpers import random_input, relative_error
from ranks import launch, needs_processes, needs_rules, placement
from torch import Tensor

pytestmark = needs_processes


class Convolution(NamedTuple):
    """Placements as `placement` reads them, of input, weight, map, bias and mask and of the gradients of these."""

    given: str
    grads: str
    output: str | None  # none where a call must communicate
    channels: int = 4
    conv_groups: int = 1
    groups: int = 1
    heads: int | None = 1
    has_bias: bool = True
    batch: int | None = 2
    shared_batch: int = 2  # of map and mask


CONVOLUTIONS = {
    "batch": Convolution("S0 R S0 R S0", "S0 P S0 P S0", "S0"),
    "batch, map and mask for all": Convolution("S0 R R R R", "S0 P P P P", "S0", shared_batch=1),
    "batch, groups of all kinds": Convolution("S0 R S0 R S0", "S0 P S0 P S0", "S0", conv_groups=2, groups=4, heads=2),
    "batch, nothing optional": Convolution("S0 R S0 R R", "S0 P S0 R R", "S0", heads=None, has_bias=False),
    "output channels": Convolution("R S0 R S0 R", "P S0 P S0 P", "S1"),
    "output channels, groups and heads": Convolution("R S0 R S0 R", "P S0 P S0 P", "S1", groups=2, heads=4),
    "output channels, nothing optional": Convolution("R S0 R R R", "P S0 P R R", "S1", heads=None, has_bias=False),
    "output channels, one image": Convolution("R S0 R S0 R", "P S0 P S0 P", "S0", batch=None),
    "input channels": Convolution("S1 S1 R R R", "S1 S1 P R P", "P"),
    "input channels, split groups and heads": Convolution("S1 S1 S1 R S1", "S1 S1 S1 R S1", "P", groups=2, heads=4),
    "input channels, split groups": Convolution("S1 S1 S1 R R", "S1 S1 S1 R P", "P", groups=4),
    "input channels, split heads for all": Convolution("S1 S1 R R S1", "S1 S1 P R S1", "P", heads=2, shared_batch=1),
    "input channels, no bias": Convolution("S1 S1 R R R", "S1 S1 P R P", "P", has_bias=False),
    "input channels, no mask": Convolution("S1 S1 S1 R R", "S1 S1 S1 R R", "P", groups=2, heads=None),
    "input channels, one image": Convolution("S0 S1 S0 R S0", "S0 S1 S0 R S0", "P", groups=2, heads=2, batch=None),
    "whole": Convolution("R R R R R", "R R R R R", "R", conv_groups=2, groups=2, heads=2),
    "input channels, groups of the weight": Convolution("S1 S0 R S0 R", "", None, conv_groups=2),
    "input channels, groups of all kinds": Convolution("S1 S0 S1 S0 S1", "", None, conv_groups=2, groups=2, heads=2),
    "input channels, groups that do not split": Convolution("S1 S1 R R R", "", None, channels=6, groups=3),
    "input channels, heads that do not split": Convolution("S1 S1 R R R", "", None, channels=6, heads=3),
    "input channels that do not split": Convolution("S1 S1 R R R", "", None, channels=5),
}


def of_convolution(case: Convolution, kind: str) -> list[Tensor | None]:
    """Its tensors, and the output's gradient."""
    shared = [] if case.batch is None else [case.shared_batch]
    shapes = (
        [*([] if case.batch is None else [case.batch]), case.channels, 5, 6],
        [6, case.channels // case.conv_groups, 3, 3],
        [*shared, case.groups, 5, 6],
        [6] if case.has_bias else None,
        None if case.heads is None else [*shared, case.heads, 9, 5, 6],
        [*([] if case.batch is None else [case.batch]), 6, 5, 6],
    )
    return [
        None if shape is None else random_input(tuple(shape), seed).double().to(kind)
        for seed, shape in enumerate(shapes)
    ]


def sharded_convolution(rank: int, kind: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, distribute_tensor
    from torch.distributed.tensor.debug import CommDebugMode

    def convolve(x: Tensor, weight: Tensor, rates: Tensor, bias: Tensor | None, mask: Tensor | None) -> Tensor:
        return dynamic_dilation_conv2d(x, weight, rates, bias, padding=1, mask=mask)

    mesh = init_device_mesh(kind, (2,))
    for name, case in CONVOLUTIONS.items():
        *tensors, grad = of_convolution(case, kind)
        leaves = [None if t is None else t.clone().requires_grad_() for t in tensors]
        expected = convolve(*leaves)
        expected_grads = torch.autograd.grad(expected, [t for t in leaves if t is not None], grad)
        shards = [
            None if t is None else distribute_tensor(t, mesh, [placement(p)]).requires_grad_()
            for t, p in zip(tensors, case.given.split(), strict=True)
        ]
        with CommDebugMode() as forward:
            output = convolve(*shards)
        # Each rank has the whole gradient of a sum still due.
        at = [Replicate() if p.is_partial() else p for p in output.placements]
        grad_shards = distribute_tensor(grad, mesh, at)
        with CommDebugMode() as backward:
            grads = torch.autograd.grad(output, [t for t in shards if t is not None], grad_shards)
        assert (forward.get_total_counts() + backward.get_total_counts() > 0) == (case.output is None), name
        if case.output is not None:
            assert output.placements == (placement(case.output),), name
            present = [p for p, t in zip(case.grads.split(), tensors, strict=True) if t is not None]
            assert [g.placements for g in grads] == [(placement(p),) for p in present], name
        for actual, exact in zip((output, *grads), (expected, *expected_grads), strict=True):
            assert relative_error(actual.full_tensor(), exact) <= 1e-12, name


@needs_rules
def test_dtensor_convolution(kind):
    launch(sharded_convolution, 2, kind)
