#define CBAM_ISA avx512bf16
#define CBAM_BF16_ONLY
#include "backward_entry.h"
