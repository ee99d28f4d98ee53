#define CBAM_ISA avx2
#include "backward_entry.h"
