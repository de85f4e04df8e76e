"""What memory and how many operations a training step takes, said beforehand."""
