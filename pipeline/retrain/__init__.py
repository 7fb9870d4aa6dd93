"""Retraining: a challenger from new archive days, compared with the model in use, promoted only if it is better."""
