// What kernel-builder imports in order to load the operators: a Python module with nothing in it.
#include "registration.h"

REGISTER_EXTENSION(TORCH_EXTENSION_NAME)
