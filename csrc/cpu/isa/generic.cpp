#define CBAM_ISA generic
#include "entry.h"
