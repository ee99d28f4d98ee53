#define CBAM_ISA avx512
#include "backward_entry.h"
