"""Forecasts without training, under the same contract as a network."""
