"""Speed on a GPU: the launcher of the CUDA kernels, and their emulator."""
