"""Small random networks: kinds for which insertion and removal once failed, and easy ones."""

import random
import types

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models.resnet import BasicBlock, Bottleneck

DROP = False  # a variable that a forward reads
WIDTH = 8


class StochasticDepth(BasicBlock):
    """Drops its branch in training, with one of three generators."""

    def __init__(self, *args):
        super().__init__(*args)
        self.source, self.rate = random.choice(["python", "numpy", "torch"]), random.choice([0.01, 0.5])

    def forward(self, x):
        if self.training:
            draw = {"python": random.random, "numpy": np.random.random, "torch": lambda: torch.rand(()).item()}
            if draw[self.source]() < self.rate:
                return torch.relu(x)
        return super().forward(x)


class OwnGenerator(BasicBlock):
    def __init__(self, *args):
        super().__init__(*args)
        self.random = random.Random(3)

    def forward(self, x):
        return x if self.training and self.random.random() < 0.1 else super().forward(x)


class Noise(BasicBlock):
    def forward(self, x):
        y = super().forward(x)
        return y + 0.1 * torch.randn_like(y) if self.training else y


class Counting(BasicBlock):
    """Another result in every third call."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return torch.relu(x) if self.calls % 3 == 0 else super().forward(x)


class ReadsVariable(BasicBlock):
    def forward(self, x):
        return torch.relu(x) if DROP else super().forward(x)


class Extra(BasicBlock):
    def __init__(self, *args):
        super().__init__(*args)
        self.extra = nn.Conv2d(WIDTH, WIDTH, 1)

    def forward(self, x):
        return super().forward(self.extra(x))


class Scaled(BasicBlock):
    def forward(self, x):
        return 0.5 * super().forward(x)


class DataDependent(BasicBlock):
    def forward(self, x):
        return super().forward(x) if x.mean() < 0.6 else x


class Copied(nn.Module):
    """As in many copies: the shortcut first, no downsample."""

    def __init__(self, *_):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH)
        self.relu = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH)
        self.downsample = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 1), nn.BatchNorm2d(WIDTH))

    def forward(self, x):
        residual = self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(residual + out)


def leaky() -> nn.Module:
    block = BasicBlock(WIDTH, WIDTH)
    block.relu = nn.LeakyReLU(0.1)
    return block


def dropping() -> nn.Module:
    """Dropout within what looks like a norm."""
    block = BasicBlock(WIDTH, WIDTH)
    block.bn2 = nn.Sequential(block.bn2, nn.Dropout(0.3))
    return block


def patched() -> nn.Module:
    """A forward on the instance, as in offloading tools."""
    block = BasicBlock(WIDTH, WIDTH)
    block.forward = types.MethodType(type(block).forward, block)
    return block


def patched_inside() -> nn.Module:
    block = BasicBlock(WIDTH, WIDTH)
    old = block.conv2.forward
    block.conv2.forward = lambda x: old(x) * 0.9
    return block


BLOCKS = {
    "BasicBlock": lambda: BasicBlock(WIDTH, WIDTH),
    "Bottleneck": lambda: Bottleneck(WIDTH, WIDTH // 4),
    **{c.__name__: (lambda c=c: c(WIDTH, WIDTH)) for c in (StochasticDepth, OwnGenerator, Noise, Counting)},
    **{c.__name__: (lambda c=c: c(WIDTH, WIDTH)) for c in (ReadsVariable, Extra, Scaled, DataDependent, Copied)},
    **{f.__name__: f for f in (leaky, dropping, patched, patched_inside)},
}
# Checkpointing fails for these, whose second forward differs.
UNREPEATABLE = ("StochasticDepth", "OwnGenerator", "Counting")


class Walking(nn.Module):
    """Like timm's RegStage: its forward iterates over its children."""

    def __init__(self, *blocks):
        super().__init__()
        for i, block in enumerate(blocks):
            self.add_module(f"b{i}", block)

    def forward(self, x):
        for block in self.children():
            x = block(x)
        return x


