"""Variants on the kernels, and backend_for's reasons for the others."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cbam_fused import CBAM, routing
from cbam_fused.variants.table import VARIANTS

TABLE = (Path(__file__).parents[2] / "docs/guide/variants.md").read_text()


@pytest.mark.parametrize("backend", routing.BACKENDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_backend_for_is_what_the_table_says(variant, backend, monkeypatch):
    """Independent of the backends of this machine: the rows list the variants that a backend supports."""
    (row,) = (line for line in TABLE.splitlines() if line.startswith(f"| `{variant}` |"))
    said = row.rpartition(" | ")[2].removesuffix(" |")
    monkeypatch.setattr(routing, "backend_for", lambda x: backend)
    module, x = CBAM(64, variant=variant).eval(), torch.zeros(1, 64, 2, 2)
    got = module.backend_for(x)
    if backend in said.split(", "):
        assert got == (backend, "")
    else:
        reason = said.removeprefix("none, for ")
        assert reason != said and got == ("reference", f"no {backend} kernels for {reason}")


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_cpu_serves_every_variant(variant, monkeypatch):
    module, x = CBAM(64, variant=variant).eval(), torch.zeros(1, 64, 2, 2)
    assert module.backend_for(x) == ("cpu", "")
    monkeypatch.setattr("cbam_fused.routing.wanted", "reference")
    name, why = module.backend_for(x)
    assert name == "reference" and "disabled" in why


def test_backend_for_other_pools():
    module = CBAM(64, variant="official", pools=("avg", "lse")).eval()
    assert module.backend_for(torch.zeros(1, 64, 2, 2)) == ("reference", "no cpu kernels for pools=('avg', 'lse')")


@pytest.mark.parametrize(
    "module",
    [CBAM(64, variant="official"), CBAM(64, spatial=False), CBAM(64, channel=False), CBAM(64).ca, CBAM(64).sa],
    ids=["training mode", "channel", "spatial", "channel mask", "spatial mask"],
)
def test_backend_for_parts(module):
    assert module.train().backend_for(torch.zeros(1, 64, 2, 2)) == ("cpu", "")


def test_why_the_reference_serves():
    module, seen = CBAM(8), []
    torch.func.vmap(lambda x: seen.append(module.backend_for(x)) or x)(torch.zeros(2, 1, 8, 2, 2))
    assert [name for name, _ in seen] == ["reference"] and "torch.func" in seen[0].reason
    mps = SimpleNamespace(device=torch.device("mps"))
    assert module.backend_for(mps) == ("reference", "no kernels for mps tensors")


def test_backend_for_synchronised_batch_norm():
    module = torch.nn.SyncBatchNorm.convert_sync_batchnorm(CBAM(64, variant="official"))
    name, why = module.backend_for(torch.zeros(1, 64, 2, 2))
    assert name == "reference" and "SyncBatchNorm" in why
    assert module.sa.backend_for(torch.zeros(1, 64, 2, 2)) == ("cpu", "")  # the mask calls it on its small map
