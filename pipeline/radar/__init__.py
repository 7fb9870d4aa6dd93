"""Volume bytes become one field of dBZ on the domain's grid: decode, completeness, quality, gridding, mosaic."""
