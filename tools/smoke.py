"""The smoke test of an installed wheel. It needs only torch and the package, and prints one line.

    python tools/smoke.py

It compares values and gradients of the fused module with the plain module's, for every dtype, both layouts and both
modes of BatchNorm, and those of an exported program; and it converts a state_dict in both directions.
"""

import itertools

import torch

import cbam_fused
from cbam_fused import CBAM, reference
from cbam_fused.ops import registry

# Relative to the result's largest element: about a hundred roundings of the dtype.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 2e-1}

LAYOUTS = (torch.contiguous_format, torch.channels_last)


def results(module: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.detach().requires_grad_()
    y = module(x)
    return [y.detach(), *torch.autograd.grad(y, [x, *module.parameters()], x.detach())]


def check_module(variant: str, training: bool, dtype: torch.dtype, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    fused = CBAM(48, variant=variant).to(dtype).train(training)
    plain = reference.CBAM(48, variant=variant).double().train(training)
    plain.load_state_dict(fused.state_dict(), strict=True)
    x = torch.randn(3, 48, 13, 11).to(dtype).to(memory_format=layout)
    assert fused.backend_for(x).name == "cpu", fused.backend_for(x)
    for got, expected in zip(results(fused, x), results(plain, x.double()), strict=True):
        error, largest = (got.double() - expected).abs().max().item(), expected.abs().max().item()
        assert error <= TOLERANCE[dtype] * largest, (variant, training, dtype, layout, error, largest)


def check_export() -> None:
    module, x = CBAM(16).eval(), torch.randn(2, 16, 9, 9)
    program = torch.export.export(module, (x,), dynamic_shapes={"x": {0: torch.export.Dim("batch")}}).module()
    x = torch.randn(5, 16, 9, 9)
    assert all(torch.equal(a, b) for a, b in zip(results(program, x), results(module, x), strict=True))


def main() -> None:
    assert not registry.cpu_missing, registry.cpu_missing
    cases = list(itertools.product(("tutorial", "official"), (True, False), TOLERANCE, LAYOUTS))
    for case in cases:
        check_module(*case)
    check_export()
    where = f"{cbam_fused.__file__}, {registry.cpu_capability()}"
    print(f"{len(cases) + 1} checks passed with torch {torch.__version__}: {where}")


if __name__ == "__main__":
    main()
