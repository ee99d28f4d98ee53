"""Which variants run on the kernels, and what backend_for says of the others."""

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
    "timm": "ties='even'",
    "timm_light": "combine='mean', ties='even'",
    "hyso": "act='silu'",
    "ultralytics": "pools=('avg',), width='single'",
    "torchvision_se": "pools=('avg',)",
}


@pytest.mark.parametrize("variant", BACKENDS)
def test_backend_for(variant, monkeypatch):
    module, x = CBAM(64, variant=variant).eval(), torch.zeros(1, 64, 2, 2)
    reason = BACKENDS[variant]
    assert module.backend_for(x) == (("reference", f"no kernels for {reason}") if reason else ("cpu", ""))
    monkeypatch.setenv("CBAM_FUSED_BACKEND", "reference")
    name, why = module.backend_for(x)
    assert name == "reference" and (reason in why if reason else "switched off" in why)


def test_backend_for_what_has_no_kernels_yet():
    x = torch.zeros(1, 64, 2, 2)
    for module, why in (
        (CBAM(64, variant="official"), "BatchNorm with the statistics of the batch"),
        (CBAM(64, spatial=False), "one gate alone"),
        (CBAM(64).ca, "one gate alone"),
        (CBAM(64).sa, "one gate alone"),
    ):
        assert module.backend_for(x) == ("reference", f"no kernels for {why}")
