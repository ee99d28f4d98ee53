"""Freezing of the backbone, and unfreezing by epoch."""

from torch import nn

import cbam_fused

from .. import InputError
from ..model.classifier import head_name
from ..settings import Settings, stages


class Freezing:
    """Freezes all except CBAM and the last layer, including BatchNorm's statistics, and unfreezes parts by settings.

    Raises:
        InputError: a layer to unfreeze that the network does not have.
    """

    def __init__(self, model: nn.Module, settings: Settings):
        self.model = model
        self.parts: tuple[str, ...] | None = None  # the trained parts; None: everything
        self.stages = [(1, ("all",))]
        if settings.freeze == "backbone":
            first = (head_name(model), *([] if settings.cbam == "none" else ["cbam"]))
            self.stages = [(1, first)]
            for epoch, names in stages("unfreeze", settings.unfreeze):
                self.stages.append((epoch, (*self.stages[-1][1], *(name.strip() for name in names.split(",")))))
        for epoch, _ in self.stages:
            self.start(epoch)

    def start(self, epoch: int) -> bool:
        """Set the trained parts of an epoch; return whether they changed."""
        parts = [parts for first, parts in self.stages if first <= epoch][-1]
        parts = None if "all" in parts else parts
        if parts == self.parts:
            return False
        if parts is None:
            cbam_fused.unfreeze(self.model)
        else:
            try:
                cbam_fused.freeze_except(self.model, *parts)
            except ValueError as error:
                raise InputError(f"unfreeze: {error}") from error
        self.parts = parts
        return True
