"""The operators' namespace; csrc/binding/operators.h has the same one.

Hugging Face's kernel-builder replaces this file. Its file loads the binary and sets ``ops`` to a namespace that is
unique to a version of the package.
"""

import torch

ops = torch.ops.cbam_fused
