"""Metrics of a trained model, baselines, and the reports, plots and model cards of a run."""
