"""Watching rates while a model trains."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._modules.rates import DilationPredictor
from .._options import pair
from .taps import coverage_share

_OPTIONS = ("kernel_size", "stride", "padding", "dilation")


@dataclass(frozen=True)
class RateRecord:
    """The rates of one call."""

    name: str  # of the module
    step: int
    rates: Tensor  # the map [B, G, Ho, Wo] as it was given, without its graph; rows and columns may be broadcast
    mean: float
    outside: float | None  # share of taps that read the padding; None where kernel or image are not known

    def histogram(self, bins: int = 64) -> tuple[Tensor, Tensor]:
        """Counts ``[bins]`` of the finite rates and the edges ``[bins + 1]`` between them, on the CPU."""
        rates = self.rates.float().flatten().cpu()
        counts, edges = torch.histogram(rates[rates.isfinite()], bins)
        return counts, edges


class RateMonitor:
    """Logs the rates of a model's modules while it trains, by forward hooks.

    A module is watched if its ``forward`` has an argument ``dilation_map``, as those of this package have; whatever it
    is given there is logged. So is what a :class:`~dynamic_dilation_unfold.modules.DilationPredictor` predicts, under
    the name of the layer that it belongs to. Other modules that predict a map, so that it is their output, are named in
    ``predictors``. For rates that no module is given or returns there is :meth:`record`.

    .. code-block:: python

        options = {"kernel_size": 3, "padding": 1}
        with RateMonitor(model, SummaryWriter("runs/1"), every=100, predictors={"rates": options}):
            train(model)

    Args:
        model: Watched with all its submodules.
        log: A ``torch.utils.tensorboard.SummaryWriter``, or anything with its ``add_scalar``, ``add_histogram`` and
            ``add_images``; or a function that takes a :class:`RateRecord`. A writer gets, under the module's name, the
            scalars ``mean`` and ``outside``, the histogram ``rates``, and the images ``map``: those of the first batch
            element, one for each group, black being the least rate and white the largest.
        every: Log one call of each module in this many, the first included.
        predictors: Name of a module -> ``kernel_size`` and, where they are not 1, 0 and 1, ``stride``, ``padding`` and
            ``dilation`` of the call that takes its map; ``{}`` if they are not to be known, and then no share of taps
            outside is logged. The image has the size of that module's input.

    Raises:
        ValueError: Nothing is there to watch, or a name in ``predictors`` is no module's.
    """

    def __init__(
        self,
        model: nn.Module,
        log: Any,
        every: int = 1,
        predictors: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self._log: Callable[[RateRecord], None] = log if _is_callback(log) else _Writer(log)
        self._every = every
        self._calls: dict[str, int] = {}
        self._handles: list[Any] = []
        modules, predictors = dict(model.named_modules()), predictors or {}
        predicted: dict[nn.Module, Tensor] = {}
        for name in predictors:
            if name not in modules:
                raise ValueError(f"predictors: the model has no module {name!r}; it has {', '.join(modules)}")
        for name, module in modules.items():
            if name in predictors:
                self._watch(module, _of_predictor(name, dict(predictors[name])))
            elif _takes_a_map(module):
                self._watch(module, _of_layer(name or type(module).__name__, predicted))
            elif isinstance(module, DilationPredictor):
                layer = modules[name.rpartition(".")[0]]
                if _takes_a_map(layer):  # which logs it, as it knows image and window
                    self._handles.append(module.register_forward_hook(_keep_for(layer, predicted)))
                else:
                    self._watch(module, _of_predictor(name or type(module).__name__, {}))
        if not self._handles:
            raise ValueError(
                f"{type(model).__name__} has no module whose forward has an argument dilation_map; "
                "name those that return a map in predictors"
            )

    def record(self, name: str, rates: Tensor, input_size: tuple[int, int] | None = None, **options: Any) -> None:
        """Logs a map, if it is this name's turn.

        Args:
            name: Under which it is logged.
            rates: The map ``[B, G, Ho, Wo]``, or ``[G, Ho, Wo]``.
            input_size: Height and width of the image; None if the share of taps outside is not to be known.
            **options: ``kernel_size``, ``stride``, ``padding``, ``dilation`` of the call; likewise.
        """
        step = self._calls.get(name, 0)
        self._calls[name] = step + 1
        if step % self._every:
            return
        with torch.no_grad():
            rates = rates.detach()
            outside = None
            if input_size is not None and "kernel_size" in options:
                outside = 1 - float(coverage_share(rates, input_size, **options).double().mean())
            self._log(RateRecord(name, step, rates, float(rates.double().mean()), outside))

    def remove(self) -> None:
        """Takes the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> RateMonitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _watch(self, module: nn.Module, found: _Found) -> None:
        @torch.compiler.disable  # type: ignore[untyped-decorator]  # in a compiled model the graph breaks here
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            name, rates, size, options = found(module, args, kwargs, output)
            if isinstance(rates, Tensor):
                self.record(name, rates, size, **options)

        self._handles.append(module.register_forward_hook(hook, with_kwargs=True))


