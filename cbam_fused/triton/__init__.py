"""The staged schedule for any GPU that Triton compiles for; imported only when a tensor first needs it.

forward.py and backward.py have the passes over x; mlp_forward.py, convolution_backward.py, mlp_backward.py and
gradients.py the small kernels between and after them; common.py and activations.py what kernels share. launch.py has
one function a kernel, call.py the sizes of a call, tiles.py those of tiles, gpu.py facts of the GPU, operators.py the
raw operators.
"""
