"""The fast path of CBAM.forward: the weights of an unchanged module.

No layer must be called then, and only three weights matter. The look-ups here run at every call, and between the layers
of a network each takes several times as long as in a loop. So all of them are in one function, which bypasses the
Python function nn.Module.__getattr__.
"""

from operator import itemgetter

from torch import Tensor, nn

from . import reference
from .hooks import GEOMETRY

_geometry = itemgetter(*GEOMETRY)


class AsBuilt:
    """A snapshot that detects changes of a CBAM's modules in minimal time; not used in compiled code.

    A forward set on an instance is one more attribute.
    """

    def __init__(self, cbam: reference.CBAM):
        masks = (cbam.ca, cbam.sa)
        convolutions = (cbam.ca.fc1, cbam.ca.fc2, cbam.sa.conv1)
        self.channel, self.spatial = type(cbam.ca), type(cbam.sa)
        self.switches = cbam.switches
        self.sizes = tuple(len(m.__dict__) for m in (*masks, *convolutions))
        self.shape = cbam.sa.conv1.weight.shape
        self.geometries = tuple(_geometry(m.__dict__) for m in convolutions)

    def weights(self, cbam: nn.Module) -> tuple[Tensor, Tensor, Tensor] | None:
        """w1, w2, ws; None if anything changed."""
        modules = cbam._modules
        ca, sa = modules.get("ca"), modules.get("sa")
        if type(ca) is not self.channel or type(sa) is not self.spatial:
            return None
        a, b = ca.__dict__, sa.__dict__
        of_ca, of_sa = a["_modules"], b["_modules"]
        fc1, fc2, conv1 = of_ca.get("fc1"), of_ca.get("fc2"), of_sa.get("conv1")
        if not (type(fc1) is type(fc2) is type(conv1) is nn.Conv2d and of_sa.get("bn") is None):
            return None
        c, d, e = fc1.__dict__, fc2.__dict__, conv1.__dict__
        of_1, of_2, of_s = c["_parameters"], d["_parameters"], e["_parameters"]
        w1, w2, ws = of_1.get("weight"), of_2.get("weight"), of_s.get("weight")
        as_built = (
            (len(a), len(b), len(c), len(d), len(e)) == self.sizes
            and (_geometry(c), _geometry(d), _geometry(e)) == self.geometries
            and a["switches"] is b["switches"] is cbam.__dict__["switches"] is self.switches
            and of_1.get("bias") is of_2.get("bias") is of_s.get("bias") is None
            and w1 is not None
            and w2 is not None
            and ws is not None
            and ws.shape == self.shape
        )
        if not as_built:
            return None
        for m in (a, b, c, d, e):
            if m["_forward_hooks"] or m["_forward_pre_hooks"] or m["_backward_hooks"] or m["_backward_pre_hooks"]:
                return None
        return w1, w2, ws
