"""Parameters, layers and Transformer blocks."""
