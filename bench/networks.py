"""Whole networks: ResNet-18 with CBAM after each layer, ResNet-50 with CBAM in every block before the addition."""

import statistics
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cbam_fused import CBAM, insert_cbam, reference
from garbage.data.folders import decode, normalise
from garbage.samples.draw import draw_sample_set

from .timing import step_seconds

CLASSES = 12


# The preset of insert_cbam by torchvision's name. In a block CBAM precedes the addition and fuses it and the ReLU;
# eager and compile compute the same.
NETWORKS = {"resnet18": "each_layer", "resnet50": "in_block"}
VARIANTS = ("none", "eager", "compile", "fused")


def build(name: str, variant: str, example: Tensor) -> nn.Module:
    """The network in channels_last; "compile" compiles only the eager CBAM modules, so the rest is the same."""
    torch.manual_seed(0)
    network = getattr(torchvision.models, name)(num_classes=CLASSES)
    if variant != "none":
        factory = CBAM if variant == "fused" else reference.CBAM
        inserted = insert_cbam(network, where=NETWORKS[name], factory=factory, example_input=example.cpu()[:1])
        if variant == "compile":
            for module in inserted.values():
                module.compile(dynamic=False)
    return network.to(example.device, memory_format=torch.channels_last)


def batch(data: Path | None, scratch: Path, count: int, side: int) -> tuple[Tensor, Tensor]:
    """Images evenly from the class folders of data, or from the sample set if it is None, and their labels."""
    if data is None:
        data = scratch / "sample"
        draw_sample_set(data, counts={"train": 2})
        data = data / "train"
    samples = torchvision.datasets.ImageFolder(data).samples
    picked = [samples[i * len(samples) // count] for i in range(count)]
    images = normalise(torch.stack([decode(Path(path), side) for path, _ in picked]))
    return images, torch.tensor([label % CLASSES for _, label in picked])


@dataclass
class Steps:
    """Training steps, or inferences, of every variant in turn, A B C D: one of each on a CPU, several on a GPU.

    ``times[variant]`` are the seconds of a step, ``host[variant]`` the host's. amp is the dtype of automatic mixed
    precision.
    """

    networks: dict[str, nn.Module]
    images: Tensor
    labels: Tensor
    training: bool
    amp: torch.dtype | None = None

    def __post_init__(self):
        self.clear()
        self.optimizers = {n: torch.optim.SGD(m.parameters(), lr=1e-3, momentum=0.9) for n, m in self.networks.items()}
        for network in self.networks.values():
            network.train(self.training)

    def clear(self) -> None:
        """Discard the times, such as those of the warm-up round."""
        self.times: dict[str, list[float]] = {name: [] for name in self.networks}
        self.host: dict[str, list[float]] = {name: [] for name in self.networks}

    def __call__(self) -> None:
        for name in self.networks:
            seconds, host = step_seconds(partial(self.step, name), self.images.device.type)
            self.times[name].append(seconds)
            self.host[name].append(host)

    def step(self, name: str) -> None:
        # Autocast per step, since it caches the cast weights until it ends.
        with torch.autocast(self.images.device.type, self.amp, enabled=self.amp is not None):
            self._train(name) if self.training else self._infer(name)

    def _train(self, name: str) -> None:
        self.optimizers[name].zero_grad()
        cross_entropy(self.networks[name](self.images), self.labels).backward()
        self.optimizers[name].step()

    def _infer(self, name: str) -> None:
        with torch.no_grad():
            self.networks[name](self.images)

    def seconds(self, of: dict[str, list[float]] | None = None) -> dict[str, float]:
        return {name: statistics.median(t) for name, t in (of or self.times).items()}

    def tax(self) -> dict[str, list[float]]:
        """Extra time over the network without CBAM, round by round: lower quartile, median, upper quartile."""
        none = self.times["none"]
        return {
            name: statistics.quantiles((t / n - 1 for t, n in zip(times, none, strict=True)), n=4, method="inclusive")
            for name, times in self.times.items()
            if name != "none"
        }


def disagreements(name: str, steps: Steps) -> dict[str, str]:
    """What is wrong with the logits, and in training the gradients, of the timed networks, by variant.

    The tolerance of tests/support/truth.py for the norm of the error, since in a whole network rounding determines
    single elements. Call it before the first step, while all have the weights of build.
    """

    def results(network: nn.Module) -> dict[str, Tensor]:
        with torch.set_grad_enabled(steps.training):
            logits = network(steps.images.to(next(network.parameters()).dtype))
        found = {"logits": logits.detach().double()}
        if steps.training:
            network.zero_grad()
            cross_entropy(logits, steps.labels).backward()
            found["gradients"] = torch.cat([p.grad.flatten() for p in network.parameters()]).double()
        return found

    truth = results(build(name, "eager", steps.images).double().train(steps.training))
    eager = results(steps.networks["eager"])
    wrong: dict[str, str] = {}
    for variant in ("compile", "fused"):
        got = results(steps.networks[variant])
        for key, t in truth.items():
            error, yardstick = (got[key] - t).norm().item(), (eager[key] - t).norm().item()
            bound = 2 * yardstick + torch.finfo(torch.float32).eps * t.norm().item()
            if not error <= bound:
                wrong[variant] = f"{key}: error {error:.3g}, eager {yardstick:.3g}, bound {bound:.3g}"
    return wrong
