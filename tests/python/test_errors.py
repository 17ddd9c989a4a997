"""Every error: its type, and a message that names the argument, what is expected and what was given."""

import contextlib
import re

import numpy as np
import pytest
import torch
from dynamic_dilation_unfold import DynamicDilationUnfold, dynamic_dilation_unfold, reference
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

INPUT = (2, 4, 6, 7)
MAP = (2, 1, 6, 7)


def call(device="cpu", input=INPUT, map=MAP, dtype=torch.float32, map_dtype=None, **options):
    x = torch.ones(input, device=device, dtype=dtype)
    rates = torch.ones(map, device=device, dtype=map_dtype or dtype)
    return dynamic_dilation_unfold(x, dilation_map=rates, **{"kernel_size": 3, "padding": 1, **options})


LIMIT = 2**28

VALUES = [
    # options
    ({"kernel_size": 0}, f"kernel_size must be between 1 and {LIMIT}, got (0, 0)"),
    ({"kernel_size": (3, -1)}, f"kernel_size must be between 1 and {LIMIT}, got (3, -1)"),
    ({"kernel_size": LIMIT + 1}, f"kernel_size must be between 1 and {LIMIT}, got ({LIMIT + 1}, {LIMIT + 1})"),
    ({"stride": 0}, f"stride must be between 1 and {LIMIT}, got (0, 0)"),
    ({"stride": (1, -2)}, f"stride must be between 1 and {LIMIT}, got (1, -2)"),
    ({"padding": -1}, f"padding must be between 0 and {LIMIT}, got (-1, -1)"),
    ({"padding": (0, LIMIT + 1)}, f"padding must be between 0 and {LIMIT}, got (0, {LIMIT + 1})"),
    ({"dilation": 0}, f"dilation must be between 1 and {LIMIT}, got (0, 0)"),
    ({"dilation": (-1, 1)}, f"dilation must be between 1 and {LIMIT}, got (-1, 1)"),
    (
        {"kernel_size": (2**20, 1), "dilation": (2**20, 1)},
        "dilation * (kernel_size - 1) must be at most 16777216, up to where float32 is exact, got 1048576 * 1048575",
    ),
    ({"groups": 3}, "groups must be positive and divide the input's 4 channels, got 3"),
    ({"groups": 0}, "groups must be positive and divide the input's 4 channels, got 0"),
    ({"groups": -2}, "groups must be positive and divide the input's 4 channels, got -2"),
    ({"stride": 2**63}, f"stride must fit 64 bits, got {2**63}"),
    ({"padding": (1, -(2**70))}, f"padding must fit 64 bits, got {-(2**70)}"),
    ({"groups": 2**64}, f"groups must fit 64 bits, got {2**64}"),
    # input
    ({"input": (6, 7)}, "input must have shape [B, C, H, W] or [C, H, W], got [6, 7]"),
    ({"input": ()}, "input must have shape [B, C, H, W] or [C, H, W], got []"),
    ({"input": (7,), "map": (1, 1, 1, 1)}, "input must have shape [B, C, H, W] or [C, H, W], got [7]"),
    ({"input": (1, *INPUT)}, "input must have shape [B, C, H, W] or [C, H, W], got [1, 2, 4, 6, 7]"),
    ({"input": (2, 4, 0, 7)}, f"input height and width must be between 1 and {LIMIT}, got [2, 4, 0, 7]"),
    ({"input": (2, 4, 6, 0)}, f"input height and width must be between 1 and {LIMIT}, got [2, 4, 6, 0]"),
    # the window
    (
        {"kernel_size": (9, 3), "map": (2, 1, 1, 1)},
        "input [2, 4, 6, 7] with padding (1, 1) is smaller than the window of kernel_size (9, 3) and dilation (1, 1): "
        "no output position fits",
    ),
    (
        {"dilation": (1, 5), "map": (7,)},
        "input [2, 4, 6, 7] with padding (1, 1) is smaller than the window of kernel_size (3, 3) and dilation (1, 5): "
        "no output position fits",
    ),
    (
        {"kernel_size": (9, 3)},
        "input [2, 4, 6, 7] with padding (1, 1) is smaller than the window of kernel_size (9, 3) and dilation (1, 1): "
        "no output position fits; this map fits padding=(4, 1)",
    ),
    (
        {"kernel_size": 7, "padding": 0},
        "input [2, 4, 6, 7] with padding (0, 0) is smaller than the window of kernel_size (7, 7) and dilation (1, 1): "
        "no output position fits; this map fits padding=(3, 3)",
    ),
    # the map's shape
    (
        {"map": (2, 1, 7, 6)},
        "dilation_map must have shape [2, 1, 6, 7] (or batch 1) for input [2, 4, 6, 7] with groups=1, got [2, 1, 7, 6]",
    ),
    (
        {"map": (3, 1, 6, 7)},
        "dilation_map must have shape [2, 1, 6, 7] (or batch 1) for input [2, 4, 6, 7] with groups=1, got [3, 1, 6, 7]",
    ),
    (
        {"map": (2, 2, 6, 7)},
        "dilation_map must have shape [2, 1, 6, 7] (or batch 1) for input [2, 4, 6, 7] with groups=1, "
        "got [2, 2, 6, 7]; "
        "this map fits groups=2",
    ),
    (
        {"map": (2, 2, 1, 1)},
        "dilation_map must have shape [2, 1, 6, 7] (or batch 1) for input [2, 4, 6, 7] with groups=1, "
        "got [2, 2, 1, 1]; this map fits groups=2",
    ),
    (
        {"groups": 2},
        "dilation_map must have shape [2, 2, 6, 7] (or batch 1) for input [2, 4, 6, 7] with groups=2, "
        "got [2, 1, 6, 7]; "
        "this map fits groups=1",
    ),
    (
        {"map": (1, 6, 7)},
        "dilation_map must have shape [2, 1, 6, 7] (or batch 1) for input [2, 4, 6, 7] with groups=1, got [1, 6, 7]; "
        "it fits as dilation_map.unsqueeze(1)",
    ),
    (
        {"map": ()},
        "dilation_map must have shape [2, 1, 6, 7] (or batch 1) for input [2, 4, 6, 7] with groups=1, got []",
    ),
    (
        {"input": (1, 4, 6, 7), "map": (2, 1, 6, 7)},
        "dilation_map must have shape [1, 1, 6, 7] for input [1, 4, 6, 7] with groups=1, got [2, 1, 6, 7]",
    ),
    (
        {"input": (4, 6, 7), "map": (1, 1, 6, 7)},
        "dilation_map must have shape [1, 6, 7] for input [4, 6, 7] with groups=1, "
        "got [1, 1, 6, 7]; it fits as dilation_map.squeeze(0)",
    ),
    (
        {"input": (4, 6, 7), "map": (2, 6, 7)},
        "dilation_map must have shape [1, 6, 7] for input [4, 6, 7] with groups=1, "
        "got [2, 6, 7]; this map fits groups=2",
    ),
    # likely slips: padding or stride forgotten, dimensions in another order
    (
        {"stride": 2, "map": (2, 1, 6, 7)},
        "dilation_map must have shape [2, 1, 3, 4] (or batch 1) for input [2, 4, 6, 7] with groups=1, "
        "got [2, 1, 6, 7]; this map fits stride=(1, 1)",
    ),
    (
        {"map": (2, 6, 7, 1)},
        "dilation_map must have shape [2, 1, 6, 7] (or batch 1) for input [2, 4, 6, 7] with groups=1, "
        "got [2, 6, 7, 1]; it fits as dilation_map.permute(0, 3, 1, 2)",
    ),
    (
        {"kernel_size": 99},
        "input [2, 4, 6, 7] with padding (1, 1) is smaller than the window of kernel_size (99, 99) and "
        "dilation (1, 1): "
        "no output position fits",
    ),
    (
        {"padding": 0},
        "dilation_map must have shape [2, 1, 4, 5] (or batch 1) for input [2, 4, 6, 7] with groups=1, "
        "got [2, 1, 6, 7]; this map fits padding=(1, 1)",
    ),
    (
        {"kernel_size": (3, 5), "dilation": (2, 1), "padding": 0, "input": (4, 6, 7), "map": (1, 6, 7)},
        "dilation_map must have shape [1, 2, 3] for input [4, 6, 7] with groups=1, got [1, 6, 7]; "
        "this map fits padding=(2, 2)",
    ),
    (
        {"stride": 2, "padding": 0, "map": (1, 1, 3, 4)},
        "dilation_map must have shape [2, 1, 2, 3] (or batch 1) for input [2, 4, 6, 7] with groups=1, "
        "got [1, 1, 3, 4]; this map fits padding=(1, 1)",
    ),
    (
        {"map": (2, 1, 4, 5)},
        "dilation_map must have shape [2, 1, 6, 7] (or batch 1) for input [2, 4, 6, 7] with groups=1, "
        "got [2, 1, 4, 5]; this map fits padding=(0, 0)",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), VALUES)
