#define CBAM_ISA avx512
#include "entry.h"
