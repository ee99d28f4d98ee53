"""CUDA kernels on the CPU: g++ compiles their sources, and every CUDA thread is a fiber."""
