"""Writes what the programs are to reproduce: calls with Python's results and errors, schemas, exported programs.

python cases.py DIRECTORY
"""

import itertools
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torch._inductor
from dynamic_dilation_unfold import (
    _C,
    DynamicDilationConv2d,
    DynamicDilationUnfold,
    dynamic_dilation_unfold,
    functional,
)

sys.path.append(str(Path(__file__).parents[1] / "python"))
from plain_package import why_not

OPTIONS = ("kernel_size", "stride", "padding", "dilation")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # in the order of ddu::DType
NO_KERNELS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool, torch.complex128)
KINDS = {ValueError: "invalid_argument", TypeError: "type_error", RuntimeError: "error"}


def tensors(options, dtype, map_dtype, batched, map_batch, layout):
    channels, height, width = 4 * options["groups"], 13, 17
    size = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(
            (height, width), *(options[name] for name in ("padding", "dilation", "kernel_size", "stride")), strict=True
        )
    ]
    x = torch.randn(3, channels, height, width).to(dtype)
    rates = (3 * torch.rand(map_batch, options["groups"], *size) - 0.5).to(map_dtype)
    rates[:, :, 0] = 1
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":
        x = torch.stack([x, x], -1)[..., 1]
    return (x, rates) if batched else (x[0], rates[0])


