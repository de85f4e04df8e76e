"""A Transformer framework to learn from and to keep using."""
