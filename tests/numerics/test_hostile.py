"""Hostile input that the fuzz tests cannot draw, or should not draw only by chance."""

import mmap
import os

import pytest
import torch
from arguments import OK
from torch import nn
from truth import random_problem

from cbam_fused import CBAM, functional
from cbam_fused.ops import registry

PARAMETERS = ("w1", "w2", "ws", "b1", "b2", "bs")


def test_strides_beyond_32_bits():
    """Two images 2^31 elements apart, in 4 GB of which only a few pages are used."""
    apart = 2**31
    memory = mmap.mmap(-1, 2 * apart + 2**20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)  # MAP_NORESERVE
    x = torch.frombuffer(memory, dtype=torch.float16).as_strided((2, 8, 5, 5), (apart, 25, 5, 1))
    x.copy_(torch.randn(x.shape))
    args = [OK[n].half() + 0.1 for n in ("w1", "w2", "ws")]
    assert torch.equal(functional.cbam(x, *args), functional.cbam(x.contiguous(), *args))


def test_images_that_int32_cannot_index_are_refused():
    """On tensors without their own memory; nothing is copied before the check."""
    for shape in ((1, 1, 2**16, 2**15), (1, 2**31, 1, 1)):
        with pytest.raises(RuntimeError, match="fewer than 2\\^31"):
            functional.cbam(torch.zeros(()).expand(shape), None, None, OK["ws"])


@pytest.mark.parametrize("strides,offset", [((200, 25, 5, -1), 4), ((200, 25, 5, 1), -1), ((2**63 - 1, 25, 5, 1), 0)])
def test_pytorch_makes_no_tensor_beyond_its_memory(strides, offset):
    """With negative strides, a negative offset, or missing elements, so no operator gets such a tensor."""
    with pytest.raises(RuntimeError, match=r"(?i)negative|out of bounds|overflow|invalid storage offset"):
        torch.zeros(400).as_strided((2, 8, 5, 5), strides, offset)


def test_a_batch_that_no_memory_can_hold():
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        functional.cbam(torch.zeros(()).expand(2**40, 8, 5, 5), OK["w1"], OK["w2"], OK["ws"])


@pytest.mark.parametrize("lazy", [torch._neg_view, lambda t: torch._neg_view(-t), torch._efficientzerotensor])
def test_tensors_whose_values_are_not_in_memory(lazy):
    x = torch.randn(2, 8, 5, 5)
    lazy_x = lazy((2, 8, 5, 5)) if lazy is torch._efficientzerotensor else lazy(x)
    args = [torch.randn_like(OK[n]) for n in ("w1", "w2", "ws")]
    plain_x = torch.zeros_like(x) if lazy is torch._efficientzerotensor else lazy_x.resolve_neg()
    assert torch.equal(functional.cbam(lazy_x, *args), functional.cbam(plain_x, *args))


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_are_refused(layout):
    images = [torch.zeros(8, 5, 5), torch.zeros(8, 5, 5)] if layout == torch.strided else [torch.zeros(3, 5, 5)] * 2
    with pytest.raises(TypeError, match="x must be a dense tensor, got "):
        functional.cbam(torch.nested.nested_tensor(images, layout=layout), OK["w1"], OK["w2"], OK["ws"])


def test_residual_that_is_x_and_gradient_that_is_x():
    problem = random_problem((2, 6, 5, 9), residual=True, relu=True)
    x = problem.inputs["x"]
    problem.inputs["residual"] = x.detach().clone().requires_grad_()
    problem.dy = x.detach().clone()
    apart = problem.run(functional.cbam)
    problem.inputs["residual"], problem.dy = x, x.detach()
    together = problem.run(functional.cbam)
    assert torch.equal(together["y"], apart["y"])
    torch.testing.assert_close(together["dx"], apart["dx"] + apart["dresidual"])


