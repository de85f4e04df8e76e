"""Arrays of NumPy or CuPy, random numbers, and fast implementations for CPU and GPU."""
