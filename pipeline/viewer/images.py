"""Frames as small greyscale PNGs whose values a browser gets back exactly, and the classes that colour them."""

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.domain import Domain
from pipeline.frames.grayscale import Pixels, pixel_of_rate
from pipeline.verification.figures import HEAVIEST_COLOUR, RATE_COLOURS, RATE_LEVELS
from pipeline.viewer.mercator import MercatorImage

# of an image's values; pixel 255 of a frame is shown as 254, the next lower rate
NOTHING_SEEN, HIGHEST = 255, 254
PROBABILITY_LEVELS = (10, 25, 50, 75, 90)
PROBABILITY_COLOURS = ("#fdd0a2", "#fdae6b", "#f16913", "#b63c02", "#5f1f02")


def png(image: MercatorImage, field: Pixels) -> dict[str, Any]:
    """A field of the domain on the map, as a data URI, with the sum that tells whether a browser decoded it truly."""
    values = image.of(field, NOTHING_SEEN)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format="png", optimize=True)
    return {
        "png": "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode(),
        "sum": int(values.sum(dtype=np.int64)),
    }


def seen(pixels: Pixels, covered: NDArray[np.bool_]) -> Pixels:
    """Image values of pixels, 255 where there is no coverage."""
    return np.where(covered, np.minimum(pixels, HIGHEST), NOTHING_SEEN).astype(np.uint8)


def rate_classes(domain: Domain, floor_mm_h: float) -> list[dict[str, Any]]:
    """Classes of rain rate by their first pixel: an event of a threshold is its pixel or more, everywhere."""
    first = max(1, pixel_of_rate(floor_mm_h, domain.zr, domain.scale))
    return [
        {"from": level, "value": max(first, pixel_of_rate(level, domain.zr, domain.scale)), "colour": colour}
        for level, colour in zip(RATE_LEVELS, (*RATE_COLOURS, HEAVIEST_COLOUR), strict=True)
    ]


def probability_classes() -> list[dict[str, Any]]:
    """Classes of probability, percent."""
    return [
        {"from": level, "value": level, "colour": colour}
        for level, colour in zip(PROBABILITY_LEVELS, PROBABILITY_COLOURS, strict=True)
    ]
