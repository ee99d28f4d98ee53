#define CBAM_ISA avx2
#include "entry.h"
