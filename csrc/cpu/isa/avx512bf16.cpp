#define CBAM_ISA avx512bf16
#include "entry.h"
