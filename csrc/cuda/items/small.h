// Launches of the items that do not read x, for the phases driver.
#pragma once

#include "order.h"
#include "work.h"

namespace cbam::cuda {

template <class F> void launch_small(Launcher&, const Forward<F>&, const Order&, const Phase&);

// Launches the items of ``phase`` and of ``other``, unless it is null, in one launch.
template <class F>
void launch_small(Launcher&, const Backward<F>&, const Order&, const Phase& phase, const Phase* other);

}  // namespace cbam::cuda
