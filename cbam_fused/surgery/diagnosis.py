"""Diagnoses of the gates of a CBAM, as sentences."""

from torch import Tensor

TOLERANCE = 0.01  # a gate that varies by less has no effect on a network
SATURATED = 0.99  # fraction of the values within TOLERANCE of 0 or 1

DEAD = (
    "it no longer depends on the input: hidden units of its MLP that are below 0 for every input learn nothing any "
    "more. Train anew with smaller steps (a lower learning rate for CBAM, a longer warm-up, clipped gradients)"
)
FIXED = "it is a fixed scale, whatever the image shows: smaller steps keep its hidden units alive"
FLAT = "it scales all of them alike, so it chooses none: train longer, or with a larger learning rate for CBAM"
IDLE = (
    "it attends to nothing: it has not learned yet (train longer), or its hidden units died (train anew with smaller "
    "steps)"
)
CLOSED = (
    "it hardly learns, as the slope of the sigmoid is near 0 there: smaller steps or more weight decay keep it open"
)


def gate_problems(channel: Tensor | None, spatial: Tensor | None) -> list[str]:
    """A sentence for each fault of gates of shape (N, C, 1, 1) and (N, 1, H, W).

    A gate is constant if its values differ by at most TOLERANCE: over channels or positions (within each image), or
    over images (at each channel or position), of which it needs at least two. It is saturated if nearly all of its
    values are within TOLERANCE of 0 or 1.
    """
    problems = []
    for name, places, gate in (("channel", "channels", channel), ("spatial", "positions", spatial)):
        if gate is not None and gate.numel():
            problems += [f"{name} gate: {text}" for text in _problems(name, places, gate.detach().double().flatten(1))]
    return problems


def _problems(name: str, places: str, gate: Tensor) -> list[str]:
    """The faults of a gate (N, K)."""
    if not gate.isfinite().all():
        return ["NaN or infinite: the weights or the input have such values"]
    flat = gate.shape[1] > 1 and _range(gate, 1) <= TOLERANCE
    fixed = gate.shape[0] > 1 and _range(gate, 0) <= TOLERANCE
    value = f"about {gate.mean():.2f}"
    problems = []
    if flat and fixed:
        # Without biases a dead MLP gives sigmoid(0); an untrained gate may have any value.
        dead = name == "channel" and abs(gate.mean() - 0.5) <= TOLERANCE
        problems.append(f"constant over {places} and over images, {value} everywhere; {DEAD if dead else IDLE}")
    elif flat:
        problems.append(f"constant over {places}, {value} on average; {FLAT}")
    elif fixed:
        problems.append(f"constant over images; {FIXED}")
    closed = ((gate <= TOLERANCE) | ((gate - 1).abs() <= TOLERANCE)).double().mean()
    if closed >= SATURATED:
        problems.append(f"saturated, {closed:.0%} of its values within {TOLERANCE} of 0 or 1; {CLOSED}")
    return problems


def _range(gate: Tensor, dim: int) -> float:
    return float((gate.amax(dim) - gate.amin(dim)).max())