def test_values(arguments, message, device):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is compared whole)
        call(device, **arguments)
    assert str(caught.value) == message


def test_sizes_beyond_the_limit():
    x = torch.ones(1).expand(1, 1, 1, LIMIT + 1)
    with pytest.raises(
        ValueError, match=rf"input height and width must be between 1 and {LIMIT}, got \[1, 1, 1, {LIMIT + 1}\]"
    ):
        dynamic_dilation_unfold(x, 1, torch.ones(1).expand(x.shape))
    x = torch.ones(1).expand(2**20, 2**20, 2**12, 2**9)
    rates = torch.ones(1).expand(1, 1, 2**12, 2**9)
    with pytest.raises(ValueError, match=rf"input \[{2**20}, {2**20}, 4096, 512\] gives more than 2\^60 elements"):
        dynamic_dilation_unfold(x, 3, rates, padding=1)


UNSUPPORTED = "input and dilation_map must be float16, bfloat16, float32 or float64, got input"
TYPES = [
    (torch.float64, torch.float32, "dilation_map must have the input's dtype float64, got float32"),
    (torch.float32, torch.float64, "dilation_map must have the input's dtype float32, got float64"),
    (torch.float32, torch.float16, "dilation_map must have the input's dtype float32, got float16"),
    (torch.float16, torch.bfloat16, "dilation_map must have the input's dtype float16 or float32, got bfloat16"),
    (torch.bfloat16, torch.float16, "dilation_map must have the input's dtype bfloat16 or float32, got float16"),
    (torch.bfloat16, torch.float64, "dilation_map must have the input's dtype bfloat16 or float32, got float64"),
    (torch.int32, torch.int32, f"{UNSUPPORTED} torch.int32 and dilation_map torch.int32"),
    (
        torch.float32,
        torch.int64,
        f"{UNSUPPORTED} torch.float32 and dilation_map torch.int64",
    ),
    (
        torch.uint8,
        torch.float32,
        f"{UNSUPPORTED} torch.uint8 and dilation_map torch.float32",
    ),
    (
        torch.complex64,
        torch.float32,
        f"{UNSUPPORTED} torch.complex64 and dilation_map torch.float32",
    ),
]