def value_cases():
    geometries = [
        {"kernel_size": [3, 3], "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1},
        {"kernel_size": [2, 5], "stride": [2, 1], "padding": [0, 3], "dilation": [2, 1], "groups": 2},
        {"kernel_size": [7, 1], "stride": [1, 3], "padding": [3, 0], "dilation": [1, 2], "groups": 4},
        {"kernel_size": [4, 3], "stride": [1, 2], "padding": [4, 1], "dilation": [1, 1], "padding_mode": "border"},
    ]
    dtypes = [(t, t) for t in DTYPES]
    dtypes += [(torch.float16, torch.float32), (torch.bfloat16, torch.float32)]
    forms = [(True, 3, "contiguous"), (True, 1, "channels_last"), (False, 3, "sliced")]
    for given, (dtype, map_dtype), form in itertools.product(geometries, dtypes, forms):
        options = {"groups": 1, "padding_mode": "zeros", **given}
        x, rates = tensors(options, dtype, map_dtype, *form)
        x.requires_grad_()
        rates.requires_grad_()
        columns = dynamic_dilation_unfold(x, dilation_map=rates, **options)
        grad = torch.randn(columns.shape).to(dtype)
        columns.backward(grad)
        yield {
            **options,
            "input": x.detach(),
            "map": rates.detach(),
            "grad": grad,
            "columns": columns.detach(),
            "grad_input": x.grad,
            "grad_map": rates.grad,
        }


def plain(case):
    """A call as plain memory, for a program without torch: 20 int64, then six contiguous tensors."""
    tensors = [case[name] for name in ("input", "map", "grad", "columns", "grad_input", "grad_map")]
    header = [DTYPES.index(t.dtype) for t in tensors[:2]] + [n for t in tensors[:2] for n in t.shape]
    header += [n for name in OPTIONS for n in case[name]] + [case["groups"]]
    header += [("zeros", "border").index(case["padding_mode"])]
    memory = [torch.tensor(header), *(t.contiguous().view(torch.uint8) for t in tensors)]
    return b"".join(t.numpy().tobytes() for t in memory)


def error_cases():
    x, rates = torch.ones(2, 4, 6, 7), torch.ones(2, 1, 6, 7)
    base = {"kernel_size": [3, 3], "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1}
    for input, dilation_map, options in [
        (x, rates, {"stride": [0, 1]}),
        (x, rates, {"groups": 3}),
        (x, rates, {"padding": [0, 0]}),
        (x, rates, {"kernel_size": [9, 3]}),
        (x[0, 0], rates, {}),
        (x, rates[0], {}),
        (x, rates.double(), {}),
        (x.half(), rates.bfloat16(), {}),
        *((x.to(dtype), rates, {}) for dtype in NO_KERNELS),
        (x, rates.to(torch.complex64), {}),
        (x, rates.to("meta"), {}),
        (x.long(), rates, {"autocast": True}),
        (x.to(torch.complex64), rates.bfloat16(), {"autocast": True}),
        (x, rates.long(), {"autocast": True}),
        (x, rates.double(), {"autocast": True}),
        (x.double(), rates, {"autocast": True}),
    ]:
        call = {**base, **options}
        autocast = call.pop("autocast", False)
        try:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                dynamic_dilation_unfold(input, dilation_map=dilation_map, **call)
        except tuple(KINDS) as e:
            meta = dilation_map.is_meta  # a file of tensors has none of that device
            yield {
                **call,
                "input": input,
                "map": torch.ones(dilation_map.shape) if meta else dilation_map,
                "meta": meta,
                "autocast": autocast,
                "kind": KINDS[type(e)],
                "message": str(e),
            }
        else:
            sys.exit(f"no error for {call}")


def heads_cases():
    """Calls of the operators without columns: with channels_last tensors, and without a batch."""
    options = {"kernel_size": [3, 2], "stride": [1, 2], "padding": [1, 0], "dilation": [1, 2]}
    height, width, out = 9, 10, (9, 4)
    for dtype, map_dtype in [(t, t) for t in DTYPES] + [(torch.float16, torch.float32)]:
        for form, padding_mode in (("contiguous", "zeros"), ("channels_last", "border"), ("unbatched", "zeros")):

            def new(*size, form=form, dtype=dtype):
                tensor = torch.randn(size).to(dtype)
                if form == "channels_last" and len(size) == 4:
                    return tensor.contiguous(memory_format=torch.channels_last)
                return tensor[0] if form == "unbatched" else tensor

            rates = (3 * torch.rand(2, 2, *out)).to(map_dtype)
            rates = rates[0] if form == "unbatched" else rates
            image, query, weights = new(2, 8, height, width), new(2, 8, *out), new(2, 4, 6, *out)
            calls = {
                "aggregate": ((image, weights, rates), {}),
                "correlate": ((query, image, rates), {"heads": 4}),
                "coverage": ((rates,), None),
                "attention": ((query, image, new(2, 4, height, width), rates, torch.randn(6, 1, 1)), {"heads": 4}),
            }
            for name, (given, more) in calls.items():
                if name == "coverage" and padding_mode == "border":
                    continue
                leaves = [t.detach().clone().requires_grad_() for t in given]
                call = getattr(functional, name)
                if name == "coverage":
                    output = call(*leaves, (height, width), **options)
                elif name == "attention":
                    output = call(*leaves[:4], bias=leaves[4], **options, **more, padding_mode=padding_mode)
                else:
                    output = call(*leaves, **options, **more, padding_mode=padding_mode)
                grad = torch.randn(output.shape).to(output.dtype)
                output.backward(grad)
                yield {
                    **options,
                    **(more or {}),
                    "operator": name,
                    "padding_mode": padding_mode,
                    "tensors": list(given),
                    "output": output.detach(),
                    "grad": grad,
                    "grads": [t.grad for t in leaves],
                }


def conv2d_cases():
    """Convolutions of all kinds of groups, with and without bias and mask; the large ones take several chunks."""
    small = {"stride": [1, 2], "padding": [1, 0], "dilation": [1, 2]}
    plain = {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1]}
    image, out = (2, 8, 9, 10), (9, 4)
    calls = [  # input, weight, map, bias, mask
        (small, image, (6, 4, 3, 2), (2, 4, *out), 6, (2, 2, 6, *out), "contiguous", "zeros"),
        (small, image, (4, 8, 3, 2), (1, 2, *out), None, (1, 8, 6, *out), "channels_last", "border"),
        (small, image, (8, 1, 3, 2), (2, 1, 1, 1), 8, None, "unbatched", "zeros"),
        (plain, (2, 16, 96, 80), (8, 16, 3, 3), (2, 1, 96, 1), 8, (1, 1, 9, 96, 80), "channels_last", "zeros"),
        (plain, (2, 0, 9, 10), (4, 0, 3, 3), (1, 1, 1, 1), 4, None, "contiguous", "zeros"),
    ]
    row = {"stride": [1, 1], "padding": [0, 4], "dilation": [1, 1]}
    of_float32 = [
        (row, (1, 3, 1, 60000), (40, 3, 1, 9), (1, 1, 1, 60000), None, None, "contiguous", "zeros"),  # parts of a row
        (plain, (1, 67, 64, 64), (5, 67, 3, 3), (1, 1, 64, 64), 5, None, "contiguous", "zeros"),  # no even parts
    ]
    for dtype, map_dtype in [(t, t) for t in DTYPES] + [(torch.bfloat16, torch.float32)]:
        more = of_float32 if dtype == torch.float32 else []
        for options, image, weight, map, bias, mask, form, padding_mode in calls + more:
            x = torch.randn(image)
            given = [x, torch.randn(weight), 3 * torch.rand(map), torch.randn(bias or 0), torch.rand(mask or 0)]
            given = [t.to(map_dtype if i == 2 else dtype) for i, t in enumerate(given)]
            if form == "channels_last":
                given[0] = given[0].contiguous(memory_format=torch.channels_last)
            if form == "unbatched":
                given[0], given[2] = given[0][0], given[2][0]
            leaves = [None if t.dim() == 1 and not len(t) else t.detach().requires_grad_() for t in given]
            output = functional.conv2d(*leaves[:4], **options, mask=leaves[4], padding_mode=padding_mode)
            grad = torch.randn(output.shape).to(dtype)
            output.backward(grad)
            yield {
                **options,
                "padding_mode": padding_mode,
                "tensors": given,  # an empty one stands for one that is not given
                "output": output.detach(),
                "grad": grad,
                "grads": [torch.ones(0) if t is None else t.grad for t in leaves],
            }


def conv2d_same_cases():
    for kernel, padding_mode in itertools.product([(3, 5), (4, 3), (2, 2)], ["zeros", "border"]):
        x, weight, rates = torch.randn(2, 4, 9, 8), torch.randn(6, 2, *kernel), 2 * torch.rand(1, 2, 9, 8)
        options = {"padding": "same", "dilation": [1, 3], "padding_mode": padding_mode}
        for memory_format in (torch.contiguous_format, torch.channels_last):
            leaves = [t.clone().requires_grad_() for t in (x.contiguous(memory_format=memory_format), weight, rates)]
            output = functional.conv2d(*leaves, **options)
            grad = torch.randn(output.shape)
            output.backward(grad)
            yield {
                **options,
                "tensors": [t.detach() for t in leaves],
                "output": output.detach(),
                "grad": grad,
                "grads": [t.grad for t in leaves],
            }


def conv2d_error_cases():
    good = {"input": (2, 4, 5, 5), "weight": (6, 4, 3, 3), "map": (1, 1, 1, 1), "bias": (6,), "mask": (2, 1, 9, 5, 5)}
    changes = [
        {"weight": (6, 3, 3, 3)},
        {"weight": (5, 2, 3, 3)},
        {"weight": (6, 0, 3, 3)},
        {"weight": (6, 4, 9)},
        {"map": (1, 3, 1, 1)},
        {"map": (1, 1, 4, 5)},
        {"bias": (4,)},
        {"mask": (2, 1, 9, 5, 4)},
        {"mask": (2, 3, 9, 5, 5)},
        {"mask": (9, 5, 5)},
        {"stride": [0, 1]},
        {"stride": [2, 1], "padding": "same"},
        {"padding": "same", "weight": (6, 4, 2, 2), "map": (1, 1, 6, 6), "mask": (2, 1, 4, 5, 5)},
        {"padding": "same", "weight": (6, 4, 4, 4), "map": (1, 1, 3, 3), "mask": (2, 1, 16, 5, 5)},
        {"padding": "same", "weight": (6, 4, 2, 2), "mask": (2, 1, 4, 6, 6)},
        {"padding": "same", "weight": (6, 4, 2, 2), "input": (1, 2, 4, 5, 5), "padding_mode": "border"},
        {"padding": "same", "weight": (6, 4, 2, 2), "input": (2, 4, 0, 5), "padding_mode": "border"},
        {"padding": "same", "weight": (6, 4, 2, 2), "input": (5,)},
        {"types": {"weight": torch.float64}},
        {"types": {"map": torch.float64}},
        {"types": {"mask": torch.int64}},
    ]
    for change in changes:
        call = {"stride": [1, 1], "padding": [1, 1], "padding_mode": "zeros", **good, **change}
        types = call.pop("types", {})
        shapes = {name: call.pop(name) for name in good}
        x, weight, rates, bias, mask = (
            torch.ones(shape).to(types.get(name, torch.float32)) for name, shape in shapes.items()
        )
        try:
            functional.conv2d(x, weight, rates, bias, **call, mask=mask)
        except tuple(KINDS) as e:
            tensors = [x, weight, rates, bias, mask]
            yield {**call, "tensors": tensors, "kind": KINDS[type(e)], "message": str(e)}
        else:
            sys.exit(f"no error for {change}")


def autocast_case():
    x, rates = torch.randn(1, 2, 8, 8), torch.rand(1, 1, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return {"input": x, "map": rates, "columns": dynamic_dilation_unfold(x, 3, rates, padding=1)}


class Model(torch.nn.Module):
    """A map from the content, the unfold over it, and a product with the columns."""

    def __init__(self):
        super().__init__()
        self.rates = torch.nn.Conv2d(3, 1, 3, padding=1)
        self.unfold = DynamicDilationUnfold(3, padding=1)
        self.mix = torch.nn.Linear(27, 5)

    def forward(self, x):
        return self.mix(self.unfold(x, self.rates(x).sigmoid() * 3).transpose(1, 2))


class Convolutions(torch.nn.Module):
    """Layers whose rates and masks come from the content."""

    def __init__(self):
        super().__init__()
        options = {"modulated": True, "map_groups": 3, "padding": "same"}
        self.first = DynamicDilationConv2d(3, 6, (3, 2), groups=3, **options)
        self.second = DynamicDilationConv2d(6, 4, 3, 2, 1, bias=False, padding_mode="border", rates="learned")
        for parameter in self.parameters():
            torch.nn.init.normal_(parameter, std=0.3)

    def forward(self, x):
        return self.second(self.first(x).relu())


def export(package, model, device, dtype):
    """Runs of a package that is made of a model: none where torch is too old to make one."""
    if not hasattr(torch._inductor, "aoti_compile_and_package"):
        return []
    model = model.eval().to(device, dtype)
    example = torch.randn(2, 3, 24, 20, device=device, dtype=dtype)
    with torch.no_grad():
        program = torch.export.export(
            model, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},)
        )
        torch._inductor.aoti_compile_and_package(program, package_path=package)
        runs = []
        for batch in (1, 2, 5):
            x = torch.randn(batch, 3, 24, 20, device=device, dtype=dtype)
            loaded = torch._inductor.aoti_load_package(package)
            runs.append({"input": x, "output": loaded(x), "eager": model(x)})
    return runs


