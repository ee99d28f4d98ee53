"""Optimiser and learning-rate schedule."""

import math

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from cbam_fused.surgery.selection import find_cbams

from ..model.classifier import head_name
from ..settings import Settings


def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW, over all parameters; those that are frozen it passes over."""
    new = {id(p) for m in find_cbams(model).values() for p in m.parameters()}
    new |= {id(p) for p in model.get_submodule(head_name(model)).parameters()}
    groups: dict[tuple[bool, bool], dict] = {}
    for parameter in model.parameters():
        backbone, decayed = id(parameter) not in new, settings.decay_all or parameter.ndim > 1
        group = groups.setdefault(
            (backbone, decayed),
            {
                "params": [],
                "lr": settings.lr * (settings.backbone_lr if backbone else 1),
                "weight_decay": settings.weight_decay if decayed else 0.0,
            },
        )
        group["params"].append(parameter)
    fused = settings.freeze == "none"  # torch 2.14's fused SGD fails where a parameter gets its first gradient later
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups.values(), fused=fused)
    optimizer = torch.optim.SGD(groups.values(), momentum=0.9, nesterov=True, fused=fused)
    if fused:  # PyTorch only allocates the momentum at the first step, which writes nothing where fp16 overflows
        for group in groups.values():
            optimizer.state.update({p: {"momentum_buffer": torch.zeros_like(p)} for p in group["params"]})
    return optimizer


def make_schedule(optimizer: torch.optim.Optimizer, settings: Settings, steps_per_epoch: int) -> LambdaLR:
    """Step by step: a linear warm-up, then half a cosine, or a fall every step_epochs."""
    total = settings.epochs * steps_per_epoch
    warm = min(round(settings.warmup_epochs * steps_per_epoch), total // 2)

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        if settings.schedule == "step":
            return settings.step_factor ** ((step - warm) // (settings.step_epochs * steps_per_epoch))
        done = (step - warm) / max(1, total - warm)
        return settings.min_lr + (1 - settings.min_lr) * (1 + math.cos(math.pi * done)) / 2

    return LambdaLR(optimizer, factor)
