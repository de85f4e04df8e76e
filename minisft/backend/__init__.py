"""What computes: arrays of NumPy or CuPy, random numbers, the CPU and the GPU."""