@pytest.mark.parametrize(("dtype", "map_dtype", "message"), TYPES)
def test_dtypes(dtype, map_dtype, message, device):
    with pytest.raises(TypeError) as caught:
        call(device, dtype=dtype, map_dtype=map_dtype)
    assert str(caught.value) == message


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_dtypes_that_go_together(dtype, device):
    assert call(device, dtype=dtype).dtype == dtype
    if dtype != torch.float64:
        assert call(device, dtype=dtype, map_dtype=torch.float32).dtype == dtype


ARGUMENTS = [
    ({"kernel_size": 3.0}, "kernel_size must be an int or a pair of ints, got 3.0"),
    ({"kernel_size": None}, "kernel_size must be an int or a pair of ints, got None"),
    ({"kernel_size": (3, 3, 3)}, "kernel_size must be an int or a pair of ints, got (3, 3, 3)"),
    ({"kernel_size": (3,)}, "kernel_size must be an int or a pair of ints, got (3,)"),
    ({"stride": "11"}, "stride must be an int or a pair of ints, got '11'"),
    ({"padding": (1, 1.5)}, "padding must be an int or a pair of ints, got (1, 1.5)"),
    ({"dilation": [[1, 1]]}, "dilation must be an int or a pair of ints, got [[1, 1]]"),
    ({"groups": 1.0}, "groups must be an int, got 1.0"),
    ({"groups": (1, 1)}, "groups must be an int, got (1, 1)"),
    ({"groups": True}, "groups must be an int, got True"),
    ({"groups": np.bool_(True)}, f"groups must be an int, got {np.bool_(True)!r}"),
    ({"groups": torch.tensor(True)}, "groups must be an int, got tensor(True)"),
    ({"padding": True}, "padding must be an int or a pair of ints, got True"),
    ({"kernel_size": np.array([3, 3, 3])}, "kernel_size must be an int or a pair of ints, got array([3, 3, 3])"),
    ({"kernel_size": np.array([3.0, 3.0])}, "kernel_size must be an int or a pair of ints, got array([3., 3.])"),
]


