"""The training loop, optimizers, and how a run is configured."""
