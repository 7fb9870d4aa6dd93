"""IRIS/Sigmet files, read by xradar with what xradar 0.12.0 gets wrong put right at this border.

It writes the first moment of a sweep that it loads, with the angles, one ray too early, so that either this moment or
all the others lie one azimuth off; and it takes southern latitudes, which the format counts from 0 to 360, from the
longitude. What is put in its place here gives the same once xradar is mended; a test tells when that is so.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any


@contextmanager
def mended_reader() -> Iterator[None]:
    """While this lasts, xradar opens IRIS files with the class below."""
    from xradar.io.backends import iris

    of_library = iris.IrisRawFile
    iris.IrisRawFile = _raw_file()
    try:
        yield
    finally:
        iris.IrisRawFile = of_library


def announced_sweeps(path: Path) -> int:
    """How many sweeps the header says were measured."""
    with _raw_file()(str(path), loaddata=False) as file:
        return int(file.ingest_header["ingest_configuration"]["number_sweeps_completed"])


@cache
def _raw_file() -> Any:
    """A subclass of xradar's file; made late, since xradar takes a second to import."""
    from xradar.io.backends.iris import IrisRawFile

    class RawFile(IrisRawFile):  # type: ignore[misc]
        def _get_ray_record_offsets_and_data(self, sweep_number: int, raw_data: Any, idx: int | None = None) -> None:
            """Every ray of the moment ``idx`` in its own row of ``raw_data``: (rays, 6 + gates), zeros where none."""
            super()._get_ray_record_offsets_and_data(sweep_number, raw_data, idx=None)
            if idx is None:
                return
            sweep = self.data[sweep_number]
            offsets = sweep["ray_offsets"][self.data_types_dict[idx]["name"]]
            for row, (record, offset) in enumerate(offsets):
                if self.rh.recnum != record:
                    self.init_record(record)
                self.rh.pos = offset
                self.get_ray(raw_data[row])

        def get_data_headers(self) -> None:
            """As the library; of a file that is cut off, those of the sweeps before the last that was begun."""
            try:
                super().get_data_headers()
            except EOFError:
                if self._data:
                    self._data.popitem()

        @property
        def site_coords(self) -> tuple[float, float, float]:
            """Longitude and latitude in degrees, -180 to 180, and metres above sea level."""
            about = self.ingest_header["ingest_configuration"]
            longitude, latitude = (
                (about[key] + 180.0) % 360.0 - 180.0 for key in ("longitude_radar", "latitude_radar")
            )
            return longitude, latitude, about["altitude_radar"] / 100.0

    return RawFile
