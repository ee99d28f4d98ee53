// The kinds of items that a call consists of, and the order in which a persistent launch hands them out. Pure functions
// of host and device.
//
// Items of a kind are a phase. Those of one group of images need those of the same group of another phase, which
// stands before theirs. In each cycle of tickets every phase has one group, a phase by its delay behind the first: so
// several groups are under way, and what one phase has read is in L2 when the next one reads it. An item needs only
// items of lower tickets, since a phase stands before those that need it, and has no larger delay. After all cycles
// come the items that sum over the images.
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
    kernel_gradients,
    input_gradient,
    parameters,
};

constexpr int kMostPhases = 6;

struct Phase {
    Kind kind;
    int items;      // of a group
    int need;       // the phase of the same group that is over before; -1 for none
    int64_t delay;  // cycles behind the first phase
};

// The item of a ticket; of kind none where the ticket has none.
struct Item {
    Kind kind;
    int phase;
    int64_t group;
    int index;  // in its group
};

// What an item waits for: a counter, and what it counts up to; 0 for nothing.
struct Need {
    int64_t counter;
    int64_t count;
};

struct Order {
    Phase phase[kMostPhases];
    int phases, cycle;  // cycle: tickets of one
    int64_t groups;
    int closing;     // the phase whose items, of all groups, the last ones need; -1 for none
    int last_items;  // which come after all cycles

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

    // One for each phase and group, and the last for the closing phase of all groups.
    CBAM_ANYWHERE int64_t counters() const { return phases * groups + 1; }
    CBAM_ANYWHERE int64_t counter(int of_phase, int64_t group) const { return of_phase * groups + group; }
    CBAM_ANYWHERE Need need(const Item& item) const {
        if (item.phase == phases) return {counters() - 1, closing < 0 ? 0 : phase[closing].items * groups};
        const int before = phase[item.phase].need;
        if (before < 0) return {0, 0};
        return {counter(before, item.group), phase[before].items};
    }

    // ``behind``: how far behind the phase before it, in proportion to the others.
    void add(Kind kind, int64_t items, int need, int behind) {
        const int64_t before = phases ? phase[phases - 1].delay : 0;
        phase[phases++] = {kind, int(items), need, before + behind};
        cycle += int(items);
    }
    // Makes the last phase end this many groups behind the first.
    void spread(int64_t window) {
        const int64_t all = phase[phases - 1].delay;
        for (int i = 0; i < phases && all; ++i) phase[i].delay = phase[i].delay * window / all;
    }
};

}  // namespace cbam::cuda