@pytest.mark.parametrize(("options", "message"), ARGUMENTS)
def test_option_types(options, message):
    x, rates = torch.ones(INPUT), torch.ones(MAP)
    options = {"kernel_size": 3, **options}
    for function in (
        lambda: dynamic_dilation_unfold(x, dilation_map=rates, **options),
        lambda: reference(x, dilation_map=rates, **options),
        lambda: DynamicDilationUnfold(**options),
    ):
        with pytest.raises(TypeError) as caught:
            function()
        assert str(caught.value) == message


def test_arguments_that_are_no_tensors():
    x, rates = torch.ones(INPUT), torch.ones(MAP)
    like = "dtype=input.dtype, device=input.device"
    as_map = f"; torch.as_tensor(dilation_map, {like}) is one"
    for function in (dynamic_dilation_unfold, reference):
        for values, message in [
            ((x.tolist(), rates), "input must be a torch.Tensor, got list; torch.as_tensor(input) is one"),
            ((x.numpy(), rates), "input must be a torch.Tensor, got ndarray; torch.as_tensor(input) is one"),
            ((None, rates), "input must be a torch.Tensor, got NoneType"),
            (
                (x, 1.5),
                "dilation_map must be a torch.Tensor, got float; "
                f"torch.full((1, groups, 1, 1), 1.5, {like}) is a map of this rate",
            ),
            ((x, rates.tolist()), f"dilation_map must be a torch.Tensor, got list{as_map}"),
            ((x, rates.numpy()), f"dilation_map must be a torch.Tensor, got ndarray{as_map}"),
        ]:
            with pytest.raises(TypeError) as caught:
                function(values[0], 3, values[1], padding=1)
            assert str(caught.value) == message
    # Arguments in another order: the message does not print a whole tensor.
    with pytest.raises(TypeError, match=r"^kernel_size must be an int or a pair of ints, got tensor\(") as caught:
        dynamic_dilation_unfold(x, rates, 3, padding=1)
    assert len(str(caught.value)) < 120


DENSE = "must be a dense tensor of layout torch.strided, got "
LAYOUTS = {
    "torch.sparse_coo": Tensor.to_sparse,
    "torch._mkldnn": Tensor.to_mkldnn,
    "a nested tensor": lambda t: torch.nested.nested_tensor(list(t)),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, recorded):
    x, rates = torch.ones(INPUT), torch.ones(MAP)
    other = lambda t: LAYOUTS[layout](t).requires_grad_(recorded)  # noqa: E731
    with pytest.raises(TypeError, match=rf"^input {re.escape(DENSE + layout)}$"):
        dynamic_dilation_unfold(other(x), 3, rates, padding=1)
    with pytest.raises(TypeError, match=rf"^dilation_map {re.escape(DENSE + layout)}$"):
        dynamic_dilation_unfold(x, 3, other(rates), padding=1)


@pytest.mark.parametrize("recorded", [False, True])
def test_freed_storage(recorded, device):
    """As code that shards parameters leaves them between uses."""
    x, rates = torch.ones(INPUT, device=device), torch.ones(MAP, device=device)
    for freed, name in ((x, "input"), (rates, "dilation_map")):
        freed.untyped_storage().resize_(0)
        with pytest.raises(RuntimeError, match=f"^{name} has no memory that the kernels could read"):
            dynamic_dilation_unfold(x.requires_grad_(recorded), 3, rates, padding=1)
        x = torch.ones(INPUT, device=device)
    rates = torch.ones(MAP, device=device)
    output = dynamic_dilation_unfold(x.requires_grad_(), 3, rates, padding=1)
    x.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=r"^input has no memory that the kernels could read"):
        output.sum().backward()


