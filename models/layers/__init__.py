"""One recurrent cell or operator per module."""
