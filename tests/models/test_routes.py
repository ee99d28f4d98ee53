"""Which variants run on the kernels, and what backend_for says of the others."""

from types import SimpleNamespace

import pytest
import torch

from cbam_fused import CBAM

BACKENDS = {
    "tutorial": "",
    "luuuyi": "",
    "official": "",
    "pytorchcv": "",
    "mmyolo": "",
    "peachypie98": "",
    "external_attention": "",
    "timm": "",
    "timm_light": "combine='mean'",
    "hyso": "act='silu'",
    "ultralytics": "pools=('avg',), width='single'",
    "torchvision_se": "pools=('avg',)",
}


@pytest.mark.parametrize("variant", BACKENDS)
def test_backend_for(variant, monkeypatch):
    module, x = CBAM(64, variant=variant).eval(), torch.zeros(1, 64, 2, 2)
    reason = BACKENDS[variant]
    assert module.backend_for(x) == (("reference", f"no kernels for {reason}") if reason else ("cpu", ""))
    monkeypatch.setattr("cbam_fused.functional.wanted", "reference")
    name, why = module.backend_for(x)
    assert name == "reference" and (reason in why if reason else "switched off" in why)


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
    assert module.sa.backend_for(torch.zeros(1, 64, 2, 2)) == ("cpu", "")  # which calls it on its small map
