"""Settings of places and warnings: names, the GeoJSON file of areas, and what a warning is raised for."""

import json
import math
import re
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from pipeline.source_settings import Frozen

MAX_AREAS_BYTES = 5_000_000
MAX_AREAS = 1000
CLEAR_SHARE = 0.7

# longitude, latitude; the rings of all polygons of an area, outer ones and holes
Ring = tuple[tuple[float, float], ...]
Rings = tuple[Ring, ...]


class WarningRule(Frozen):
    """A warning when the rain forecast for ``place`` within ``minutes`` is ``amount_mm`` or more.

    It stays until the amount is below ``clear_mm`` in two cycles in a row. ``webhook`` is an address that gets each
    message as JSON.
    """

    place: str
    amount_mm: float = Field(gt=0, le=2000, allow_inf_nan=False)
    minutes: Literal[30, 60, 120]
    clear_mm: float = Field(ge=0, allow_inf_nan=False)
    webhook: SecretStr | None = None

    @model_validator(mode="before")
    @classmethod
    def _clears_lower(cls, data: Any) -> Any:
        amount = data.get("amount_mm") if isinstance(data, dict) else None
        return {"clear_mm": round(CLEAR_SHARE * amount, 3), **data} if isinstance(amount, int | float) else data

    @field_validator("clear_mm")
    @classmethod
    def _below_amount(cls, clear_mm: float, info: Any) -> float:
        amount = info.data.get("amount_mm", math.inf)
        if clear_mm >= amount:
            raise ValueError(f"must be less than amount_mm = {amount:g}, or the warning would come and go")
        return clear_mm

    @field_validator("webhook")
    @classmethod
    def _is_address(cls, webhook: SecretStr | None) -> SecretStr | None:
        text = webhook.get_secret_value() if webhook else "http://none"
        try:
            parts = urlsplit(text)
            fits = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0 and "@" not in parts.netloc
        except ValueError:
            fits = False
        if not fits or not re.fullmatch(r"[!-~]+", text):
            raise ValueError("expected the address of a webhook, http(s)://HOST/..., without user and password")
        return webhook

    @property
    def key(self) -> str:
        """What tells it from the other warnings of a domain."""
        return f"{self.place}/{self.minutes}/{self.amount_mm:g}"


def check_name(name: Any) -> str:
    """A name of a place, which stands in files, pages and messages.

    Raises:
        ValueError: it has other characters, or is too long.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[^\W_]([\w .'()-]{0,58}[\w.)'-])?", name):
        shown = repr(name)[:80]
        raise ValueError(
            f"{shown}: the name of a place is letters, digits, space and . ' ( ) - _ (at most 60), and begins with a "
            "letter or digit"
        )
    return name


def read_areas(path: Path) -> dict[str, Rings]:
    """The areas of a GeoJSON file: features with a property ``name`` and a Polygon or MultiPolygon in WGS84.

    Raises:
        ValueError: it cannot be read, or is no such file; the message names the file and the feature.
    """
    try:
        size = path.stat().st_size
        if size > MAX_AREAS_BYTES:
            raise ValueError(f"it has {size} bytes, at most {MAX_AREAS_BYTES} are read")
        data = json.loads(path.read_text(encoding="utf-8"))
        features = data.get("features") if isinstance(data, dict) else None
        if not isinstance(features, list) or data.get("type") != "FeatureCollection":
            raise ValueError("expected a GeoJSON FeatureCollection")
        if len(features) > MAX_AREAS:
            raise ValueError(f"it has {len(features)} features, at most {MAX_AREAS} are read")
        areas: dict[str, Rings] = {}
        for n, feature in enumerate(features):
            name, rings = _area(feature, n)
            if name in areas:
                raise ValueError(f"two features have the name {name!r}")
            areas[name] = rings
    except OSError as err:
        raise ValueError(f"{path}: cannot be read: {err.strerror or err}") from err
    except RecursionError as err:
        raise ValueError(f"{path}: nested too deeply") from err
    except ValueError as err:  # of JSON and UTF-8 too
        raise ValueError(f"{path}: {err}") from err
    return areas


def _area(feature: Any, n: int) -> tuple[str, Rings]:
    properties = feature.get("properties") if isinstance(feature, dict) else None
    if not isinstance(properties, dict) or "name" not in properties:
        raise ValueError(f"feature {n} has no property 'name'")
    name = check_name(properties["name"])
    geometry = feature.get("geometry")
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind not in ("Polygon", "MultiPolygon"):
        raise ValueError(f"{name}: expected a Polygon or MultiPolygon, found {str(kind)[:40]!r}")
    coordinates = geometry.get("coordinates")
    polygons = [coordinates] if kind == "Polygon" else coordinates
    if not isinstance(polygons, list) or not polygons or not all(isinstance(p, list) and p for p in polygons):
        raise ValueError(f"{name}: has no rings")
    return name, tuple(_ring(name, ring) for polygon in polygons for ring in polygon)


def _ring(name: str, ring: Any) -> Ring:
    if not isinstance(ring, list) or len(ring) < 4 or ring[0] != ring[-1]:
        raise ValueError(f"{name}: a ring is at least four positions, the last equal to the first")
    for position in ring:
        numbers = isinstance(position, list) and len(position) >= 2 and all(type(v) in (int, float) for v in position)
        if not numbers or not (-360 <= position[0] <= 360 and -90 <= position[1] <= 90):
            raise ValueError(f"{name}: expected positions [longitude, latitude] in degrees, found {str(position)[:60]}")
    return tuple((float(position[0]), float(position[1])) for position in ring)
