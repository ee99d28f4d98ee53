"""The operators' namespace; csrc/binding/operators.h has the same one.

Hugging Face's kernel-builder puts a file of its own in the place of this one, with a name for ``ops`` that no other
version of the package has, and there the import of that file has loaded the binary.
"""

import torch

ops = torch.ops.cbam_fused
