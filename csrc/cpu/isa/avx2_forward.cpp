#define CBAM_ISA avx2
#include "forward_entry.h"
