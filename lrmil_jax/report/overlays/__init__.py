"""Predictions in the files that other programs lay over a slide; `registry` has them by name."""
