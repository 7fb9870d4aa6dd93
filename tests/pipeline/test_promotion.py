"""Which model serves: promotions lie on each other, are recorded, and a lost one never harms what served before."""

import json
import shutil
from datetime import timedelta

import pytest
import sqlalchemy as sa

from models import checkpoint
from pipeline import catalog as tables
from pipeline import nowcast, promotion
from pipeline.errors import ModelRefused, NowcastError
from pipeline.promotion import IN_USE, SHADOW, Candidate
from pipeline.rebuild import rebuild
from tests.conftest import NOW, settings_for, synthetic_domain


@pytest.fixture
def place(tmp_path, store, catalog):
    """A domain of the shipped ConvLSTM, and two models of the root that were trained for the same frames."""
    for name in ("first", "second"):
        folder = store.models() / name
        shutil.copytree(checkpoint.PRETRAINED / "convlstm", folder)
        card = json.loads((folder / "card.json").read_text())
        (folder / "card.json").write_text(json.dumps({**card, "name": name}))
    return synthetic_domain(model="convlstm"), store, catalog


def promote(place, name, minutes=0, **more):
    domain, store, catalog = place
    return promotion.promote(store, catalog, domain, name, NOW + timedelta(minutes=minutes), "better", **more)


def test_promotions_lie_on_each_other_and_are_taken_back_one_by_one(place):
    domain, store, catalog = place
    assert promotion.in_use(catalog, domain) == "convlstm"
    promote(place, "first")
    promote(place, "second", 1)
    assert [one.name for one in promotion.candidates(catalog, domain)] == ["second", "first", "convlstm"]
    with pytest.raises(NowcastError, match="serves small already"):
        promote(place, "second", 2)
    for left in ("first", "convlstm"):
        promotion.demote(store, catalog, domain, NOW + timedelta(minutes=3), "worse than it seemed")
        assert promotion.in_use(catalog, domain) == left
    with pytest.raises(NowcastError, match="no promotion of small stands"):
        promotion.demote(store, catalog, domain, NOW, "again")
    assert len(promotion.history(catalog, domain)) == 2


def test_a_promotion_is_for_the_model_that_the_settings_named(place):
    domain, _, catalog = place
    promote(place, "first")
    other = domain.model_copy(update={"model": "optical_flow"})
    assert promotion.in_use(catalog, other) == "optical_flow"
    assert promotion.in_use(catalog, domain) == "first"


def test_only_what_was_compared_with_the_model_in_use_takes_its_place(place):
    domain, _, catalog = place
    promote(place, "first")
    with pytest.raises(NowcastError, match="first serves small now, second was compared with convlstm"):
        promote(place, "second", 1, after="convlstm")
    assert promotion.in_use(catalog, domain) == "first"


@pytest.mark.parametrize("name", ["absent", "../first", "damaged", "other_scale"])
def test_a_model_that_cannot_serve_is_not_promoted(place, name):
    domain, store, catalog = place
    if name in {"damaged", "other_scale"}:
        shutil.copytree(store.models() / "first", store.models() / name)
    if name == "damaged":
        (store.models() / name / "weights.safetensors").write_bytes(b"nothing")
    if name == "other_scale":
        path = store.models() / name / "card.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "dbz_max": 80.0}))
    with pytest.raises(ModelRefused):
        promote(place, name)
    assert promotion.in_use(catalog, domain) == "convlstm"
    assert not list(store.read_journal())


def test_a_shadow_does_not_serve_and_ends_with_a_promotion(place):
    domain, _, catalog = place
    promote(place, "first", role=SHADOW)
    assert promotion.in_use(catalog, domain) == "convlstm"
    assert promotion.in_shadow(catalog, domain)["name"] == "first"
    promote(place, "first", 1)
    assert promotion.in_use(catalog, domain) == "first"
    assert promotion.in_shadow(catalog, domain) is None


def test_a_rebuilt_catalog_knows_the_promotions(place):
    domain, store, catalog = place
    promote(place, "first", role=SHADOW)
    promote(place, "first", 1)
    promote(place, "second", 2)
    promotion.demote(store, catalog, domain, NOW + timedelta(minutes=3), "worse")
    before = promotion.history(catalog, domain)
    with catalog.write() as connection:
        connection.execute(sa.delete(tables.promotions))
    rebuild([domain], store, catalog)
    assert promotion.history(catalog, domain) == before
    assert [row["ended_at"] > 0 for row in before] == [True, False, True]
    assert promotion.in_use(catalog, domain) == "first"


def test_the_next_cycle_uses_what_was_promoted_and_a_lost_file_gives_its_place_back(place):
    domain, store, catalog = place
    loader = nowcast.Loader(store, settings_for(store.root, domain), catalog)
    assert loader.methods(domain, 2000.0).model_name == "convlstm"
    promote(place, "first")
    promote(place, "second", 1)
    serving = loader.methods(domain, 2000.0)
    assert (serving.model_name, serving.asked, serving.refused) == ("second", "second", "")
    shutil.rmtree(store.models() / "second")
    anew = nowcast.Loader(store, settings_for(store.root, domain), catalog).methods(domain, 2000.0)
    assert (anew.model_name, anew.asked) == ("first", "second")
    assert "no model 'second'" in anew.refused
    shutil.copytree(store.models() / "first", store.models() / "second")
    card = json.loads((store.models() / "second" / "card.json").read_text())
    changed = {**card, "network_config": {**card["network_config"], "kernel": 3}}
    (store.models() / "second" / "card.json").write_text(json.dumps(changed))
    replaced = nowcast.Loader(store, settings_for(store.root, domain), catalog).methods(domain, 2000.0)
    assert replaced.model_name == "first"
    assert "was promoted" in replaced.refused
    with catalog.write() as connection:
        connection.execute(sa.delete(tables.promotions))
    assert loader.of(domain, 2000.0, Candidate("convlstm")).model is not None
    assert promotion.standing(catalog, domain, IN_USE) == []
