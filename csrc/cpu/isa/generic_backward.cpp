#define CBAM_ISA generic
#include "backward_entry.h"
