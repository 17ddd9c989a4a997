"""Uses the package beside a torch that lacks private names. For a process of its own; no test by itself.

Prints the names that the package looks for. With names as arguments it imports the package as if torch had none of
them, "all" for all, one after the other in this process, and compares what every route gives with the reference.
"""

import importlib
import pkgutil
import sys
import warnings

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

PACKAGE = "dynamic_dilation_unfold"
looked_for: dict[str, bool] = {}  # whether torch has it
hidden: set[str] = set()
_resolve_name = pkgutil.resolve_name


def resolve_name(name: str):
    if name.startswith("torch") and sys._getframe(1).f_globals["__name__"] == f"{PACKAGE}._torch_private":
        looked_for.setdefault(name, False)
        if name in hidden or "all" in hidden:
            raise AttributeError(name)
        looked_for[name] = True
    return _resolve_name(name)


def imported():
    for name in [n for n in sys.modules if n.partition(".")[0] == PACKAGE]:
        del sys.modules[name]
    # torch 2.4's compiler keeps the modules that it met beside the functions which it compiled.
    for name in [n for n in globals() if n.startswith(f"__import_{PACKAGE}")]:
        del globals()[name]
    return importlib.import_module(PACKAGE)


def tensors(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 2, 3, 4, dtype=torch.double, generator=generator)
    return x, 0.6 + 0.3 * torch.rand(2, 2, 3, 4, dtype=torch.double, generator=generator)


def loss(f):
    return lambda x, m: f(x, m).sin().square().sum()


def recorded(f, x: Tensor, m: Tensor, order: int = 1):
    leaves = x.clone().requires_grad_(), m.clone().requires_grad_()
    grads = torch.autograd.grad(loss(f)(*leaves), leaves, create_graph=order > 1)
    return grads if order == 1 else torch.autograd.grad(sum(g.square().sum() for g in grads), leaves)


def batched_gradients(f, x: Tensor, m: Tensor):
    leaves = x.clone().requires_grad_(), m.clone().requires_grad_()
    output = f(*leaves)
    grads = torch.stack([output.detach(), output.detach().cos()])
    return torch.autograd.grad(output, leaves, grads, is_grads_batched=True)


def jvp(f, *primals: Tensor):
    return torch.func.jvp(f, primals, tuple(p.cos() for p in primals))[1]


def escaped(f, x: Tensor, m: Tensor):
    kept: list[Tensor] = []
    torch.func.grad(lambda x: kept.append(x) or x.sum())(x)
    return f(kept[0], m)


def autocast(f, x: Tensor, m: Tensor):
    with torch.autocast("cpu", torch.bfloat16):
        output = f(x.float(), m.float())
    return output.double()


def compiled(f, x: Tensor, m: Tensor):
    torch._dynamo.reset()
    return recorded(torch.compile(f, fullgraph=True, backend="aot_eager"), x, m)


ROUTES = {
    "plain": lambda f, x, m: f(x, m),
    "recorded": recorded,
    "map to broadcast": lambda f, x, m: recorded(f, x, m[:1, :, :1, :1]),
    "double backward": lambda f, x, m: recorded(f, x, m, order=2),
    "batched gradients": batched_gradients,
    "negated view": lambda f, x, m: f(torch._neg_view(x), m),
    "escaped": escaped,
    "grad": lambda f, x, m: torch.func.grad(loss(f), (0, 1))(x, m),
    "vmap": lambda f, x, m: torch.vmap(f)(x[:, None], m[:, None]),
    "per-sample gradients": lambda f, x, m: torch.vmap(torch.func.grad(loss(f), (0, 1)))(x[:, None], m[:, None]),
    "jvp": lambda f, x, m: jvp(f, x, m),
    "jvp of jvp": lambda f, x, m: jvp(lambda x: jvp(lambda x: f(x, m).sin(), x), x),
    "jvp of grad": lambda f, x, m: jvp(lambda m: torch.func.grad(lambda m: loss(f)(x, m))(m), m),
    "autocast": autocast,
    "compiled": compiled,
}


SLOW = {"compiled", "jvp of jvp", "jvp of grad"}  # with single names gone


def check(package, routes) -> None:
    x, m = tensors()
    with_lists = lambda x, m: package.dynamic_dilation_unfold(x, [3, 3], m, padding=1, groups=2)  # noqa: E731
    plain = lambda x, m: package.dynamic_dilation_unfold(x, 3, m, padding=1, groups=2)  # noqa: E731
    definition = lambda x, m: package.reference(x, 3, m, padding=1, groups=2)  # noqa: E731
    operator = lambda x, m: torch.ops.dynamic_dilation_unfold.unfold(x, m, [3], [1], [1], [1], 2)  # noqa: E731
    for name in routes:
        route = ROUTES[name]
        expected = torch.utils._pytree.tree_leaves(route(definition, x, m))
        for function in (plain, with_lists):
            actual = torch.utils._pytree.tree_leaves(route(function, x, m))
            for one, other in zip(actual, expected, strict=True):
                tolerance = 0.05 if name == "autocast" else 1e-9
                torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
    for order in (1, 2):
        torch.testing.assert_close(recorded(operator, x, m, order), recorded(definition, x, m, order))
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(t).requires_grad_() for t in (x, m)]
        grads = torch.autograd.grad(plain(*fakes).sum(), fakes)
    assert [g.shape for g in grads] == [x.shape, m.shape]


def main() -> None:
    warnings.simplefilter("ignore")
    pkgutil.resolve_name = resolve_name
    package = imported()
    check(package, ROUTES)
    for names in sys.argv[1:] or [*looked_for, "all"]:
        hidden.clear()
        hidden.update(names.split(","))
        check(imported(), ROUTES if names == "all" else [name for name in ROUTES if name not in SLOW])
        print(names, "has" if looked_for.get(names, True) else "lacks", flush=True)


if __name__ == "__main__":
    main()
