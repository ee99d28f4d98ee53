"""Valid arguments of functional.cbam."""

import torch

OK = {
    "x": torch.zeros(2, 8, 5, 5),
    "w1": torch.zeros(4, 8, 1, 1),
    "w2": torch.zeros(8, 4, 1, 1),
    "ws": torch.zeros(1, 2, 7, 7),
    "b1": torch.zeros(4),
    "b2": torch.zeros(8),
    "bs": torch.zeros(1),
    "residual": torch.zeros(2, 8, 5, 5),
}
