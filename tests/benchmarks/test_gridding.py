"""One volume on a 480 x 480 grid against Py-ART, a mosaic, and what many radars cost.

python -m pytest tests/benchmarks/test_gridding.py -s
"""

import dataclasses
import resource
import statistics
import time
import warnings
from datetime import UTC, datetime

import numpy as np
import pytest

from pipeline.grids import centred_grid
from pipeline.radar.decode import read_volume
from pipeline.radar.gridding import Level, grid_volume
from pipeline.radar.mosaic import combine
from pipeline.radar.volume import NO_ECHO_DBZ, Site

CAPPI = (Level(),)

SIZE, RUNS = 480, 5
TIME = datetime(2024, 6, 1, tzinfo=UTC)
FILES = {"KLBB": "nexrad_level2/KLBB20160601_150025_V06", "behel": "odim_h5/behel.pvol.hdf"}


def timed(function):
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def pyart_radar(volume):
    """The volume as a Py-ART radar, from our own decoding, so that both grid the same gates."""
    import pyart

    sweeps = sorted(volume.sweeps, key=lambda s: s.elevation)
    gates = max(s.dbz.shape[1] for s in sweeps)
    radar = pyart.testing.make_empty_ppi_radar(gates, 1, 1)
    rays = sum(len(s.azimuth) for s in sweeps)
    data = np.ma.masked_all((rays, gates), np.float32)
    first, starts, ends = 0, [], []
    for s in sweeps:
        block = np.ma.masked_invalid(s.dbz)
        data[first : first + len(s.azimuth), : s.dbz.shape[1]] = block
        starts.append(first)
        first += len(s.azimuth)
        ends.append(first - 1)
    radar.nrays, radar.nsweeps, radar.ngates = rays, len(sweeps), gates
    radar.azimuth["data"] = np.concatenate([s.azimuth for s in sweeps])
    radar.elevation["data"] = np.concatenate([np.full(len(s.azimuth), s.elevation) for s in sweeps])
    radar.range["data"] = sweeps[0].range_m + sweeps[0].gate_m * np.arange(gates)
    radar.sweep_start_ray_index["data"] = np.array(starts)
    radar.sweep_end_ray_index["data"] = np.array(ends)
    for name in ("latitude", "longitude", "altitude"):
        getattr(radar, name)["data"] = np.array([getattr(volume.site, name)])
    radar.fields = {"reflectivity": {"data": data}}
    radar.init_gate_x_y_z()
    radar.init_gate_longitude_latitude()
    radar.init_gate_altitude()
    return radar


@pytest.mark.parametrize("name", FILES)
def test_one_volume_against_pyart(name, sample_data):
    pytest.importorskip("pyart", reason="comparison package; `make test` installs it (extra `compare`)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pyart
    volume = read_volume(sample_data / "volumes" / FILES[name], name, TIME)
    # Py-ART knows one gate spacing per volume: those sweeps that share the lowest one's
    same = [s for s in volume.sweeps if (s.range_m, s.gate_m) == (volume.sweeps[0].range_m, volume.sweeps[0].gate_m)]
    volume = dataclasses.replace(volume, sweeps=tuple(same))
    site = volume.site
    grid = centred_grid(
        f"+proj=aeqd +lat_0={site.latitude} +lon_0={site.longitude} +units=m",
        (SIZE, SIZE), 1000.0, (site.longitude, site.latitude),
    )  # fmt: skip
    radar = pyart_radar(volume)
    half = (SIZE - 1) / 2 * 1000.0

    def theirs():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return pyart.map.grid_from_radars(
                (radar,), grid_shape=(1, SIZE, SIZE), grid_limits=((2000, 2000), (-half, half), (-half, half)),
                grid_origin_alt=0, gridding_algo="map_gates_to_grid", weighting_function="Nearest",
                roi_func="dist_beam", fields=["reflectivity"],
            )  # fmt: skip

    cold, _ = timed(lambda: grid_volume(volume, grid))
    theirs()
    ours, peer = [], []
    for _ in range(RUNS):
        seconds, made = timed(lambda: grid_volume(volume, grid))
        ours.append(seconds)
        seconds, other = timed(theirs)
        peer.append(seconds)
    mine = np.full(grid.shape, np.nan, np.float32)
    mine[made.window.slices] = made.dbz[0]
    field = other.fields["reflectivity"]["data"][0][::-1].filled(np.nan)  # theirs has row 0 in the south
    both = (mine > 5) & (field > 5)
    difference = mine[both] - field[both]
    a, b = statistics.median(ours), statistics.median(peer)
    print(f"\n{name}: {len(same)} sweeps to {SIZE} x {SIZE}, look-up built in {cold - a:.2f} s")
    print(f"  warm: ours {a * 1e3:.0f} ms, Py-ART (nearest) {b * 1e3:.0f} ms, ratio {b / a:.0f}")
    print(f"  both above 5 dBZ: bias {difference.mean():+.2f} dB, RMSE {np.sqrt((difference**2).mean()):.2f} dB")
    assert abs(difference.mean()) < 0.5


def test_a_mosaic_of_three_and_of_many(sample_data):
    volumes = [read_volume(sample_data / f"volumes/odim_h5/{r}.pvol.hdf", r, TIME) for r in ("behel", "bejab", "bewid")]
    grid = centred_grid(
        "+proj=lcc +lat_1=49.5 +lat_2=51.5 +lat_0=50.7 +lon_0=4.7 +units=m", (500, 600), 1000.0, (4.7, 50.7)
    )
    cold, _ = timed(lambda: combine([grid_volume(v, grid) for v in volumes], grid.shape, CAPPI))
    warm = [timed(lambda: combine([grid_volume(v, grid) for v in volumes], grid.shape, CAPPI))[0] for _ in range(RUNS)]
    print(f"\nBelgium, 3 radars on 500 x 600: {cold:.2f} s at first, {statistics.median(warm):.3f} s warm")
    wide = centred_grid("EPSG:3035", (2400, 2400), 1000.0, (10.0, 51.0))
    for count in (1, 5, 10, 25, 50):
        sites = [Site(2.0 + 1.8 * (n % 10), 45.0 + 2.2 * (n // 10), 100.0) for n in range(count)]
        many = [dataclasses.replace(volumes[0], radar=f"r{n:02}", site=site) for n, site in enumerate(sites)]
        first, _ = timed(lambda many=many: combine([grid_volume(v, wide) for v in many], wide.shape, CAPPI))
        again, made = timed(lambda many=many: combine([grid_volume(v, wide) for v in many], wide.shape, CAPPI))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"  {count:2} radars on 2400 x 2400: {first:.2f} s at first, {again:.2f} s warm, peak {peak:.0f} MB")
        assert (made.dbz[~np.isnan(made.dbz)] >= NO_ECHO_DBZ).all()
