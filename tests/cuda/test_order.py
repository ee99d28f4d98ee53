"""The order in which the dataflow driver hands out its items: a pure function, checked for many shapes."""

from itertools import product

import pytest
from emulation import build, driver

pytestmark = pytest.mark.skipif(bool(build.obstacle), reason=build.obstacle)

SHAPES = [
    (1, 64, 56, 56),
    (5, 64, 56, 56),
    (3, 512, 7, 7),
    (7, 520, 7, 7),
    (4, 2048, 7, 7),
    (9, 1, 1, 1),
    (2, 16, 1, 300),
]
# w1, ws, and whether the gradients by the gates are given.
PARTS = [(True, True, False), (True, False, False), (False, True, False), (True, True, True), (False, True, True)]


def _order(shape, parts, channels_last, forward, vector, window):
    module = driver.module("plain")
    p = module.Problem()
    p.dtype = module.Dtype.f32
    p.channels_last = channels_last
    p.N, p.C, p.H, p.W = shape
    p.R, p.k = max(1, p.C // 16), 7
    has_w1, has_ws, p.given = parts
    p.channel, p.spatial = has_w1, has_ws
    p.x = p.y = 1 << 20
    for name, has in {"w1": has_w1, "w2": has_w1, "ws": has_ws}.items():
        if has:
            setattr(p, name, 1 << 20)
            setattr(p, f"d{name}", 1 << 20)
    return module.order_of(p, forward, vector, window)


@pytest.mark.parametrize("window", [0, 1, 2, 5, 40])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_items_need_lower_tickets_alone(shape, channels_last, window):
    for forward, parts, vector in product([True, False], PARTS, [1, 4]):
        order = _order(shape, parts, channels_last, forward, vector, window)
        counters = [0] * order.counters()
        seen, begun = set(), 0
        for ticket in range(order.tickets()):
            item = order.item(ticket)
            if not item.kind:
                continue
            # All items of lower tickets are over, and no other.
            counter, count = order.need(item)
            assert counters[counter] >= count
            key = item.phase, item.group, item.index
            assert key not in seen
            seen.add(key)
            if item.phase == 0:
                begun = max(begun, item.group)
            # What an image's first item has read, its last reads again before many others have begun.
            assert item.phase == order.phases or begun <= item.group + max(window, 1)
            if item.phase < order.phases:
                counters[order.counter(item.phase, item.group)] += 1
            if item.phase == order.closing:
                counters[-1] += 1
        expected = {
            (phase, group, index)
            for phase in range(order.phases)
            for group in range(order.groups)
            for index in range(order.items(phase))
        }
        assert seen == expected | {(order.phases, 0, index) for index in range(order.last_items)}
        for phase, group in product(range(order.phases), range(order.groups)):
            assert counters[order.counter(phase, group)] == order.items(phase)
        if order.closing >= 0:
            assert counters[-1] == order.items(order.closing) * order.groups


def test_an_item_needs_all_of_the_phase_before_it():
    """One block alone that skips a ticket lets the next phase of its group wait for ever."""
    order = _order((2, 64, 8, 8), (True, True, False), False, True, 4, 1)
    for phase, group in product(range(1, order.phases), range(order.groups)):
        (needs,) = {
            order.need(item)
            for item in map(order.item, range(order.tickets()))
            if (item.phase, item.group) == (phase, group)
        }
        assert needs == (order.counter(phase - 1, group), order.items(phase - 1))
