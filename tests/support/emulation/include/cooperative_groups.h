// Thread block clusters.
#pragma once

#include "cuda_runtime.h"

namespace emulation {
void sync_cluster(Place);
unsigned cluster_rank();
unsigned cluster_size();
void* map_shared(void* address, unsigned rank);
}  // namespace emulation

namespace cooperative_groups {

struct cluster_group {
    void sync(emulation::Place place = emulation::Place::current()) const { emulation::sync_cluster(place); }
    unsigned block_rank() const { return emulation::cluster_rank(); }
    unsigned num_blocks() const { return emulation::cluster_size(); }
    template <class T> T* map_shared_rank(T* address, unsigned rank) const {
        return static_cast<T*>(emulation::map_shared((void*)address, rank));
    }
};

inline cluster_group this_cluster() { return {}; }

}  // namespace cooperative_groups
