"""nn.Conv2d whose dilation is a map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .. import _torch_private as private
from .._eager import is_compiling
from .._functions.conv2d import dynamic_dilation_conv2d
from .._options import integer, pair
from .rates import DilationPredictor, ZeroConv2d, bounded_rates, check_bounds, check_channels, check_map

_PADDING_MODES = {"zeros": "zeros", "replicate": "border", "border": "border"}
_RATES = ("predicted", "given", "learned")
_OWN = {"predictor", "rate_weight", "mask_predictor"}  # what a plain convolution has not
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class DynamicDilationConv2d(nn.Conv2d):
    """``nn.Conv2d`` whose dilation is a map: :func:`dynamic_dilation_conv2d` with a weight, a bias and its rates.

    It has all of nn.Conv2d's arguments and starts as that convolution: rates and mask are exactly 1 until they are
    trained, and get gradients from the first step. A state dict of nn.Conv2d loads, and leaves them as they are.

    Shapes: ``[B, C, H, W]`` -> ``[B, O, Ho, Wo]``, each also without ``B``; a dilation_map is
    ``[B or 1, map_groups, Ho or 1, Wo or 1]``.

    Args:
        padding_mode: "zeros", or "replicate", which is the operator's "border". Others raise: pad the input.
        map_groups: Planes of the dilation map, each for ``C / map_groups`` channels.
        rates: "predicted" from the input by a :class:`DilationPredictor`, "given" as forward's second argument, or
            "learned": one for each of the map's groups.
        max_rate: Bound of predicted and learned rates, above 1 and finite; they are at least 0.
        modulated: Whether taps are multiplied by a mask that is predicted from the input, ``2 * sigmoid``, one for each
            of the map's groups.
        The others are nn.Conv2d's.

    Parameters, input and output have one dtype: float16, bfloat16, float32 or float64. Predicted and learned rates are
    float32 for half types; given ones may be.

    Raises:
        ValueError: ``rates``, ``padding_mode``, ``map_groups`` or ``max_rate`` does not fit, or what nn.Conv2d refuses;
            the message says what is expected.
        TypeError: An option is not what it must be: an int, or a pair of ints.
    """

    _plain_prefix: str | None = None  # the layer's own, while a state dict without rates and mask is loaded

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        map_groups: int = 1,
        rates: str = "predicted",
        max_rate: float = 4.0,
        modulated: bool = False,
    ) -> None:
        if rates not in _RATES:
            raise ValueError(f'rates must be "predicted", "given" or "learned", got {rates!r}')
        if padding_mode not in _PADDING_MODES:
            raise ValueError(
                f'padding_mode must be "zeros" or "replicate", got {padding_mode!r}: '
                "pad the input with torch.nn.functional.pad before the layer"
            )
        map_groups = integer("map_groups", map_groups)
        if map_groups < 1:
            raise ValueError(f"map_groups must be at least 1, got {map_groups}")
        if in_channels % map_groups != 0:
            raise ValueError(f"map_groups must divide the {in_channels} input channels, got {map_groups}")
        mode: Any = "replicate" if padding_mode == "border" else padding_mode
        given = {"kernel_size": kernel_size, "stride": stride, "padding": padding, "dilation": dilation}
        pairs: Any = {
            name: value if name == "padding" and isinstance(value, str) else pair(name, value)
            for name, value in given.items()
        }
        super().__init__(
            in_channels, out_channels, **pairs, groups=groups, bias=bias, padding_mode=mode, device=device, dtype=dtype
        )
        self.map_groups, self.rates, self.max_rate = map_groups, rates, max_rate
        self.predictor = self.rate_weight = self.mask_predictor = None
        if rates == "predicted":
            self.predictor = DilationPredictor(
                in_channels, map_groups, self.stride, max_rate=max_rate, device=device, dtype=dtype
            )
        if rates == "learned":
            check_bounds(0.0, max_rate)
            self.rate_weight = nn.Parameter(torch.zeros(1, map_groups, 1, 1, device=device, dtype=dtype))
        if modulated:
            taps = self.kernel_size[0] * self.kernel_size[1]
            strides: Any = self.stride
            self.mask_predictor = ZeroConv2d(in_channels, map_groups * taps, 3, strides, 1, device=device, dtype=dtype)
        self.register_load_state_dict_post_hook(_allow_plain)  # type: ignore[no-untyped-call]

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, **options: Any) -> DynamicDilationConv2d:
        """The layer that computes what ``conv`` does, with its weight and bias themselves.

        Args:
            conv: A torch.nn.Conv2d. Dtype, device and whether it trains are the layer's too.
            options: ``map_groups``, ``rates``, ``max_rate``, ``modulated``.

        Raises:
            TypeError: ``conv`` is no nn.Conv2d, or of a subclass, which may compute something else; or it has hooks, or
                no weight of its own that a layer could take.
            ValueError: An option, or the convolution's padding mode, does not fit.
        """
        _check_plain(conv)
        padding: Any = conv.padding
        layer = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            padding,
            conv.dilation,
            conv.groups,
            conv.bias is not None,
            conv.padding_mode,
            conv.weight.device,
            conv.weight.dtype,
            **options,
        )
        layer.weight, layer.bias = conv.weight, conv.bias
        return layer.train(conv.training)

    def reset_parameters(self) -> None:
        """nn.Conv2d's, and sets learned rates to 1. Predictors reset themselves."""
        super().reset_parameters()
        rates = self._parameters.get("rate_weight")  # not yet while nn.Conv2d is made
        if rates is not None:
            nn.init.zeros_(rates)

    def dilation_map(self, input: Tensor) -> Tensor:
        """The rates of a call, predicted or learned.

        Args:
            input: As of ``forward``.

        Returns:
            ``[B or 1, map_groups, Ho or 1, Wo or 1]``, without ``B`` for an unbatched input, from 0 to ``max_rate``; of
            the parameters' dtype, but float32 for half types.

        Raises:
            ValueError: The layer's rates are given, or the input is smaller than the window.
        """
        if self.predictor is not None:
            rates: Tensor = self.predictor(self._centered(input))
            return rates
        if self.rate_weight is None:
            raise ValueError('a layer with rates="given" has no dilation map of its own')
        rates = bounded_rates(self.rate_weight, 0.0, self.max_rate)
        return rates if input.dim() == 4 else rates.squeeze(0)

    def mask(self, input: Tensor) -> Tensor | None:
        """The factors of the taps in a call.

        Args:
            input: As of ``forward``.

        Returns:
            ``[B, map_groups, kH*kW, Ho, Wo]``, without ``B`` for an unbatched input, from 0 to 2, of the input's dtype;
            None unless modulated.

        Raises:
            ValueError: The input is smaller than the window.
        """
        if self.mask_predictor is None:
            return None
        predicted = self.mask_predictor(self._centered(input))
        taps = self.kernel_size[0] * self.kernel_size[1]
        mask: Tensor = 2 * predicted.sigmoid().unflatten(-3, (self.map_groups, taps))
        return mask

    def forward(self, input: Tensor, dilation_map: Tensor | None = None) -> Tensor:
        """The convolution of an image.

        Args:
            input: ``[B, in_channels, H, W]``, or ``[in_channels, H, W]`` unbatched, of the parameters' dtype.
            dilation_map: With ``rates="given"``, and only then: ``[B or 1, map_groups, Ho or 1, Wo or 1]``, without
                ``B`` for an unbatched input. The input's dtype, or float32 beside a half input (recommended). 1 is the
                base dilation.

        Returns:
            ``[B, out_channels, Ho, Wo]``, or ``[out_channels, Ho, Wo]`` unbatched, of the input's dtype; sizes are
            nn.Conv2d's.

        Raises:
            TypeError: The map is missing or not wanted, the input is no tensor, or dtypes do not go together.
            ValueError: A shape or option does not fit; the message says what is expected.
            RuntimeError: Torch's, where one of the layer's own convolutions has another dtype or device than the input.
        """
        check_map(dilation_map, self.rates)
        check_channels(input, self.in_channels)
        rates = self.dilation_map(input) if dilation_map is None else dilation_map
        padding: Any = self.padding
        return dynamic_dilation_conv2d(
            input,
            self.weight,
            rates,
            self.bias,
            self.stride,
            padding,
            self.dilation,
            self.mask(input),
            _PADDING_MODES[self.padding_mode],
        )

    def _centered(self, input: Tensor) -> Tensor:
        """The input cut or padded so that its every stride-th pixel is the centre of a window."""
        if self.padding == "same":
            return input
        padding = (0, 0) if isinstance(self.padding, str) else self.padding
        margins: list[int] = []
        known = not (is_compiling() or private.is_tracing())  # else the question would become a part of the program
        for size, p, d, k in zip(input.shape[-2:], padding, self.dilation, self.kernel_size, strict=True):
            span = d * (k - 1)
            if known and size + 2 * p <= span:
                raise ValueError(
                    f"input {list(input.shape)} with padding {tuple(padding)} is smaller than the window of "
                    f"kernel_size {self.kernel_size} and dilation {self.dilation}: no output position fits"
                )
            margins = [p - span // 2, p - (span + 1) // 2, *margins]
        return F.pad(input, margins) if any(margins) else input

    def extra_repr(self) -> str:
        bound = f", max_rate={self.max_rate}" if self.rates != "given" else ""
        modulated = ", modulated=True" if self.mask_predictor is not None else ""
        plain = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{plain}, map_groups={self.map_groups}, rates={self.rates!r}{bound}{modulated}"

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        """Torch's, for a module's own parameters. Only here it says under which prefix the module is loaded."""
        self._plain_prefix = None if any(_is_own(key, prefix) for key in state_dict) else prefix
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def kind_of(module: Any) -> str:
    """Its type, with where that is from, since several modules of torch have classes of one name."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _check_plain(conv: Any) -> None:
    """Raises for anything but torch's own convolution and no more: the layer would compute something else."""
    kind = kind_of(conv)
    if not isinstance(conv, nn.Conv2d):
        raise TypeError(f"conv must be a torch.nn.Conv2d, got a {kind}")
    if is_lazy(conv.weight):
        raise TypeError(f"conv is a {kind} that has no weight yet: let it see an input before")
    if not isinstance(conv.weight, nn.Parameter):
        raise TypeError(
            f"the weight of conv, a {kind}, is made at each call, which the layer would not do: "
            "remove its parametrization, or weight norm, before, and register it with the layer again"
        )
    if type(conv) is not nn.Conv2d:
        raise TypeError(f"conv is a {kind}, which may compute something else than torch.nn.Conv2d")
    if any(vars(conv).get(hooks) for hooks in _HOOKS):
        raise TypeError("conv has hooks, which the layer would not have: remove them before")
    if "forward" in vars(conv):
        raise TypeError("conv has a forward of its own, which the layer would not have: remove it before")


def _is_own(key: str, prefix: str) -> bool:
    """Whether a key of a state dict names something of the rates or the mask of the layer with that prefix."""
    return key.startswith(prefix) and key[len(prefix) :].partition(".")[0] in _OWN


def _allow_plain(layer: DynamicDilationConv2d, incompatible: Any) -> None:
    """A state dict that has nothing of a layer's rates and mask is a plain convolution's: nothing is missing."""
    prefix, layer._plain_prefix = layer._plain_prefix, None
    missing = incompatible.missing_keys  # of the whole network: those of other layers stay
    if prefix is not None and all(_is_own(key, prefix) for key in missing if key.startswith(prefix)):
        missing[:] = [key for key in missing if not _is_own(key, prefix)]
