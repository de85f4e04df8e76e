"""From files to a run folder: fine-tuning, pretraining, several seeds, learning curves."""
