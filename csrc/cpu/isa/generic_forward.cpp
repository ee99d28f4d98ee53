#define CBAM_ISA generic
#include "forward_entry.h"
