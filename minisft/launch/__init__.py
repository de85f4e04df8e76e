"""What stands between an operation and its kernel: sizes, blocks, buffers; one file a kernel."""
