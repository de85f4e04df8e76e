"""Memory and operations of a training step, computed before it runs."""
