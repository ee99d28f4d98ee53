"""The layers of a foreign module by their role in a CBAM, recognised by their shapes."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..variants.config import STATE, Switches


@dataclass(frozen=True)
class Layers:
    """The names of a module's layers with parameters, by role; empty if it has no layer in that role."""

    fc1: str
    fc2: str
    conv: str
    norm: str
    channels: int
    kernel_size: int
    switches: Switches

    @classmethod
    def of(cls, module: nn.Module) -> "Layers | None":
        """The layers of a CBAM or a mask; None for other modules."""
        mlp: list[str] = []
        conv: list[str] = []
        norm: list[str] = []
        for name, layer in module.named_modules():
            if "parametrizations" in layer._modules:  # reading its weight may change it, as in spectral_norm
                return None
            if not layer._parameters and not layer._buffers:
                continue
            shape: tuple[int, ...] = layer.weight.shape if isinstance(layer, nn.Linear | nn.Conv2d) else ()
            if len(shape) == 4 and shape[0] == 1 and shape[1] in (1, 2) and 1 < shape[2] == shape[3] and shape[3] % 2:
                conv.append(name)
            elif len(shape) == 2 or (len(shape) == 4 and shape[2:] == (1, 1)):
                mlp.append(name)
            elif isinstance(layer, nn.BatchNorm2d) and layer.num_features == 1 and len([*layer.state_dict()]) == 5:
                norm.append(name)
            else:
                return None
            if not name or len(mlp) > 2 or len(conv) > 1 or len(norm) > len(conv):
                return None
        if not mlp and not conv:
            return None
        found: list[Any] = [module.get_submodule(name) for name in (*mlp, *conv)]
        shapes = [layer.weight.shape[:2] for layer in found[: len(mlp)]]
        biases = [layer.bias is not None for layer in found]
        single = len(mlp) == 1 and shapes[0][0] == shapes[0][1]
        if mlp and not single and (len(mlp) != 2 or shapes[0] != shapes[1][::-1] or biases[0] != biases[1]):
            return None
        kernel = found[-1].weight.shape if conv else (1, 2, 7, 7)
        switches = Switches(
            channel=bool(mlp),
            spatial=bool(conv),
            width="single" if single else int(shapes[0][0]) if mlp else 1,
            bias=bool(mlp) and biases[0],
            maps="both" if kernel[1] == 2 else "mean",
            spatial_bias=bool(conv) and biases[-1],
            norm=bool(norm),
        )
        fc1, fc2, *_ = (*mlp, "", "")
        channels = shapes[0][1] if mlp else 5  # any number works for the spatial mask
        return cls(fc1, fc2, "".join(conv), "".join(norm), channels, kernel[2], switches)

    def state(self, module: nn.Module) -> dict[str, Tensor]:
        """The module's state under our names, in its own shapes and order."""
        names = {"ca.fc1": self.fc1, "ca.fc2": self.fc2, "sa.conv1": self.conv, "sa.bn": self.norm}
        result = {}
        for own in STATE:
            layer, _, leaf = own.rpartition(".")
            tensor = getattr(module.get_submodule(names[layer]), leaf, None) if names[layer] else None
            if tensor is not None:
                result[own] = tensor
        return result
