"""The staged schedule for any GPU that Triton compiles for; imported only when a tensor first needs it.

common.py holds what the kernels share, forward.py and backward.py the passes over x, gate.py and gradients.py the small
kernels between and after them, tiles.py the sizes, launch.py one function a kernel, operators.py the raw operators.
"""
