#define CBAM_ISA avx512
#include "forward_entry.h"
