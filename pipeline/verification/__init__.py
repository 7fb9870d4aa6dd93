"""Forecasts against the observations that arrived later: sums, scores from sums, and the report."""
