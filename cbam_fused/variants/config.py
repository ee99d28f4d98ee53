"""The differences of public CBAM implementations, as switches of one general module."""

from dataclasses import dataclass, fields

ALLOWED = {
    "width": ("floor", "at_least_1", "nearest", "nearest_8", "round", "sixteenth", "single"),
    "act": ("relu", "leaky_relu", "silu", "gelu"),
    "pools": ("avg", "max", "lp", "lse"),
    "combine": ("sum", "mean"),
    "gate_place": ("after_sum", "before_sum"),
    "channel_gate": ("sigmoid", "hard_sigmoid"),
    "spatial_gate": ("sigmoid", "hard_sigmoid"),
    "maps": ("both", "mean"),
    "spatial_order": ("mean_max", "max_mean"),
    "ties": ("first", "even"),
}

# State of a CBAM under its own names. A variant renames a part of it.
STATE = (
    *("ca.fc1.weight", "ca.fc1.bias", "ca.fc2.weight", "ca.fc2.bias", "sa.conv1.weight", "sa.conv1.bias"),
    *("sa.bn.weight", "sa.bn.bias", "sa.bn.running_mean", "sa.bn.running_var", "sa.bn.num_batches_tracked"),
)


# Bits of Switches.code, as in csrc/problem.h; the activation's number follows them.
EVEN, NO_AVG, NO_MAX, MEAN_OF_POOLS, GATE_TERMS, SINGLE, HARD_CHANNEL, HARD_SPATIAL = (1 << i for i in range(8))
ACTIVATION = 8
NO_CHANNEL = 1 << 10  # for operators without the weights as arguments

# The switches that change a gate's mathematics.
OF_GATE = {
    "channel": ("width", "act", "pools", "combine", "gate_place", "channel_gate"),
    "spatial": ("spatial_gate",),
}


