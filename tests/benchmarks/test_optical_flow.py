"""Motion and extrapolation against pysteps (Lucas-Kanade, semi-Lagrangian), alternating in one process, one thread.

make benchmarks, or: python -m pytest tests/benchmarks/test_optical_flow.py -s
"""

import contextlib
import io
import statistics
import time

import numpy as np
import pytest
import torch

from models.baselines.motion import estimate_motion
from models.baselines.optical_flow import extrapolate
from pipeline.domain import ZR, Scale
from pipeline.frames.grayscale import make_frame, pixel_of_rate
from pipeline.sources.readers import READERS
from tests.conftest import brisbane_domain

LEADS = 12
# folder, reader, 512 x 512 window, first and last reference frame, step
SETS = {
    "brisbane": ("bom_66_prcp-c10_20201031", "bom_rainfields", np.s_[:512, :512], range(20, 80, 6)),
    "finland": ("fmi_pgm_20160928", "fmi_pgm", np.s_[500:1012, 100:612], range(5, 28, 3)),
}


def frames(sample_data, folder, reader, window) -> tuple[np.ndarray, np.ndarray]:
    domain = brisbane_domain("x", grid={"native": True, "coarsen": 1})
    made = [
        make_frame(READERS[reader].read(path), domain)[0]
        for path in sorted((sample_data / folder).iterdir())
        if READERS[reader].time_of(path.name)
    ]
    return np.stack([f.rain[window] for f in made]), np.stack([f.observed[window] for f in made])


@pytest.mark.parametrize("name", SETS)
def test_against_pysteps_on_real_rain(name, sample_data):
    with contextlib.redirect_stdout(io.StringIO()):
        from pysteps import extrapolation, motion

        lucas_kanade, advect = motion.get_method("LK"), extrapolation.get_method("semilagrangian")
    torch.set_num_threads(1)
    folder, reader, window, references = SETS[name]
    pixels, observed = frames(sample_data, folder, reader, window)
    seconds = {(who, what): [] for who in ("ours", "pysteps") for what in ("motion", "extrapolation")}
    thresholds = {rate: pixel_of_rate(rate, ZR(), Scale()) for rate in (1.0, 5.0)}
    counts = {(who, rate): np.zeros(3) for who in ("ours", "pysteps") for rate in thresholds}
    squares = {"ours": 0.0, "pysteps": 0.0}
    pairs = 0
    for reference in references:
        past = slice(reference - 4, reference + 1)
        x = torch.from_numpy(pixels[past]).float()[None] / 255
        seen = torch.from_numpy(observed[past])[None]

        def timed(who, what, function, *arguments):
            started = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):
                result = function(*arguments)
            seconds[who, what].append(time.perf_counter() - started)
            return result

        flow = timed("ours", "motion", estimate_motion, x, seen)
        theirs = timed("pysteps", "motion", lucas_kanade, pixels[past][-3:].astype(float))
        made = timed("ours", "extrapolation", extrapolate, x[:, -1:], seen[:, -1:], flow, LEADS)
        peer = timed("pysteps", "extrapolation", advect, pixels[reference].astype(float), theirs, LEADS)
        ours = made.values[0, :, 0].numpy() * 255
        for lead in range(LEADS):
            truth = pixels[reference + 1 + lead].astype(float)
            valid = observed[reference + 1 + lead] & np.isfinite(peer[lead])
            pairs += valid.sum()
            for who, forecast in (("ours", ours[lead]), ("pysteps", peer[lead])):
                squares[who] += (((forecast - truth)[valid] * 70 / 255) ** 2).sum()
                for rate, pixel in thresholds.items():
                    f, o = np.floor(forecast[valid] + 0.5) >= pixel, truth[valid] >= pixel
                    counts[who, rate] += ((f & o).sum(), (f & ~o).sum(), (~f & o).sum())
    print(f"\n{name}: {len(references)} forecasts of {LEADS} leads, 512 x 512, {torch.get_num_threads()} thread")
    for what in ("motion", "extrapolation"):
        a, b = (statistics.median(seconds[who, what]) for who in ("ours", "pysteps"))
        print(f"  {what:13} ours {a:.3f} s, pysteps {b:.3f} s, ratio {b / a:.1f}")
    for rate in thresholds:
        a, b = (counts[who, rate][0] / counts[who, rate].sum() for who in ("ours", "pysteps"))
        print(f"  CSI at {rate:g} mm/h ours {a:.4f}, pysteps {b:.4f}")
    a, b = (float(np.sqrt(squares[who] / pairs)) for who in ("ours", "pysteps"))
    print(f"  RMSE (dB)     ours {a:.3f}, pysteps {b:.3f}")
    assert a <= b
    for rate in thresholds:
        a, b = (counts[who, rate][0] / counts[who, rate].sum() for who in ("ours", "pysteps"))
        assert a >= b
