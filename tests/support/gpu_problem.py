"""Problems on a GPU, and functions of tensors on the CPU that are computed on a GPU."""

from truth import random_problem

from cbam_fused import functional, routing


def on_gpu(function=functional.cbam, device="cuda"):
    """The function of tensors on the CPU, computed on a GPU."""

    def call(relu, **inputs):
        inputs = {n: None if t is None else t.to(device) for n, t in inputs.items()}
        assert routing.backend_for(inputs["x"]) == routing.wanted
        return function(**inputs, relu=relu).cpu()

    return call


def cuda_problem(*args, draw=random_problem, **kwargs):
    problem = draw(*args, **kwargs)
    leaves = {n: t.detach().cuda().requires_grad_() for n, t in problem.inputs.items() if t is not None}
    problem.inputs |= leaves
    problem.dy = problem.dy.cuda()
    return problem