AUTOCAST = [
    *((x, rates) for x in (torch.int64, torch.bool, torch.complex64) for rates in (torch.float32, torch.bfloat16)),
    *((torch.float32, rates) for rates in (torch.int64, torch.complex64, torch.float64)),
    (torch.bfloat16, torch.float64),
    (torch.float64, torch.float32),
    (torch.float64, torch.float16),
]


@pytest.mark.parametrize(("dtype", "map_dtype"), AUTOCAST, ids=str)
def test_autocast_refuses_what_is_refused_without_it(dtype, map_dtype, device):
    messages = []
    for enabled in (False, True):
        with torch.autocast(device, torch.bfloat16, enabled=enabled), pytest.raises(TypeError) as caught:
            call(device, dtype=dtype, map_dtype=map_dtype)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


UNFOLD = torch.ops.dynamic_dilation_unfold.unfold
BACKWARD = torch.ops.dynamic_dilation_unfold.unfold_backward
PAIRS = {"kernel_size": [3, 3], "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1]}


@pytest.fixture(params=["real", "fake"])
def tensors(request, device):
    """The factory of tensors for the registered operators, which compilers call with fakes."""
    with FakeTensorMode() if request.param == "fake" else contextlib.nullcontext():
        yield lambda *shape, dtype=torch.float32: torch.ones(shape, device=device, dtype=dtype)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("values", [[3, 3, 3], []], ids=str)
def test_pairs_of_the_operator(name, values, tensors):
    options = {**PAIRS, name: values}
    with pytest.raises(ValueError, match=rf"^{name} must be a pair of ints, got {re.escape(str(values))}$"):
        UNFOLD(tensors(*INPUT), tensors(*MAP), *options.values(), 1)


@pytest.mark.parametrize("shape", [(6, 7), (7,), ()], ids=str)
def test_groups_of_a_map_without_groups(shape, tensors):
    with pytest.raises(ValueError, match=r"groups must be positive and divide the input's 4 channels, got 0"):
        UNFOLD(tensors(*INPUT), tensors(*shape), *PAIRS.values(), 0)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((2, 42, 36), torch.float32),
        ((2, 36, 41), torch.float32),
        ((36, 84), torch.float32),
        ((2, 36, 42), torch.float16),
    ],
    ids=str,
)
def test_gradients_of_the_operator(shape, dtype, tensors):
    with pytest.raises(ValueError, match=r"^grad must be torch.float32 of shape ") as caught:
        BACKWARD(
            tensors(*shape, dtype=dtype), tensors(*INPUT), tensors(*MAP), *PAIRS.values(), 1, "zeros", [True, True]
        )
    named = re.sub(r":\d", "", str(caught.value))
    device = tensors(1).device.type
    assert named == (
        f"grad must be torch.float32 of shape [2, 36, 42] on {device}, as the output is, "
        f"got {dtype} of shape {list(shape)} on {device}"
    )


def test_devices_that_differ(device):
    x, rates = torch.ones(INPUT, device=device), torch.ones(MAP, device="meta")
    named = rf"got input on {device}(:0)? and dilation_map on meta$"
    with pytest.raises(RuntimeError, match="^input and dilation_map must be on one device, " + named):
        dynamic_dilation_unfold(x, 3, rates, padding=1)
    if device != "cpu":
        with pytest.raises(RuntimeError, match=rf"got input on cpu and dilation_map on {device}:0$"):
            dynamic_dilation_unfold(x.cpu(), 3, torch.ones(MAP, device=device), padding=1)


def test_an_error_leaves_the_operator_usable(device):
    expected = call(device)
    with pytest.raises(ValueError, match="dilation_map must have shape"):
        call(device, map=(2, 1, 1, 2))
    assert torch.equal(call(device), expected)
