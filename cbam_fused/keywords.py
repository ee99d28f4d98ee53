"""Errors for wrong keywords; they suggest the nearest keyword, also for the spellings of other projects."""

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])

# Common names of our arguments in other projects.
SPELLINGS = {
    "channels": "in_channels in_planes inplanes planes gate_channels channel in_channel num_channels c1 c2 dim inp",
    "reduction": "reduction_ratio ratio rotio rd_ratio r se_ratio squeeze_factor reduction_factor reduce",
    "kernel_size": "kernel kernel_sizes k spatial_kernel spatial_kernel_size sa_kernel_size conv_kernel ksize",
    "width": "rd_channels hidden hidden_channels squeeze_channels mid_channels",
    "spatial": "no_spatial use_spatial spatial_attention",
    "channel": "no_channel use_channel channel_attention",
    "pools": "pool_types pool_type pool pooling",
    "act": "act_layer activation act_cfg act_type non_linearity",
    "channel_gate": "gate_layer gate sigmoid scale_activation",
    "bias": "mlp_bias use_bias",
    "spatial_bias": "conv_bias sa_bias",
    "norm": "norm_layer bn use_bn batch_norm norm_cfg",
    "norm_momentum": "momentum bn_momentum",
    "residual": "shortcut skip add",
    "variant": "version kind name type implementation",
    "after": "layers names modules module_names places targets positions behind at",
    "where": "position preset location place",
    "factory": "cls module_cls cbam attention attn_layer attn builder module block",
    "init": "initialization initialisation init_method identity",
    "example_input": "input inputs example_inputs example sample dummy_input input_size sample_input args",
    "x": "input inputs image images batch example_input",
    "bn_eval": "freeze_bn eval_bn bn_frozen frozen_bn norm_eval",
    "parts": "names layers modules keep except_ train unfrozen",
}


def wrong_keyword(owner: str, name: str, known: Iterable[str]) -> TypeError:
    """The error for an unknown keyword of the owner, a class or function."""
    known = list(known)
    names = {spelling: right for right in known for spelling in SPELLINGS.get(right, "").split()}
    names |= {right: right for right in known}
    near = difflib.get_close_matches(name.lower(), names, n=3)
    nearest = list(dict.fromkeys(names[n] for n in near))
    which = f"the nearest names are {', '.join(nearest)}" if nearest else f"there are {', '.join(known)}"
    return TypeError(f"{owner} has no argument {name!r}; {which}")


def names_keywords(function: Function) -> Function:
    """A decorator that raises this error for unknown keywords."""
    parameters = inspect.signature(function).parameters

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        for name in kwargs:
            if name not in parameters:
                raise wrong_keyword(function.__name__, name, list(parameters)[1:])  # the first is the model
        return function(*args, **kwargs)

    return checked  # type: ignore[return-value]
