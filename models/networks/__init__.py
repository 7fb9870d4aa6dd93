"""Network architectures; ``models.zoo`` names them."""
