"""Readers of gridded composites: one format per module, one line here.

Each module offers a ``READER``: how a file name gives its time, and how a file is decoded (``contract.Reader``).
"""

from pipeline.sources.readers import bom_rainfields, fmi_pgm, knmi_hdf5, mch_gif, mrms_grib2, odim_comp
from pipeline.sources.readers.contract import Reader, Reading

__all__ = ["READERS", "Reader", "Reading"]

READERS: dict[str, Reader] = {
    "bom_rainfields": bom_rainfields.READER,
    "fmi_pgm": fmi_pgm.READER,
    "knmi_hdf5": knmi_hdf5.READER,
    "mch_gif": mch_gif.READER,
    "mrms_grib2": mrms_grib2.READER,
    "odim_comp": odim_comp.READER,
}
