"""The staged schedule for every GPU that Triton compiles for. Imported when a tensor first needs it.

forward.py and backward.py have the passes over x; mlp_forward.py, convolution_backward.py, mlp_backward.py and
gradients.py the small kernels between and after them; common.py and activations.py the functions that kernels share.
launch.py has a function for each kernel, operators.py the raw operators. call.py has the sizes of a call, tiles.py the
sizes of tiles, gpu.py properties of the GPU.
"""