@pytest.mark.parametrize(
    "norm,message",
    [
        (nn.BatchNorm2d(3), "norm must have 1 feature, got 3"),
        (nn.BatchNorm2d(1, device="meta"), "norm must be on cpu like x, got meta"),
        (nn.BatchNorm2d(1, affine=False, device="meta"), "norm must be on cpu like x, got meta"),
    ],
)
def test_wrong_norm(norm, message):
    for mode in (True, False):
        with pytest.raises(ValueError, match=message):
            functional.cbam(OK["x"], OK["w1"], OK["w2"], OK["ws"], norm=norm.train(mode))
        with pytest.raises(ValueError, match=message):
            functional.spatial_gate(OK["x"], OK["ws"], norm=norm.train(mode))


def test_norm_without_a_spatial_gate():
    with pytest.raises(ValueError, match="norm must be None without ws"):
        functional.cbam(OK["x"], OK["w1"], OK["w2"], None, norm=nn.BatchNorm2d(1))


@pytest.mark.parametrize("variant", ["tutorial", "official", "hyso", "ultralytics", "torchvision_se", "timm_light"])
@pytest.mark.parametrize(
    "x,kind,message",
    [
        (torch.zeros(32, 5, 5), ValueError, r"x must be \(N, C, H, W\)"),
        (torch.zeros(2, 32, 0, 5), ValueError, r"x must be \(N, C, H, W\)"),
        (torch.zeros(2, 32, 5, 5, dtype=torch.int32), TypeError, "x must be a tensor of float32"),
        (torch.zeros(2, 32, 5, 5).to_sparse(), TypeError, "x must be a dense tensor"),
        (None, TypeError, "x must be a tensor of float32"),
    ],
)
def test_modules_that_run_the_reference_say_the_same(variant, x, kind, message):
    with pytest.raises(kind, match=message):
        CBAM(32, variant=variant)(x)


def saved_through(change):
    """A backward whose saved tensors went through this function, as with a hook that compresses them."""
    problem = random_problem((2, 20, 30, 30), biases=True, relu=True)
    with torch.no_grad():
        problem.inputs["x"][..., -1, -1] = 9  # the maximum of every channel
    with torch.autograd.graph.saved_tensors_hooks(change, lambda t: t):
        y = functional.cbam(**problem.inputs, relu=True)
    torch.autograd.grad(y, problem.inputs["x"], problem.dy)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.bfloat16().to(t.dtype),  # the index of the last pixel, 899, becomes 900
        lambda t: t.bfloat16(),
        lambda t: t.double(),
        lambda t: -t,
        lambda t: t[..., :1],
        lambda t: t.flatten(),
    ],
)
def test_hooks_that_change_what_was_saved(change):
    """An error, without an access beyond the tensors."""
    with pytest.raises(RuntimeError):
        saved_through(change)


def test_hooks_that_keep_what_was_saved():
    saved_through(lambda t: t.clone())
    saved_through(lambda t: t.bfloat16().to(t.dtype) if t.is_floating_point() else t)


def operator_arguments():
    """Valid arguments for each raw operator."""
    x, residual = OK["x"], OK["residual"]
    params = {n: OK[n] for n in PARAMETERS}
    y, saved, index = registry.operators["cpu"].forward(x, *params.values(), residual, True, 0)
    s, dg = torch.zeros(2, 1, 5, 5), torch.zeros(2, 8)
    return {
        "forward": {"x": x, **params, "residual": residual, "relu": True, "switches": 0},
        "backward": {"dy": y, "x": x, "y": y, "saved": saved, "index": index, **params, "switches": 0},
        "gates_forward": {"x": x, **params, "switches": 0},
        "apply_gates": {"x": x, "saved": saved, "s": s, "residual": residual, "relu": True, "switches": 0},
        "gate_grads": {"dy": y, "x": x, "y": y, "saved": saved, "s": s, "switches": 0},
        "backward_from_gate_grads": {
            **{"dy": y, "s": s, "dg": dg, "dlogits": s, "x": x, "saved": saved, "index": index},
            **params,
            "switches": 0,
        },
    }


