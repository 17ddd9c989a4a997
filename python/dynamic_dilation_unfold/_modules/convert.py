"""A network whose dilated convolutions get a map."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from torch import nn

from .conv2d import DynamicDilationConv2d


class Conversion(NamedTuple):
    """What :func:`convert` did, by the names of modules. As text, a line for each."""

    swapped: dict[str, DynamicDilationConv2d]
    skipped: dict[str, str]  # those that were asked for and stay as they are: why

    def __str__(self) -> str:
        lines = [f"{name}: {type(layer).__name__}({layer.extra_repr()})" for name, layer in self.swapped.items()]
        lines += [f"{name}: left as it is, {why}" for name, why in self.skipped.items()]
        return "\n".join(lines) or "no convolution was chosen"


def convert(
    model: nn.Module,
    where: Callable[[str, nn.Conv2d], bool] | Iterable[str] | None = None,
    **options: Any,
) -> Conversion:
    """Swaps dilated convolutions of a network for :class:`DynamicDilationConv2d`, in place.

    The network computes what it did, until the rates are trained; its weights are the same parameters, under the same
    names, so that its state dicts still load. The rates' parameters are new: give them to the optimizer.

    Args:
        model: Of which the modules are swapped.
        where: Which ones: a function of a convolution's name and the convolution, or names. Those with a dilation above
            1 if not given.
        options: ``map_groups``, ``max_rate``, ``modulated``, and ``rates`` as "predicted" or "learned", of the layers.

    Returns:
        What was swapped, and what could not be, with what :meth:`DynamicDilationConv2d.from_conv` says of it:
        subclasses of nn.Conv2d, convolutions with hooks, which a layer would not have, or with a weight norm, and those
        that the options do not fit.

    Raises:
        ValueError: A name that no convolution has, or one that is converted already; options that no convolution could
            have; or rates="given", which the network could not give.
        TypeError: The model itself is a convolution, or no module; ``where`` is neither of the two; or a layer has no
            such option.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module that contains its convolutions, got {type(model).__name__}")
    if isinstance(model, nn.Conv2d):
        raise TypeError("model must contain its convolutions: of one by itself, take DynamicDilationConv2d.from_conv")
    if options.get("rates") == "given":
        raise ValueError('rates="given" needs a map that the network does not pass: use "predicted" or "learned"')
    groups = options.get("map_groups", 1)
    DynamicDilationConv2d(groups, groups, 1, device="meta", **options)  # raises what would hold for every convolution
    modules = dict(model.named_modules(remove_duplicate=False))
    all_convolutions = {name: module for name, module in modules.items() if isinstance(module, nn.Conv2d)}
    ours = [name for name, conv in all_convolutions.items() if isinstance(conv, DynamicDilationConv2d)]
    taken = {name: layer for layer in ours for name in all_convolutions if f"{name}.".startswith(f"{layer}.")}
    convolutions = {name: conv for name, conv in all_convolutions.items() if name not in taken}
    chosen = _chosen(convolutions, taken, where)
    result = Conversion({}, {})
    layers: dict[nn.Conv2d, DynamicDilationConv2d] = {}  # a convolution that has several names stays one
    for name in chosen:
        conv = convolutions[name]
        try:
            layer = layers[conv] if conv in layers else DynamicDilationConv2d.from_conv(conv, **options)
        except (TypeError, ValueError) as error:
            result.skipped[name] = str(error)
            continue
        layers[conv] = layer
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)
        result.swapped[name] = layer
    return result


def _chosen(convolutions: dict[str, nn.Conv2d], taken: dict[str, str], where: Any) -> list[str]:
    """The names that ``where`` chooses. Those that are taken have the layer that they are, or are a part of."""
    if where is None:
        return [name for name, conv in convolutions.items() if max(conv.dilation) > 1]
    if callable(where) and not isinstance(where, type):
        return [name for name, conv in convolutions.items() if where(name, conv)]
    if not isinstance(where, Iterable):
        what = "a function of a convolution's name and the convolution, or names of convolutions"
        raise TypeError(f"where must be {what}, got {where!r}")
    names = [where] if isinstance(where, str) else list(where)
    for name in names:
        if name in taken:
            part = "" if taken[name] == name else f"a part of {taken[name]!r}, "
            raise ValueError(f"where has {name!r}, which is {part}converted already: a DynamicDilationConv2d")
        if name not in convolutions:
            raise ValueError(f"where has {name!r}, which is no torch.nn.Conv2d of the model")
    return names
