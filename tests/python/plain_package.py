"""Makes and runs an AOTInductor package of a model without this project's operator, on the device that is named.

For a process of its own: where torch crashes at that, a package with the operator tells nothing. No test by itself.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch


def why_not(device: str) -> str | None:
    """What keeps torch from running packages on the device."""
    run = subprocess.run([sys.executable, __file__, device], capture_output=True, text=True)
    if run.returncode == 0:
        return None
    last = (run.stderr.strip().splitlines() or [""])[-1][:200]
    return f"torch {torch.__version__} cannot run a plain package on {device}: exit status {run.returncode}, {last}"


def main(device: str) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(4, 2, 3), torch.nn.Tanh()).eval().to(device)
    x = torch.randn(2, 4, 6, 7, device=device)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        program = torch.export.export(model, (x,))
        path = torch._inductor.aoti_compile_and_package(program, package_path=str(Path(folder) / "model.pt2"))
        torch.testing.assert_close(torch._inductor.aoti_load_package(path)(x), model(x), rtol=1e-2, atol=1e-2)


if __name__ == "__main__":
    main(sys.argv[1])