@dataclass(frozen=True, kw_only=True)
class Switches:
    """Differences of public implementations. The defaults are the tutorial's. C channels, reduction r.

    Attributes:
        channel, spatial: presence of the gate; at least one.
        width: hidden units of the MLP. "floor": C // r; "at_least_1": max(1, C // r); "nearest": C / r rounded,
            halves up, at least 1; "nearest_8": to a multiple of 8, at least 8; "round": C / r rounded, halves to
            the even number; "sixteenth": C // 16 for any r; "single": one layer C -> C and no activation;
            an integer: the number itself.
        bias: biases in the MLP. The second counts once per pool.
        act: activation between the MLP's layers.
        pools: input of the MLP: mean, maximum, "lp": (sum x^2)^(1/2), "lse": log(sum(exp(x))).
        combine: "sum" adds the MLP of each pool; "mean" is the MLP of the mean of the pools.
        gate_place: "before_sum" applies the channel gate's sigmoid to each summand; the sum may reach 2.
        channel_gate, spatial_gate: sigmoid, or hard_sigmoid: min(max(x / 6 + 1 / 2, 0), 1).
        maps: "both": convolution over [mean, max]; "mean": over the one map (mean + max) / 2.
        spatial_bias: bias of the spatial convolution.
        norm, norm_momentum: BatchNorm after the spatial convolution, and its momentum.
        residual: adds x to the result.
        ties: the gradient of a maximum goes to the "first" tied element, or is split "even"ly among them.
        spatial_order: order of the two maps in checkpoints of the variant. The module always has the mean first.
    """

    channel: bool = True
    spatial: bool = True
    width: str | int = "at_least_1"
    bias: bool = False
    act: str = "relu"
    pools: tuple[str, ...] = ("avg", "max")
    combine: str = "sum"
    gate_place: str = "after_sum"
    channel_gate: str = "sigmoid"
    spatial_gate: str = "sigmoid"
    maps: str = "both"
    spatial_bias: bool = False
    norm: bool = False
    norm_momentum: float = 0.1
    residual: bool = False
    ties: str = "first"
    spatial_order: str = "mean_max"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            allowed = ALLOWED.get(field.name, ())
            if field.name == "pools":
                pools = tuple(n for n in allowed if n in value) if isinstance(value, list | tuple) else ()
                if not pools or len(pools) != len(value):
                    raise ValueError(f"pools must name some of {', '.join(allowed)}, each at most once, got {value!r}")
                object.__setattr__(self, "pools", pools)  # in a fixed order, which has no meaning
            elif field.name == "norm_momentum":
                if isinstance(value, bool) or not isinstance(value, int | float):
                    raise ValueError(f"norm_momentum must be a number, got {value!r}")
            elif field.name == "width" and type(value) is int:
                if value < 1:
                    raise ValueError(f"width must be at least 1, got {value}")
            elif not allowed:
                if not isinstance(value, bool):
                    raise ValueError(f"{field.name} must be True or False, got {value!r}")
            elif value not in allowed:
                number = " or an integer" if field.name == "width" else ""
                raise ValueError(f"{field.name} must be one of {', '.join(allowed)}{number}, got {value!r}")
        if not self.channel and not self.spatial:
            raise ValueError("channel or spatial must be True, got False for both")
        direct = {*self.pools} <= {"avg", "max"} and self.maps == "both" and not self.residual
        self.__dict__.update(_code=self._encode(), _direct=direct)

    @property
    def code(self) -> int:
        """The mathematics of both gates, and ties, as an integer for the kernels. 0 is the tutorial's.

        It does not encode the pools "lp" and "lse", nor ``maps`` and ``residual``, which are other arguments.
        """
        return self.__dict__["_code"]

    @property
    def direct(self) -> bool:
        """Whether ``code`` encodes everything that the kernels need."""
        return self.__dict__["_direct"]

    def _encode(self) -> int:
        two = {"avg", "max"} <= {*self.pools}
        single = self.width == "single"
        bits = {
            EVEN: self.ties == "even",
            NO_AVG: "avg" not in self.pools,
            NO_MAX: "max" not in self.pools,
            MEAN_OF_POOLS: two and self.combine == "mean",
            GATE_TERMS: two and self.combine == "sum" and self.gate_place == "before_sum",
            SINGLE: single,
            HARD_CHANNEL: self.channel_gate == "hard_sigmoid",
            HARD_SPATIAL: self.spatial_gate == "hard_sigmoid",
        }
        activation = 0 if single else ALLOWED["act"].index(self.act)
        return sum(bit for bit, there in bits.items() if there) | activation << ACTIVATION

    def differing(self, other: "Switches", *gates: str) -> str:
        """The switches in which these gates differ from the other's, such as "act='silu'"; empty if none."""
        names = [name for gate in gates for name in OF_GATE[gate]]
        differ = [n for n in names if getattr(self, n) != getattr(other, n)]
        if "single" not in (self.width, other.width):  # other widths only change the shapes of the weights
            differ = [n for n in differ if n != "width"]
        return ", ".join(f"{n}={getattr(self, n)!r}" for n in differ)

    def hidden(self, channels: int, reduction: int) -> int:
        """Width of the hidden layer; for "single", that of the only layer.

        Raises:
            ValueError: the width is 0.
        """
        if isinstance(self.width, int):
            return self.width
        divisor = 16 if self.width == "sixteenth" else reduction
        hidden = {
            "floor": channels // divisor,
            "sixteenth": channels // divisor,
            "at_least_1": max(1, channels // divisor),
            "nearest": max(1, (2 * channels + divisor) // (2 * divisor)),
            "nearest_8": max(8, (channels + 4 * divisor) // (8 * divisor) * 8),
            "round": round(channels / divisor),
            "single": channels,
        }[self.width]
        if hidden == 0:
            raise ValueError(
                f"width {self.width!r} must give at least 1 hidden unit, "
                f"got channels // reduction = {channels} // {divisor} = 0; "
                f"reduction must be at most {channels}, or width 'at_least_1' or an integer"
            )
        return hidden

    def state(self) -> tuple[str, ...]:
        """Names of the module's state, as in STATE."""
        absent = {
            "ca.": not self.channel,
            "sa.": not self.spatial,
            "ca.fc2.": self.width == "single",
            "ca.fc1.bias": not self.bias,
            "ca.fc2.bias": not self.bias,
            "sa.conv1.bias": not self.spatial_bias,
            "sa.bn.": not self.norm,
        }
        return tuple(name for name in STATE if not any(name.startswith(part) for part, gone in absent.items() if gone))


def decode(code: int) -> Switches:
    """Switches of this code."""
    pools = ("avg",) * (not code & NO_AVG) + ("max",) * (not code & NO_MAX)
    gate = {False: "sigmoid", True: "hard_sigmoid"}
    return Switches(
        width="single" if code & SINGLE else "at_least_1",
        act=ALLOWED["act"][code >> ACTIVATION & 3],
        pools=pools,
        combine="mean" if code & MEAN_OF_POOLS else "sum",
        gate_place="before_sum" if code & GATE_TERMS else "after_sum",
        channel_gate=gate[bool(code & HARD_CHANNEL)],
        spatial_gate=gate[bool(code & HARD_SPATIAL)],
        ties="even" if code & EVEN else "first",
    )