class WalkingAndScaling(Walking):
    def forward(self, x):
        return super().forward(x) * 0.5


class WalkingWithShortcut(Walking):
    def forward(self, x):
        return x + super().forward(x)


class WalkingInTraining(Walking):
    """Iterates over its children in training, calls them by name otherwise."""

    def forward(self, x):
        if self.training:
            return super().forward(x)
        for i in range(len(self._modules) - hasattr(self, "cbam")):
            x = getattr(self, f"b{i}")(x)
        return x


class LastTwice(Walking):
    """Its result depends on the kind of the last child."""

    def forward(self, x):
        return [*self.children()][-1](super().forward(x))


class Checkpointed(nn.Sequential):
    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=False)


class Repeated(nn.Module):
    """One block, called three times."""

    def __init__(self, block, *_):
        super().__init__()
        self.block = block

    def forward(self, x):
        for _ in range(3):
            x = self.block(x)
        return x


def patched_stage(*blocks) -> nn.Module:
    stage = nn.Sequential(*blocks)
    old = stage.forward
    stage.forward = lambda x: old(x) + 1
    return stage


def wrapped_stage(*blocks) -> nn.Module:
    stage = nn.Sequential(*blocks)
    old = stage.forward
    stage.forward = lambda *args, **kwargs: old(*args, **kwargs)
    return stage


STAGES = {
    "Sequential": nn.Sequential,
    **{c.__name__: c for c in (Walking, WalkingAndScaling, WalkingWithShortcut, WalkingInTraining, LastTwice)},
    **{c.__name__: c for c in (Checkpointed, Repeated)},
    **{f.__name__: f for f in (patched_stage, wrapped_stage)},
}


class Network(nn.Module):
    def __init__(self, kind: str, stages: list[nn.Module]):
        super().__init__()
        self.kind = kind
        self.stem = nn.Sequential(nn.Conv2d(3, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH), nn.ReLU())
        for i, stage in enumerate(stages, 1):
            self.add_module(f"layer{i}", stage)
        self.drop, self.fc = nn.Dropout(0.2), nn.Linear(WIDTH, 3)

    def forward(self, x, other=None):
        if isinstance(x, dict):
            x = x["image"]
        x = self.stem(x if other is None else x + other)
        for name in [n for n in self._modules if n.startswith("layer")]:
            x = getattr(self, name)(x)
        y = self.fc(self.drop(x.mean((2, 3))))
        return {"tensor": y, "pair": (y, {"x": x}), "dict": {"y": y}}.get(self.kind, y)


def draw(seed: int) -> nn.Module:
    """The network of this seed, the same each time, in float64; the seeds of all generators are set."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    choice = random.Random(seed)
    stages = []
    for _ in range(choice.randint(1, 3)):
        stage = choice.choice([*STAGES, "Sequential"])
        kinds = [k for k in BLOCKS if stage != "Checkpointed" or k not in UNREPEATABLE]
        blocks = [BLOCKS[choice.choice([*kinds, "BasicBlock", "Bottleneck"])]() for _ in range(choice.randint(1, 2))]
        stages.append(STAGES[stage](*blocks))
    model = Network(choice.choice(["tensor", "pair", "dict"]), stages).double()
    for name, module in model.named_modules():
        if choice.random() < 0.1 and name:
            module.eval()
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1)
    for parameter in model.parameters():
        parameter.requires_grad_(choice.random() < 0.9)
    return model


def draw_input(seed: int, batch: int = 2) -> Tensor | tuple | dict:
    """An input for the network of this seed, of one of several kinds."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, 3, 8, 8, generator=rng, dtype=torch.float64)
    kinds = {0: x, 1: (x, x.flip(3)), 2: {"x": x, "other": x.flip(2)}, 3: {"image": x}, 4: ({"image": x},)}
    return kinds[seed % len(kinds)]
