"""The page's folder: fixed files, coasts, the frames of the newest forecasts, and last what names the newest.

Data travel in scripts that call one function, since a page that is opened from disk may load nothing else.
"""

import json
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from pipeline import catalog as tables
from pipeline import times
from pipeline.catalog import Catalog, Row
from pipeline.domain import Domain
from pipeline.errors import NotForecast, SettingsError, StoreUnavailable
from pipeline.promotion import SHADOW
from pipeline.storage import Store
from pipeline.viewer import coast
from pipeline.viewer.forecast import read_forecast
from pipeline.viewer.mercator import MercatorImage

HERE = Path(__file__).parent
OURS = ("index.html", "viewer.css", "viewer.js", "series.js", "frames.js", "words.js")
LIBRARY = ("leaflet.js", "leaflet.css", "leaflet.LICENSE")
DATA_FILE = re.compile(r"frames-\d{8}T\d{6}Z-(issued|hindcast)-r\d+\.js")
KEPT = 3
MARGIN = 1.0  # of the extent of the domain on each side: what a wide screen shows around it


@dataclass(frozen=True)
class ViewWritten:
    """The page, the file of its newest forecast, and which one that is."""

    page: Path
    data: Path
    reference_time: str
    kind: str
    method: str


def write_page(
    domain: Domain,
    store: Store,
    catalog: Catalog,
    reference_time: datetime | None,
    out: Path | None,
    only_if_new: bool = False,
) -> ViewWritten:
    """Write or renew the page of a domain: the forecast of ``reference_time``, or the newest.

    Args:
        only_if_new: a page that shows this forecast already is left as it is.

    Raises:
        NotForecast: there is no such forecast.
        SettingsError: the map library was not installed, or the archive was made with other settings.
        StoreUnavailable: the product is damaged, or the page cannot be written.
    """
    row = newest_forecast(domain, catalog, reference_time)
    folder = out or store.view(domain.name)
    time = tables.from_seconds(row["reference_time"])
    data = folder / f"frames-{times.compact(time)}-{row['kind']}-r{row['revision']}.js"
    written = ViewWritten(folder / "index.html", data, times.iso(time), row["kind"], row["method"])
    latest = script("nowcastLatest", {"file": data.name})
    if only_if_new and _holds(store, folder / "latest.js", latest) and store.has(data):
        return written
    library = _library(HERE / "vendor")
    path = store.root / row["path"]
    if not store.has(path):
        raise StoreUnavailable(f"the product {path} was published but is lost; the command that made it makes it again")
    content, image = read_forecast(domain, store, path)
    for name in OURS:
        _publish(store, folder / name, (HERE / "static" / name).read_bytes())
    for name in LIBRARY:
        _publish(store, folder / name, library[name])
    _publish(store, folder / "coast.js", script("nowcastCoast", _coast(library[coast.WORLD.name], image)))
    _publish(store, data, script("nowcastData", {"file": data.name, **content}))
    _publish(store, folder / "latest.js", latest)
    _remove_old(store, folder, data)
    return written


def newest_forecast(domain: Domain, catalog: Catalog, reference_time: datetime | None) -> Row:
    """The newest published forecast, or that of ``reference_time``; of one time the issued before the hindcast.

    What a challenger forecasts beside the live one is shown to nobody.

    Raises:
        NotForecast: there is none.
    """
    c = tables.cycles.c
    query = sa.select(tables.cycles).where(c.domain == domain.name, c.state == "published", c.kind != SHADOW)
    if reference_time is not None:
        query = query.where(c.reference_time == times.seconds(reference_time))
    order = (c.reference_time.desc(), (c.kind == "issued").desc(), c.revision.desc())
    rows = catalog.read(query.order_by(*order).limit(1))
    if not rows:
        at = "" if reference_time is None else f" from {times.iso(reference_time)}"
        raise NotForecast(f"no published forecast of {domain.name}{at}; `nowcast run {domain.name}` makes one")
    return rows[0]


def script(function: str, value: Any) -> bytes:
    """JSON in ASCII as the argument of a global function, such that no text in it can end the script or its line."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    # in JSON these stand in strings only
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return f"{function}({text});\n".encode("ascii")


def _library(vendor: Path) -> dict[str, bytes]:
    try:
        return {name: (vendor / name).read_bytes() for name in (*LIBRARY, coast.WORLD.name)}
    except FileNotFoundError as err:
        raise SettingsError(
            f"the map library is not installed ({err.filename} is missing); `make viewer` does it"
        ) from err


def _coast(world: bytes, image: MercatorImage) -> dict[str, Any]:
    """Lines of the domain's surroundings, [latitude, longitude] pairs as the map library takes them."""
    wide, high = (image.east - image.west) * MARGIN, (image.north - image.south) * MARGIN
    window = (image.west - wide, image.east + wide, image.south - high, image.north + high)
    found = coast.lines_within(json.loads(world), window)
    return {
        "window": [[window[2], window[0]], [window[3], window[1]]],
        **{kind: [line[:, ::-1].round(coast.DIGITS).tolist() for line in lines] for kind, lines in found.items()},
    }


def _publish(store: Store, path: Path, content: bytes) -> None:
    """Write a file unless it has this content already; a copy of the folder elsewhere then has less to move."""
    if _holds(store, path, content):
        return
    with store.publish(path) as temporary:
        temporary.write_bytes(content)


def _holds(store: Store, path: Path, content: bytes) -> bool:
    return store.has(path) and store.read(path) == content


def _remove_old(store: Store, folder: Path, newest: Path) -> None:
    """Keep the newest files of frames, which open pages may still read; nothing of another name is touched."""
    ours = [path for path in store.glob(folder, "*") if DATA_FILE.fullmatch(path.name) and path != newest]
    for path in ours[: max(0, len(ours) - (KEPT - 1))]:
        store.remove(path)