# Of a call of a module: name, map, size of the image and options, as far as they are known.
_Found = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], tuple[str, Any, Any, dict[str, Any]]]


def _takes_a_map(module: nn.Module) -> bool:
    return "dilation_map" in inspect.signature(module.forward).parameters


def _keep_for(layer: nn.Module, predicted: dict[nn.Module, Tensor]) -> Callable[..., None]:
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        predicted[layer] = output.detach()

    keep: Callable[..., None] = hook
    return keep


def _of_layer(name: str, predicted: dict[nn.Module, Tensor]) -> _Found:
    """The map that a layer is given, that its predictor gave it, or of its own ``dilation_map(input)``."""

    def found(module: nn.Module, args: Any, kwargs: Any, output: Any) -> tuple[str, Any, Any, dict[str, Any]]:
        given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        image = next(value for value in given.values() if isinstance(value, Tensor))
        rates = given.get("dilation_map")
        if rates is None:
            rates = predicted.pop(module, None)
        own: Any = getattr(module, "dilation_map", None)
        if rates is None and callable(own):
            with torch.no_grad():
                rates = own(image)
        return name, rates, tuple(image.shape[-2:]), _options_of(module)

    return found


def _of_predictor(name: str, options: dict[str, Any]) -> _Found:
    def found(module: nn.Module, args: Any, kwargs: Any, output: Any) -> tuple[str, Any, Any, dict[str, Any]]:
        images = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        return name, output, tuple(images[0].shape[-2:]) if images else None, options

    return found


def _options_of(layer: nn.Module) -> dict[str, Any]:
    """Of the calls that a layer makes; none if they are not all known as numbers."""
    options = {option: getattr(layer, option) for option in _OPTIONS if hasattr(layer, option)}
    padding = options.get("padding")
    if padding == "valid":
        options["padding"] = 0
    elif padding == "same":
        totals = [d * (k - 1) for d, k in zip(*(pair(n, options[n]) for n in ("dilation", "kernel_size")), strict=True)]
        if any(total % 2 for total in totals):  # the layer pads one side more
            return {}
        options["padding"] = tuple(total // 2 for total in totals)
    return options


def _is_callback(log: Any) -> bool:
    return callable(log) and not hasattr(log, "add_scalar")


class _Writer:
    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def __call__(self, record: RateRecord) -> None:
        name, step = record.name, record.step
        self.writer.add_scalar(f"{name}/mean", record.mean, step)
        if record.outside is not None:
            self.writer.add_scalar(f"{name}/outside", record.outside, step)
        rates = record.rates.float().cpu()
        finite = rates[rates.isfinite()]
        if len(finite):
            self.writer.add_histogram(f"{name}/rates", finite, step)
            least, most = float(finite.min()), float(finite.max())
            planes = (rates[0] if rates.dim() == 4 else rates).unsqueeze(1)  # [G, 1, Ho, Wo]
            shown = ((planes - least) / (most - least or 1)).nan_to_num(0).clamp(0, 1)
            self.writer.add_images(f"{name}/map", shown, step)
