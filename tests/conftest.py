import pytest
import torch


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fills what torch.empty (in Python and in C++) returns with NaN, or the largest integer, in every test.

    PyTorch does so in deterministic mode, so this also shows that no operator of ours warns or fails in it.
    """
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def pytest_report_header() -> str:
    from cbam_fused import _ops

    kernels = _ops.cpu_missing or f"CPU kernels, {_ops.cpu_capability()}"
    return f"cbam_fused: {kernels}, {torch.get_num_threads()} threads"
