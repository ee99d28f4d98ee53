"""Optimiser and learning-rate schedule."""

import math

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from cbam_fused.surgery.selection import find_cbams

from ..model.classifier import head_name
from ..settings import WARMUP, Settings


def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW, over all parameters; frozen ones are skipped."""
    of_cbam = {id(p) for m in find_cbams(model).values() for p in m.parameters()}
    of_head = {id(p) for p in model.get_submodule(head_name(model)).parameters()}
    groups: dict[tuple[str, bool], dict] = {}
    factors = {"backbone": settings.backbone_lr, "cbam": settings.cbam_lr, "new": 1.0}
    for parameter in model.parameters():
        # One group for all new layers if they have one rate, as in last.pt of existing runs.
        part = "cbam" if id(parameter) in of_cbam and settings.cbam_lr != 1 else "new"
        part = part if id(parameter) in of_cbam | of_head else "backbone"
        decayed = settings.decay_all or parameter.ndim > 1
        group = groups.setdefault(
            (part, decayed),
            {
                "params": [],
                "lr": settings.lr * factors[part],
                "weight_decay": settings.weight_decay if decayed else 0.0,
            },
        )
        group["params"].append(parameter)
    fused = settings.freeze == "none"  # torch 2.14's fused SGD fails if a parameter gets its first gradient later
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups.values(), fused=fused)
    optimizer = torch.optim.SGD(groups.values(), momentum=0.9, nesterov=True, fused=fused)
    if fused:  # PyTorch allocates the momentum at the first step, and does not write it if fp16 overflows
        for group in groups.values():
            optimizer.state.update({p: {"momentum_buffer": torch.zeros_like(p)} for p in group["params"]})
    return optimizer


def make_schedule(optimizer: torch.optim.Optimizer, settings: Settings, steps_per_epoch: int) -> LambdaLR:
    """Per step: a linear warm-up, then half a cosine, or a decay every step_epochs."""
    total = settings.epochs * steps_per_epoch
    warmup = min(WARMUP, settings.epochs / 2) if settings.warmup_epochs is None else settings.warmup_epochs
    warm = min(round(warmup * steps_per_epoch), total // 2)

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        if settings.schedule == "step":
            return settings.step_factor ** ((step - warm) // (settings.step_epochs * steps_per_epoch))
        done = (step - warm) / max(1, total - warm)
        return settings.min_lr + (1 - settings.min_lr) * (1 + math.cos(math.pi * done)) / 2

    return LambdaLR(optimizer, factor)