@pytest.mark.parametrize("name", operator_arguments())
def test_operators_refuse_tensors_that_do_not_fit(name):
    """As in an exported program, which calls the operators without functional.cbam."""
    operator, right = getattr(registry.operators["cpu"], name), operator_arguments()[name]
    operator(**right)
    for argument, t in right.items():
        if not isinstance(t, torch.Tensor):
            continue
        wrong = [t[..., :0], torch.cat([t, t], 1 if t.dim() > 1 else 0)]
        if (name, argument) != ("gates_forward", "x"):  # valid for any dtype and number of images
            wrong.append(torch.cat([t, t]))
            if argument not in PARAMETERS:  # those are converted
                wrong += [t.double(), t.long()]
        for w in wrong:
            with pytest.raises(RuntimeError):
                operator(**right | {argument: w})


@pytest.mark.cuda
@pytest.mark.skipif(bool(registry.cuda_missing), reason=f"CUDA kernels: {registry.cuda_missing}")
@pytest.mark.parametrize("name", operator_arguments())
def test_operators_refuse_tensors_on_another_device(name):
    """A kernel would follow an invalid pointer."""
    operator = getattr(registry.operators["cuda"], name)
    right = {n: t.cuda() if isinstance(t, torch.Tensor) else t for n, t in operator_arguments()[name].items()}
    operator(**right)
    for argument, t in right.items():
        if isinstance(t, torch.Tensor):
            with pytest.raises(RuntimeError):
                operator(**right | {argument: t.cpu()})


@pytest.mark.parametrize("absent,given", [(("w1", "w2"), "b1"), (("w1", "w2"), "b2"), (("ws",), "bs")])
def test_operators_refuse_a_bias_without_its_gate(absent, given):
    """Its gradient would not be written."""
    right = operator_arguments()["forward"]
    biases = {name: right[name] if name == given else None for name in ("b1", "b2", "bs")}
    with pytest.raises(RuntimeError, match="b1 and b2 must be None without w1 and w2, and bs without ws"):
        registry.operators["cpu"].forward(**right | biases | dict.fromkeys(absent))


def test_operators_refuse_indices_that_point_elsewhere():
    right = operator_arguments()["backward"]
    for wrong in (-1, 25, 2**31 - 1, -(2**31)):
        for place in ((0, 0), (1, 7), (0, 8), (1, 32)):
            index = right["index"].clone()
            index[place] = wrong
            with pytest.raises(RuntimeError, match="index is not what the forward left"):
                registry.operators["cpu"].backward(**right | {"index": index})


@pytest.mark.parametrize("wrong", [None, 3, "text", [1.0], torch.zeros(()), torch.zeros(7), torch.zeros(2, 2, 2)])
@pytest.mark.parametrize("name", ["ca.fc1.weight", "ca.fc2.weight", "sa.conv1.weight"])
def test_state_that_is_no_weight(name, wrong):
    """PyTorch's error, which names the key."""
    module = CBAM(32)
    with pytest.raises(RuntimeError, match=name.replace(".", r"\.")):
        module.load_state_dict(module.state_dict() | {name: wrong})


def test_state_with_nan_spreads_as_in_the_reference():
    module = CBAM(32)
    state = module.state_dict()
    state["ca.fc2.weight"][3] = float("nan")
    module.load_state_dict(state)
    y = module(torch.randn(2, 32, 5, 5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cbam_fused.routing.wanted", "reference")
        expected = module(torch.randn(2, 32, 5, 5))
    assert torch.equal(y.isnan(), expected.isnan()) and y.isnan().any()


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("command", ["predict", "evaluate", "train --resume"])
def test_pickles_are_not_loaded(command, two_classes, tmp_path):
    """A checkpoint whose unpickling would run code: refused, and the code does not run."""
    from train_example import main

    run = tmp_path / "run"
    run.mkdir()
    for name in ("best.pt", "last.pt"):
        torch.save({"state_dict": Trap(tmp_path / "sprung")}, run / name)
    arguments = {
        "predict": ["predict", "--run", str(run), str(two_classes)],
        "evaluate": ["evaluate", "--run", str(run), str(two_classes)],
        "train --resume": ["train", "--resume", str(run)],
    }[command]
    assert main(arguments) != 0
    assert not (tmp_path / "sprung").exists()
