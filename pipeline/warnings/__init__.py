"""What the forecast means for places: rain at points and over areas, and warnings of much of it."""
