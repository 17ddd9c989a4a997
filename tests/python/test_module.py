"""DynamicDilationUnfold: the function with its options fixed, as any module without state."""

import copy
import io
import pickle

import pytest
import torch
from dynamic_dilation_unfold import DynamicDilationUnfold, dynamic_dilation_unfold
from helpers import CASES, assert_same_bits, random_input, random_map, run


@pytest.mark.parametrize("case", CASES, ids=str)
def test_is_the_function(case, device):
    module = DynamicDilationUnfold(**case.options)
    x, rates = random_input(case.shape).to(device), random_map("fractional", case.map_shape).to(device)
    expected = dynamic_dilation_unfold(x, dilation_map=rates, **case.options)
    assert_same_bits(module(x, rates), expected)
    assert_same_bits(module(input=x, dilation_map=rates), expected)


def test_repr():
    assert repr(DynamicDilationUnfold(3)) == (
        "DynamicDilationUnfold(kernel_size=(3, 3), stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1)"
    )
    assert repr(DynamicDilationUnfold((3, 5), 2, [1, 0], dilation=(2, 1), groups=4)) == (
        "DynamicDilationUnfold(kernel_size=(3, 5), stride=(2, 2), padding=(1, 0), dilation=(2, 1), groups=4)"
    )


OPTIONS = {"kernel_size": (3, 2), "stride": 2, "padding": (1, 0), "dilation": (1, 2), "groups": 2}


def torch_save(module):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def pickled(module):
    return pickle.loads(pickle.dumps(module))


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickled, torch_save])
def test_copies(duplicate):
    module = DynamicDilationUnfold(**OPTIONS).eval()
    other = duplicate(module)
    assert other is not module
    assert repr(other) == repr(module)
    assert not other.training
    x, rates = torch.rand(1, 4, 9, 9), torch.rand(1, 2, 5, 4)
    assert_same_bits(other(x, rates), module(x, rates))


def test_has_no_state():
    module = DynamicDilationUnfold(**OPTIONS)
    assert not list(module.parameters())
    assert not list(module.buffers())
    assert module.state_dict() == {}
    module.load_state_dict({})
    assert module.half().to("cpu") is module


class Learned(torch.nn.Module):
    """A layer as a user would write it: one module, one parameter for the map."""

    def __init__(self):
        super().__init__()
        self.rate = torch.nn.Parameter(torch.tensor(1.2))
        self.unfold = DynamicDilationUnfold(3, padding=1)

    def forward(self, x):
        return self.unfold(x, self.rate.expand(1, 1, *x.shape[2:]))


def test_lives_in_a_model():
    model = Learned()
    assert list(model.state_dict()) == ["rate"]
    other = Learned()
    model.rate.data.fill_(2.5)
    other.load_state_dict(model.state_dict())
    assert other.rate == 2.5


def test_a_map_is_learned(device):
    """Gradient descent finds the rate that made the columns."""
    y, x = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
    image = (torch.sin(y / 3) + torch.cos(x / 4 + y / 7))[None, None].to(device)
    target = dynamic_dilation_unfold(image, 3, torch.full_like(image, 1.7), padding=1)
    model = Learned().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(80):
        optimizer.zero_grad()
        (model(image) - target).square().mean().backward()
        optimizer.step()
    assert abs(model.rate.item() - 1.7) < 0.01


def test_training_is_the_same_every_time(device, deterministic):
    def train():
        rates = random_map("fractional", (2, 1, 12, 13)).to(device).requires_grad_()
        x = random_input((2, 3, 12, 13)).to(device).requires_grad_()
        for _ in range(5):
            (dynamic_dilation_unfold(x, 3, rates, padding=1) ** 2).sum().backward()
            with torch.no_grad():
                for leaf in (x, rates):
                    leaf -= 1e-3 * leaf.grad
                    leaf.grad = None
        return x.detach(), rates.detach()

    for one, other in zip(train(), train(), strict=True):
        assert_same_bits(one, other)


def test_gradients_flow_through_the_module(device):
    case = CASES[0]
    tensors = (random_input(case.shape), random_map("fractional", case.map_shape), random_input(case.output_shape))
    tensors = [t.to(device) for t in tensors]
    module = DynamicDilationUnfold(**case.options)
    through = run(lambda input, dilation_map: module(input, dilation_map), *tensors, {})
    assert_same_bits(through.output, run(dynamic_dilation_unfold, *tensors, case.options).output)
    assert through.grad_map.any()
