"""py.typed: every public function and method is fully typed."""

import inspect
from pathlib import Path

import pytest

import cbam_fused
from cbam_fused import functional, reference, surgery

FUNCTIONS = ("cbam", "channel_gate", "spatial_gate", "backend_for")
NAMED = {f"cbam_fused.{name}": getattr(cbam_fused, name) for name in cbam_fused.__all__}
NAMED |= {f"surgery.{name}": getattr(surgery, name) for name in surgery.__all__}
NAMED |= {f"functional.{name}": getattr(functional, name) for name in FUNCTIONS}
NAMED |= {f"reference.{name}": getattr(reference, name) for name in ("CBAM", "cbam", "channel_gate", "spatial_gate")}
METHODS = ("__init__", "forward", "backend_for", "weights", "weight", "norm")


def callables():
    for name, value in NAMED.items():
        if inspect.isclass(value):
            yield from (
                (f"{name}.{m}", getattr(value, m)) for m in METHODS if inspect.isfunction(getattr(value, m, None))
            )
        elif callable(value):
            yield name, value


CALLABLES = dict(callables())


@pytest.mark.parametrize("name", CALLABLES)
def test_everything_public_has_types(name):
    signature = inspect.signature(CALLABLES[name])
    bare = [p.name for p in signature.parameters.values() if p.annotation is p.empty and p.name != "self"]
    assert not bare
    # mypy infers the return type of __init__.
    assert signature.return_annotation is not signature.empty or name.endswith("__init__")


def test_the_marker_is_there():
    assert (Path(cbam_fused.__file__).parent / "py.typed").is_file() and len(CALLABLES) > 20
