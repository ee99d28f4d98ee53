// The kinds of items of a call, and the order in which a dataflow launch hands them out. Pure functions.
//
// A phase has the items of one kind. An item of a group of images needs items of the same group in an earlier phase. A
// cycle of tickets has one group per phase, which is ``delay`` groups behind that of the first phase. So several groups
// are in progress, and x is still in L2 when the next phase reads it. An item needs only items of lower tickets,
// because an earlier phase comes first in a cycle and has no larger delay. Items that sum over the images come last.
#pragma once

#include <stdint.h>

#include "../../problem.h"

namespace cbam::cuda {

enum class Kind {
    none,
    // Forward.
    pool,
    hidden,
    gate,
    mlp,
    maps,
    apply,
    // Backward.
    products,
    map_gradients,
    hidden_backward,
    pools_backward,
    mlp_backward,
    gate_gradients,
    ws_gradients,
    input_gradient,
    parameters,
};

constexpr int kMostPhases = 6;

struct Phase {
    Kind kind;
    int items;      // per group
    int need;       // the earlier phase that must have ended for the same group; -1 for none
    int64_t delay;  // cycles behind the first phase
};

// The item of a ticket. If the ticket has none, kind is none.
struct Item {
    Kind kind;
    int phase;
    int64_t group;
    int index;  // in its group
};

// The counter that an item waits for, and the count that it must reach; 0 for no wait.
struct Need {
    int64_t counter;
    int64_t count;
};

struct Order {
    Phase phase[kMostPhases];
    int phases, cycle;  // cycle: tickets per cycle
    int64_t groups;
    int closing;     // the phase that must have ended for all groups before the last items; -1 for none
    int last_items;  // items after all cycles

    CBAM_ANYWHERE int64_t cycles() const { return groups + phase[phases - 1].delay; }
    CBAM_ANYWHERE int64_t tickets() const { return cycles() * cycle + last_items; }

    CBAM_ANYWHERE Item item(int64_t ticket) const {
        const int64_t now = ticket / cycle;
        if (now >= cycles()) return {Kind::parameters, phases, 0, int(ticket - cycles() * cycle)};
        int index = int(ticket % cycle), i = 0;
        while (index >= phase[i].items) index -= phase[i++].items;
        const int64_t group = now - phase[i].delay;
        return {group >= 0 && group < groups ? phase[i].kind : Kind::none, i, group, index};
    }

    // A counter per phase and group, and a last one for the closing phase of all groups.
    CBAM_ANYWHERE int64_t counters() const { return phases * groups + 1; }
    CBAM_ANYWHERE int64_t counter(int of_phase, int64_t group) const { return of_phase * groups + group; }
    CBAM_ANYWHERE Need need(const Item& item) const {
        if (item.phase == phases) return {counters() - 1, closing < 0 ? 0 : phase[closing].items * groups};
        const int before = phase[item.phase].need;
        if (before < 0) return {0, 0};
        return {counter(before, item.group), phase[before].items};
    }

    // ``behind``: the delay from the previous phase, relative to the other delays (see spread).
    void add(Kind kind, int64_t items, int need, int behind) {
        const int64_t before = phases ? phase[phases - 1].delay : 0;
        phase[phases++] = {kind, int(items), need, before + behind};
        cycle += int(items);
    }
    // Scales the delays so that the last phase is ``window`` groups behind the first.
    void spread(int64_t window) {
        const int64_t all = phase[phases - 1].delay;
        for (int i = 0; i < phases && all; ++i) phase[i].delay = phase[i].delay * window / all;
    }
};

}  // namespace cbam::cuda
