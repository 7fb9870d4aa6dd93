import pytest

from pipeline.errors import SettingsError
from pipeline.settings import flat, hide_secrets, load

DOMAIN = """
[domains.here]
cadence_minutes = 10
grid = { native = true, coarsen = 2 }
source = { kind = "gridded", reader = "bom_rainfields", uri = "rain" }
"""


@pytest.fixture
def config(tmp_path):
    def write(text: str):
        path = tmp_path / "nowcast.toml"
        path.write_text(text)
        return path

    return write


def test_option_beats_environment_beats_file_beats_default(config):
    path = config("threads = 2\nlog_format = 'text'\n" + DOMAIN)
    environment = {"NOWCAST_THREADS": "3", "NOWCAST_DOMAINS__HERE__MAX_GAP": "2"}
    settings = load(path, {"threads": "4"}, environment)
    assert settings.threads == 4
    assert settings.domain("here").max_gap == 2
    assert settings.domain("here").input_frames == 5
    assert settings.domain("here").lead_frames == 12
    origin = {key: origin for key, _, origin in flat(settings)}
    assert origin["threads"] == "option"
    assert origin["domains.here.max_gap"] == "environment NOWCAST_DOMAINS__HERE__MAX_GAP"
    assert origin["log_format"] == "nowcast.toml"
    assert origin["domains.here.zr.a"] == "default"
    assert load(path, None, environment).threads == 3
    assert load(path, None, {}).threads == 2


def test_relative_paths_start_at_the_settings_folder(config, tmp_path):
    settings = load(config("root = 'data'\n" + DOMAIN), None, {})
    assert settings.root == tmp_path / "data"
    assert settings.domain("here").source.uri == str(tmp_path / "rain")
    assert settings.catalog == f"sqlite:///{tmp_path / 'data' / 'catalog.sqlite'}"


def test_sample_data_variable_expands(config, tmp_path):
    text = DOMAIN.replace('"rain"', '"${NOWCAST_SAMPLE_DATA}/rain"')
    settings = load(config(text), None, {"NOWCAST_SAMPLE_DATA": str(tmp_path / "x")})
    assert settings.domain("here").source.uri == str(tmp_path / "x" / "rain")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("colour = 1\n", ["colour", "unknown key"]),
        (DOMAIN + "max_gaps = 1\n", ["domains.here.max_gaps", "unknown key"]),
        (DOMAIN.replace("= 10", "= 7"), ["domains.here.cadence_minutes", "7", "5, 6 or 10"]),
        (DOMAIN.replace("coarsen = 2", "coarsen = 0"), ["domains.here.grid.coarsen", "0", "greater than or equal"]),
        (DOMAIN.replace("coarsen = 2", "spacing_m = 2"), ["domains.here.grid.spacing_m", "unknown key"]),
        (DOMAIN.replace("bom_rainfields", "bom"), ["domains.here.source.reader", "bom", "knmi_hdf5"]),
        (DOMAIN.replace('"gridded"', '"polar"'), ["domains.here.source", "polar", "volumes"]),
        (DOMAIN.replace('"gridded"', '"volumes"'), ["domains.here.source.pattern", "required"]),
        (DOMAIN + "thresholds_mm_h = [0.01, 1]\n", ["domains.here.thresholds_mm_h", "0.1 mm/h"]),
        (DOMAIN + "thresholds_mm_h = [5, 1]\n", ["domains.here.thresholds_mm_h", "rise"]),
        (DOMAIN + "[domains.here.scale]\ndbz_max = 6000\n", ["domains.here.scale.dbz_max", "6000"]),
        (DOMAIN.replace("native = true, coarsen = 2", "crs='EPSG:4326', shape=[64,64], spacing_m=1e3, centre=[5,50]"),
         ["domains.here.grid.crs", "metres"]),
        (DOMAIN + "[domains.here.scale]\ndbz_min = 8\n", ["domains.here", "0.1 mm/h", "scale 8 to 60 dBZ"]),
        (DOMAIN + "[domains.here.scale]\ndbz_min = 20\ndbz_max = 30\n", ["domains.here", "26 dB"]),
        ("root = 's3://bucket/x'\n", ["root", "local folder"]),
        ("root = 5\n", ["root = 5", "folder"]),
        ("root = ''\n", ["root = ''", "folder"]),
        ("[domains.'../evil']\ncadence_minutes = 10\n", ["../evil", "lower-case"]),
        ("threads = 'many'\n", ["threads", "many", "integer"]),
        ("catalog = 'mysql://u:hidden@db/x'\n", ["catalog = 'mysql://u:***@db/x'", "postgresql://"]),
        ("prefect_api_url = '127.0.0.1:4200'\n", ["prefect_api_url", "127.0.0.1:4200"]),
        (DOMAIN + "model = ''\n", ["domains.here.model", "at least 1 character"]),
        ("x = [", ["not valid TOML"]),
    ],
)  # fmt: skip
def test_errors_name_key_value_and_what_is_allowed(config, text, said):
    with pytest.raises(SettingsError) as err:
        load(config(text), None, {})
    for words in said:
        assert words in str(err.value)