def main():
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    with_cuda = torch.cuda.is_available() and _C.cuda_toolkit_version
    tried = ThreadPoolExecutor().submit(why_not, "cuda") if with_cuda else None  # meanwhile: a compiler takes its time
    torch.manual_seed(0)
    operators = torch.ops.dynamic_dilation_unfold
    cases = {
        "values": list(value_cases()),
        "heads": list(heads_cases()),
        "conv2d": list(conv2d_cases()),
        "conv2d_same": list(conv2d_same_cases()),
        "conv2d_errors": list(conv2d_error_cases()),
        "errors": list(error_cases()),
        "autocast": autocast_case(),
        "schemas": [
            str(getattr(operators, name + backward).default._schema)
            for name in ("unfold", "aggregate", "correlate", "conv2d")
            for backward in ("", "_backward")
        ],
        "module": repr(DynamicDilationUnfold((3, 5), 2, (1, 2), 1, 4)),
        "program": export(str(directory / "model.pt2"), Model(), "cpu", torch.float32),
        "program_conv2d": export(str(directory / "conv2d.pt2"), Convolutions(), "cpu", torch.float32),
    }
    if tried:
        if reason := tried.result():
            print(f"no package for CUDA: {reason}")
        # In float64, since convolutions and matrix products of float32 may run in a shorter type there; and in a type
        # that the convolution's own kernels are for.
        for name, model, dtype in (
            ("model-cuda", Model, torch.float64),
            ("conv2d-cuda", Convolutions, torch.float64),
            ("conv2d-cuda-half", Convolutions, torch.float16),
        ):
            cases[name] = [] if reason else export(str(directory / f"{name}.pt2"), model(), "cuda", dtype)
    torch.save(cases, directory / "cases.pt")
    batched = [case for case in cases["values"] if case["input"].dim() == 4]
    (directory / "values.bin").write_bytes(b"".join(map(plain, batched)))
    print(f"{len(cases['values'])} calls, {len(cases['errors'])} errors, {len(cases['program'])} runs of a program")


if __name__ == "__main__":
    main()
