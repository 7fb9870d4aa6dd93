import json

import pytest
import torch
from safetensors.torch import save

from models import checkpoint, zoo

SMALL = {"widths": [4], "patch": 2}


def card(**changes) -> checkpoint.Card:
    values = {
        "name": "m",
        "network": "convlstm",
        "network_config": SMALL,
        "dbz_min": -10.0,
        "dbz_max": 60.0,
        "cadences_minutes": [10],
        "spacing_m": [1000.0, 4000.0],
        "product": "surface_rain",
    }
    return checkpoint.Card(**{**values, **changes})


@pytest.fixture
def folder(tmp_path):
    checkpoint.save(tmp_path / "m", zoo.build("convlstm", SMALL), card())
    return tmp_path / "m"


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("convlstm", SMALL),
        ("hko7_trajgru", {"down": [[4, 7, 5], [8, 5, 3], [8, 3, 2]], "widths": [8, 8, 8], "links": [3, 2, 2]}),
        ("hko7_cnn2d", {"base": 2, "input_frames": 2, "lead_frames": 2}),
        ("convlstm_classes", {**SMALL, "levels": [0.4, 0.6]}),
    ],
)
def test_checkpoint_round_trip(tmp_path, name, config):
    network = zoo.build(name, config).eval()
    saved = checkpoint.save(tmp_path / "m", network, card(network=name, network_config=config))
    loaded, read = checkpoint.load(tmp_path / "m")
    assert read == saved
    frames = torch.rand(1, 2, 1, 30, 30)
    with torch.no_grad():
        torch.testing.assert_close(loaded.roll_out(frames, 2), network.roll_out(frames, 2))


def test_damaged_weights_are_refused(folder):
    weights = bytearray((folder / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "weights.safetensors").write_bytes(weights)
    with pytest.raises(checkpoint.CheckpointError, match="checksum"):
        checkpoint.load(folder)


def edit(folder, **changes):
    path = folder / "card.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format_version": 2}, "format 2"),
        ({"colour": "blue"}, "unexpected keyword argument 'colour'"),
        ({"network": "nonesuch"}, "the zoo has"),
        ({"network_config": {"widths": [8], "patch": 2}}, "do not fit"),
        ({"network_config": {"widths": [10**9], "patch": 2}}, "do not fit"),  # and takes no memory to find out
        ({"network_config": {"widths": "large"}}, "do not fit"),
        ({"network_config": {"depth": 3}}, "do not fit"),
        ({"dbz_min": "low"}, "must be numbers"),
        ({"spacing_m": [1000]}, "must be numbers"),
        ({"product": 7}, "must be a name or a list"),
        ({"sha256": "0" * 64}, "checksum"),
        ({"limits": [1]}, "must be texts"),
        ({"name": None}, "must be texts"),
        ({"network_config": None}, "must be texts"),
    ],
)
def test_a_card_that_was_tampered_with_is_refused(folder, changes, says):
    edit(folder, **changes)
    with pytest.raises(checkpoint.CheckpointError, match=says):
        checkpoint.load(folder)


@pytest.mark.parametrize("text", ["", "{", "[1]", "[" * 100_000, '"' + "x" * 2**20 + '"'])
def test_what_is_no_card_is_refused(folder, text):
    (folder / "card.json").write_text(text)
    with pytest.raises(checkpoint.CheckpointError, match=r"card\.json"):
        checkpoint.load(folder)


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    network = zoo.build("convlstm", SMALL)
    network.encoder[0].gates.bias.data[0] = float("nan")
    with pytest.raises(checkpoint.CheckpointError, match=r"encoder\.0\.gates\.bias holds values that are not finite"):
        checkpoint.save(tmp_path / "m", network, card())


def test_weights_that_are_no_safetensors_are_refused(folder):
    import hashlib

    for content in (b"", b"\x80\x04K\x01.", save({"other": torch.zeros(1)})):  # the second is a pickle
        (folder / "weights.safetensors").write_bytes(content)
        edit(folder, sha256=hashlib.sha256(content).hexdigest())
        with pytest.raises(checkpoint.CheckpointError, match="do not fit"):
            checkpoint.load(folder)
    (folder / "weights.safetensors").unlink()
    with pytest.raises(checkpoint.CheckpointError, match="cannot be read"):
        checkpoint.load(folder)


TASK = {"dbz_min": -10.0, "dbz_max": 60.0, "cadence_minutes": 10, "spacing_m": 2000.0, "products": ("surface_rain",)}


def test_a_model_serves_what_its_card_allows_and_nothing_else():
    assert card().refusal(**TASK) == ""
    for changes, says in (
        ({"dbz_max": 70.0}, "dBZ scale [-10.0, 60.0], the domain has [-10.0, 70.0]"),
        ({"cadence_minutes": 5}, "cadence (minutes) [10], the domain has 5"),
        ({"spacing_m": 500.0}, "grid spacing (m) [1000.0, 4000.0], the domain has 500"),
        ({"products": ("surface_rain", "cappi_3000")}, "product ['surface_rain'], the domain has"),
    ):
        assert says in card().refusal(**{**TASK, **changes})


@pytest.mark.parametrize(("name", "parameters"), [("champion", 366_828), ("convlstm", 261_733), ("dc", 371_626)])
def test_shipped_models_are_whole_and_say_what_they_learnt_from(name, parameters):
    network, shipped = checkpoint.load(checkpoint.find(name))
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert (checkpoint.find(name) / "weights.safetensors").stat().st_size < 5_000_000
    training = shipped.training
    assert f"--out {name}" in training["command"] and shipped.limits
    # terms allow it, and Brisbane's do not
    assert set(training["terms"]) == set(training["periods"]) == set(training["inputs"])
    assert set(training["terms"]) == {"finland", "netherlands", "swiss_summer", "swiss_winter", "conus"}
    assert all("cite" in text or "public domain" in text for text in training["terms"].values())
