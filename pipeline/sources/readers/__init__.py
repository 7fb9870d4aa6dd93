"""Readers of gridded composites: one format per module, one line here.

A reader is a module with ``TIME_OF_NAME`` (pattern and time of a file name) and ``read(path, limit)``.
"""

from pipeline.sources.readers import bom_rainfields, fmi_pgm, knmi_hdf5, mch_gif, mrms_grib2, odim_comp
from pipeline.sources.readers.contract import Reader

READERS: dict[str, Reader] = {
    "bom_rainfields": bom_rainfields.READER,
    "fmi_pgm": fmi_pgm.READER,
    "knmi_hdf5": knmi_hdf5.READER,
    "mch_gif": mch_gif.READER,
    "mrms_grib2": mrms_grib2.READER,
    "odim_comp": odim_comp.READER,
}