def test_gridded_source_on_a_grid_of_our_own_is_refused(config):
    grid = "{ crs = 'EPSG:3035', shape = [64, 64], spacing_m = 1000, centre = [5, 50] }"
    with pytest.raises(SettingsError, match="keeps its own grid"):
        load(config(DOMAIN.replace("{ native = true, coarsen = 2 }", grid)), None, {})


def test_unknown_environment_variable_is_an_error(config):
    with pytest.raises(SettingsError, match=r"threds.*unknown key"):
        load(config(DOMAIN), None, {"NOWCAST_THREDS": "2"})


def test_variables_of_the_catalog_are_taken_as_they_are(config, tmp_path):
    text = "catalog = 'postgresql://u:${SECRET}@db/x'\n"
    assert load(config(text), None, {"SECRET": "a/b"}).catalog == "postgresql://u:a/b@db/x"
    with pytest.raises(SettingsError, match="SECRET is not set"):
        load(config(text), None, {})
    assert load(config("catalog = 'sqlite:///c.sqlite'\n"), None, {}).catalog == f"sqlite:///{tmp_path / 'c.sqlite'}"


def test_missing_file_and_unknown_domain(config, tmp_path):
    with pytest.raises(SettingsError, match=r"nothing\.toml"):
        load(tmp_path / "nothing.toml", None, {})
    with pytest.raises(SettingsError, match="it has: here"):
        load(config(DOMAIN), None, {}).domain("there")


def test_secrets_are_hidden(config):
    settings = load(config("catalog = 'postgresql://me:hush@db/nowcast'\n"), None, {})
    shown = dict((key, value) for key, value, _ in flat(settings))
    assert shown["catalog"] == "postgresql://me:***@db/nowcast"
    for url in ("postgresql://db/x?user=u&password=hush&sslmode=require", "redis://:hush@db/1", "x://h?api_key=hush"):
        assert "hush" not in hide_secrets(url) and "***" in hide_secrets(url)


def test_every_example_loads(monkeypatch):
    from tests.conftest import PROJECT

    examples = sorted((PROJECT / "infra" / "domains").glob("*.toml"))
    assert len(examples) >= 6
    for example in examples:
        assert load(example, None, {}).domains


SERVICE = {
    "NOWCAST_SERVICE_HOST": "10.0.0.7",
    "NOWCAST_SERVICE_PORT": "4200",
    "NOWCAST_PORT": "tcp://10.0.0.7:4200",
    "NOWCAST_PORT_4200_TCP": "tcp://10.0.0.7:4200",
    "NOWCAST_PREFECT_SERVICE_HOST": "10.0.0.8",
    "NOWCAST_PREFECT_SERVICE_PORT_HTTP": "4200",
    "NOWCAST_PREFECT_PORT": "tcp://10.0.0.8:4200",
    "NOWCAST_PREFECT_PORT_4200_TCP_PROTO": "tcp",
    "NOWCAST_PREFECT_PORT_4200_TCP_PORT": "4200",
    "NOWCAST_PREFECT_PORT_4200_TCP_ADDR": "10.0.0.8",
}


def test_variables_that_kubernetes_sets_for_a_service_are_left_alone_and_named_once(config, caplog):
    path = config(DOMAIN)
    assert load(path, None, {**SERVICE, "NOWCAST_THREADS": "3"}).threads == 3
    load(path, None, SERVICE)
    assert caplog.text.count("NOWCAST_PREFECT_PORT_4200_TCP_ADDR") == 1


@pytest.mark.parametrize("name", ["NOWCAST_PORT", "NOWCAST_SERVICE", "NOWCAST_LIVE__SERVICE_PORT", "NOWCAST_THREAD"])
def test_a_misspelt_setting_is_refused_all_the_same(config, name):
    with pytest.raises(SettingsError, match=r"unknown key|is a value"):
        load(config(DOMAIN), None, {name: "4200"})
