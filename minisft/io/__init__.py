"""Files and folders: checkpoints, model folders, run folders, the state of a training run."""
