"""The state of training: network, optimiser, schedule, scaler and averaged weights."""

import copy
from dataclasses import dataclass
from pathlib import Path

import rich
import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .. import InputError, distributed
from ..model.classifier import build_model, check_backend, check_size
from ..model.weights import describe_head, pretrained_weights, weights_in
from ..seeds import seed_all
from ..settings import Settings, stages
from .optimisation import make_optimizer, make_schedule

SMALL_FILES = 64 << 20  # plots, log, predictions and TensorBoard


@dataclass
class Learner:
    """The state of training; ema is None without averaged weights."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler
    scaler: torch.amp.GradScaler
    ema: AveragedModel | None

    @property
    def for_use(self) -> nn.Module:
        """The network to evaluate and save: the one with averaged weights, if there is one."""
        return self.model if self.ema is None else self.ema.module


def make_learner(settings: Settings, classes: list[str], steps_per_epoch: int, resumed: bool = False) -> Learner:
    """The initial state, determined by the seed; without initial weights if a loaded state will replace them.

    Raises:
        InputError: incompatible settings, unavailable weights, image sizes that the network rejects.
    """
    device = distributed.device()
    if settings.sync_bn and device.type == "cpu":
        raise InputError("sync_bn needs GPUs: PyTorch has no SyncBatchNorm for CPUs")
    if settings.backend == "fused" and settings.cbam != "none":
        check_backend(device)
    weights = None
    if settings.pretrained and not resumed:
        weights = pretrained_weights(settings.arch)
    elif settings.weights is not None and not resumed:
        weights = weights_in(Path(settings.weights), settings.arch)
    if weights is not None:
        rich.get_console().print(describe_head(weights, classes), soft_wrap=True, markup=False, highlight=False)
    seed_all(settings.seed)
    model = build_model(
        settings.arch,
        len(classes),
        settings.cbam,
        settings.backend,
        settings.cbam_init,
        weights,
        settings.zero_init_residual,
        classes,
    ).to(device)
    for side in {settings.image_size, *(int(side) for _, side in stages("train_sizes", settings.train_sizes))}:
        check_size(model, side)
    if settings.deterministic:
        _check_deterministic(model, settings.image_size)
    if settings.sync_bn:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if settings.channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model, settings)
    schedule = make_schedule(optimizer, settings, steps_per_epoch)
    scaler = torch.amp.GradScaler(device.type, enabled=settings.amp == "fp16")
    ema = None
    if settings.ema:
        ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.ema), use_buffers=True)
    return Learner(model, optimizer, schedule, scaler, ema)


@torch.no_grad()
def update_average(ema: AveragedModel, model: nn.Module) -> None:
    """AveragedModel.update_parameters, without its copy of n_averaged to the GPU, which blocks the host."""
    pairs = [
        pair
        for tensors in (nn.Module.parameters, nn.Module.buffers)
        for pair in zip(tensors(ema.module), tensors(model), strict=True)
    ]
    if ema.n_averaged == 0:
        for average, current in pairs:
            average.copy_(current)
    else:
        for floating in (True, False):  # the averaging function tests only the first tensor of a list
            kind = [pair for pair in pairs if pair[0].is_floating_point() is floating]
            if kind:
                ema.multi_avg_fn(*map(list, zip(*kind, strict=True)), ema.n_averaged)
    ema.n_averaged += 1


def _check_deterministic(model: nn.Module, side: int) -> None:
    """Raise InputError if an operation of a step has no deterministic implementation; does not change the model."""
    trial, device = copy.deepcopy(model).train(), next(model.parameters()).device
    try:
        trial(torch.zeros(2, 3, side, side, device=device)).sum().backward()
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        reason = str(error).partition(", but ")[0]
        raise InputError(f"deterministic: not with this {type(model).__name__} on {device}: {reason}") from error


def to_run(model: nn.Module, settings: Settings) -> nn.Module:
    """The network that training calls; create a new one when the trained parameters change."""
    network = distributed.replicate(model)
    return torch.compile(network) if settings.compile else network


def bytes_to_write(learner: Learner, settings: Settings) -> int:
    """The peak disk usage of a run: each checkpoint twice, since a new one is complete before it replaces the old."""
    weights = sum(t.numel() * t.element_size() for t in learner.model.state_dict().values())
    copies = 2 + (learner.ema is not None) + (2 if settings.optimizer == "adamw" else 1)  # best.pt; weights; moments
    return 2 * copies * weights + SMALL_FILES
