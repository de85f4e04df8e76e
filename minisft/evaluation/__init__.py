"""Figures of a trained model, and the reports, pictures and cards that tell them."""
