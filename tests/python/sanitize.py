"""Runs every CUDA kernel once, on small tensors, for compute-sanitizer to watch. Not collected by pytest."""

import itertools

import torch
from dynamic_dilation_unfold import dynamic_dilation_aggregate, dynamic_dilation_correlate, dynamic_dilation_unfold
from helpers import DTYPES, Case, random_input, random_map, run

CASES = [
    Case(1, 5, 20, 37, padding=1),
    Case(2, 2, 9, 33, padding=1, groups=2),  # one channel a group
    Case(1, 3, 18, 20, kernel_size=5, padding=2),
    Case(1, 2, 18, 20, kernel_size=7, padding=3),
    Case(1, 3, 15, 17, kernel_size=(2, 3), stride=2),
]

# What ddu's kernels read is made on the CPU: where the sanitizer watches them alone, initcheck takes what torch's
# kernels wrote for memory that nobody wrote.
for case, kind, dtype, ordered in itertools.product(CASES, ["fractional", "mixed"], DTYPES, [False, True]):
    torch.use_deterministic_algorithms(ordered)
    made = random_input(case.shape), random_map(kind, case.map_shape), random_input(case.output_shape, seed=2)
    on_cpu = tuple(t.to(dtype) for t in made)
    x, rates, grad = (t.to("cuda") for t in on_cpu)
    run(dynamic_dilation_unfold, x, rates, grad, case.options)
    for wanted in (x, rates):
        leaf = wanted.clone().requires_grad_()
        pair = (leaf, rates) if wanted is x else (x, leaf)
        dynamic_dilation_unfold(pair[0], dilation_map=pair[1], **case.options).backward(grad)
    # The operators without columns, in both memory formats.
    window = {name: value for name, value in case.options.items() if name != "groups"}
    columns = on_cpu[2].unflatten(1, (case.channels, -1)).unflatten(-1, rates.shape[-2:])
    factors, ones = columns[:, :1].contiguous(), torch.ones_like(columns[:, :, 0])
    for format in (torch.contiguous_format, torch.channels_last):
        image, weights, map, grad_sums, grad_scores = (
            t.to("cuda")
            for t in (
                on_cpu[0].contiguous(memory_format=format),
                factors,
                on_cpu[1],
                ones.contiguous(memory_format=format),
                factors,
            )
        )
        leaves = [t.requires_grad_() for t in (image, weights, map)]
        sums = dynamic_dilation_aggregate(*leaves, **window)
        query = sums.detach().requires_grad_()
        sums.backward(grad_sums)
        dynamic_dilation_correlate(query, image, map, **window).backward(grad_scores)
torch.cuda.synchronize()
print(f"{2 * 4 * 2 * len(CASES)} calls")
