"""Experiments of the literature, one command each."""
