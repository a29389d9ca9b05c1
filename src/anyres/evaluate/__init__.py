"""Published protocols, run on a predictor and a dataset, and their reports."""
