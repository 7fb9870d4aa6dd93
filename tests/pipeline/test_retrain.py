"""Retraining: what is learnt from comes before what decides, the rule is kept, and a kill or a fault harms nothing."""

import json
import shutil
from datetime import timedelta

import numpy as np
import pytest

from models import checkpoint
from pipeline import nowcast, operations, promotion, times
from pipeline.catalog import Catalog
from pipeline.errors import BadInput, ModelRefused, NowcastError, SettingsError, StoreUnavailable
from pipeline.promotion import SHADOW
from pipeline.rebuild import rebuild
from pipeline.retrain import decision, run
from pipeline.retrain.decision import BETTER, NO_EVIDENCE, REJECTED, decide, unreliability
from pipeline.retrain.evaluation import Evidence
from pipeline.retrain.settings import Retrain
from pipeline.storage import Store
from pipeline.verification.period import Verified
from tests.conftest import NOW, settings_for, synthetic_domain
from tests.pipeline.cycles import STEP, T0
from tests.pipeline.killed import killed_at_each_step

LEADS, RATES = np.array([30, 60]), np.array([0.5, 2.0, 5.0])
HOURS = 60


def verified(gain=0.0, noise=0.0, wet=HOURS, probabilities=None, seed=0, worse_at=None, memory=0.0) -> Verified:
    """Two methods in ``HOURS`` hours, six forecasts each; the first hits ``gain`` of 1000 events more.

    ``memory`` is the correlation of the noise of one forecast with that of the next.
    """
    rng = np.random.default_rng(seed)
    shape = (6 * HOURS, 2, len(LEADS), len(RATES))
    hits = np.full(shape, 500.0)
    drawn = rng.standard_normal(6 * HOURS)
    for n in range(1, 6 * HOURS):
        drawn[n] = memory * drawn[n - 1] + (1 - memory**2) ** 0.5 * drawn[n]
    hits[:, 0] += gain + noise * drawn[:, None, None]
    if worse_at is not None:
        hits[:, 0, 1, worse_at] -= 40
    share = (np.arange(6 * HOURS) < 6 * wet)[:, None, None, None]
    each = {"hits": hits * share, "misses": (1000 - hits) * share, "false_alarms": (1000 - hits) * share}
    each["correct_negatives"] = np.full(shape, 9000.0)
    each["pairs"] = np.full(shape[:3], 10000.0)
    by_hour = {name: v.reshape(HOURS, 6, *v.shape[1:]).sum(axis=1)[..., None] for name, v in each.items()}
    by_hour["observed"] = np.full((HOURS, len(LEADS)), 6)
    by_hour |= binned(probabilities) if probabilities is not None else {}
    return Verified(
        model="challenger", kind="hindcast", methods=("challenger", "champion"),
        axes={"lead": LEADS, "structure_lead": LEADS, "threshold": RATES}, hours=np.arange(HOURS), by_hour=by_hour,
        cadence_s=600, horizon_s=3600, reference_times=600 * np.arange(6 * HOURS), each=each, places=[],
    )  # fmt: skip


def binned(said: float) -> dict[str, np.ndarray]:
    """Events come in a half of the cases, with forecasts of ``said``, and never with forecasts of 0."""
    shape = (HOURS, len(LEADS), len(RATES), 11, 1)
    pairs, probability, events = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    pairs[..., 0, :], pairs[..., 5, :] = 100, 100
    probability[..., 5, :], events[..., 5, :] = 100 * said, 50
    return {"bin_pairs": pairs, "bin_probability": probability, "bin_events": events}


def evidence(one, other=None, seconds=1.0, failures=()) -> Evidence:
    return Evidence(one, other, [seconds], list(failures), [])


def test_a_challenger_that_is_surely_better_serves():
    verdict = decide(evidence(verified(gain=20, noise=10)), Retrain())
    assert verdict.state == BETTER
    assert "better: mean CSI" in verdict.reason


@pytest.mark.parametrize(
    ("one", "other", "seconds", "reason"),
    [
        (verified(gain=0.2, noise=60), None, 1.0, "not shown to be better"),
        (verified(gain=-3, noise=1), None, 1.0, "worse: mean CSI"),
        (verified(gain=20, noise=10, worse_at=2), None, 1.0, "CSI at 5 mm/h and 60 min differs by"),
        (verified(gain=20, noise=10), None, 31.0, "31.00 s a forecast, of 30 s"),
        (verified(gain=20, probabilities=0.9), verified(probabilities=0.5), 1.0, "unreliability"),
        (verified(gain=20), verified(probabilities=0.5), 1.0, "the challenger gives no probabilities"),
    ],
)
def test_each_condition_alone_keeps_the_model_in_use(one, other, seconds, reason):
    verdict = decide(evidence(one, other, seconds), Retrain())
    assert verdict.state == REJECTED
    assert reason in verdict.reason


def test_with_few_wet_spells_the_model_in_use_stays_however_large_the_gain():
    few = evidence(verified(gain=100, noise=10, wet=24))
    verdict = decide(few, Retrain(fewest_wet_blocks=30))
    assert verdict.state == NO_EVIDENCE
    assert "independent wet spells" in verdict.reason
    assert decide(few, Retrain(fewest_wet_blocks=6)).state == BETTER
    assert decide(None, Retrain()).state == NO_EVIDENCE


def test_a_challenger_that_cannot_forecast_is_rejected():
    verdict = decide(evidence(verified(gain=100), failures=["2024-06-01T03:00:00Z: out of memory"]), Retrain())
    assert (verdict.state, "out of memory" in verdict.reason) == (REJECTED, True)


def test_a_rival_that_could_not_forecast_proves_nothing():
    found = Evidence(verified(gain=100), None, [1.0], [], ["2024-06-01T03:00:00Z: out of memory"])
    assert decide(found, Retrain()).state == NO_EVIDENCE


@pytest.mark.parametrize("memory", [0.0, 0.9])
def test_few_challengers_that_are_exactly_as_good_are_taken_for_better(memory):
    """One in ten or so (docs/retraining.md), also where neighbours resemble each other."""
    rule = Retrain(margin=1, fewest_wet_blocks=6)
    states = [decide(evidence(verified(noise=30, memory=memory, seed=n)), rule).state for n in range(100)]
    assert states.count(BETTER) <= 17
    worse = [decide(evidence(verified(-9, noise=30, memory=memory, seed=n)), rule).state for n in range(30)]
    assert worse.count(BETTER) <= 3


def test_unreliability_is_the_reliability_term_over_the_variance():
    # half of all cells: said 0.9, came 0.5; the event comes in a quarter of all
    assert unreliability(verified(probabilities=0.9)) == pytest.approx(0.5 * 0.4**2 / (0.25 * 0.75))
    assert unreliability(verified(probabilities=0.5)) == 0
    assert unreliability(verified()) is None


# -- whole retrainings of a small domain

SMALL = {
    "steps": 2, "batch": 1, "crop": 32, "fewest_times": 5, "gap_minutes": 20, "leads_in_step": 2, "decide_share": 0.4,
    "tune_share": 0.3, "fewest_wet_blocks": 6,
}  # fmt: skip


def full_disk(*_):
    raise OSError(28, "No space left on device", "here")


@pytest.fixture
def settings(root):
    """Ten hours of rain of a domain that the shipped champion serves."""
    settings = settings_for(root, synthetic_domain(model="champion"))
    settings = settings.model_copy(update={"retrain": Retrain(**SMALL)})
    operations.ingest(settings, "small", T0 - timedelta(hours=4), T0 + timedelta(hours=6), NOW)
    return settings


def retrain(settings, now=NOW, **asked):
    return operations.retrain(settings, "small", now, **asked)


def journal(settings, event):
    return [entry for entry in Store(settings.root).read_journal() if entry["event"] == event]


def test_a_retraining_leaves_a_challenger_a_page_and_the_model_in_use(settings):
    done = retrain(settings)
    assert done.state in {REJECTED, NO_EVIDENCE}, done
    [card] = [checkpoint.read_card(path) for path in (settings.root / "models").iterdir()]
    assert card.name == done.challenger
    training = card.training
    assert training["parent"]["name"] == "champion" and training["continued"] is True
    assert len(training["parent"]["checksum"]) == 64 and training["software_version"]
    page = done.page.read_text()
    assert done.challenger in page and done.state.capitalize() in page and "data:image/png" in page
    verdict = json.loads((done.page.parent / "verdict.json").read_text())
    plan = verdict["plan"]
    learnt = times.parse_time(training["periods"]["small"].split("/")[1])
    assert learnt <= times.parse_time(plan["learn_until"]) < times.parse_time(plan["decide_from"])
    assert [entry["state"] for entry in journal(settings, "retrained")] == [done.state]
    assert not (done.page.parent / "dataset").exists() and not (done.page.parent / "sums").exists()
    with_catalog = Catalog(settings.catalog)
    assert promotion.in_use(with_catalog, settings.domain("small")) == "champion"


def test_what_decides_is_later_than_what_either_learnt(settings):
    """A model in use that was trained on newer frames moves the deciding period behind them."""
    first = retrain(settings)
    store, catalog = operations.open_root(settings)
    promotion.promote(store, catalog, settings.domain("small"), first.challenger, NOW, "for a test")
    second = retrain(settings, NOW + timedelta(days=1))
    plan = json.loads((settings.root / "retrain/small/20260102T000000Z/verdict.json").read_text())["plan"]
    learnt = checkpoint.read_card(store.models() / first.challenger).training["periods"]["small"].split("/")[1]
    assert times.parse_time(plan["decide_from"]) >= times.parse_time(learnt) + timedelta(minutes=20)
    assert second.model == first.challenger
    # all that is held was learnt: nothing is left that could decide
    path = store.models() / first.challenger / "card.json"
    card = json.loads(path.read_text())
    card["training"]["periods"]["small"] = f"{times.iso(T0)}/{times.iso(T0 + timedelta(hours=6))}"
    path.write_text(json.dumps(card))
    third = retrain(settings, NOW + timedelta(days=2))
    assert (third.state, "no frame is left to decide with" in third.reason) == (run.NOT_TRAINED, True)


def test_a_crippled_challenger_is_rejected_and_a_better_one_serves_until_it_is_taken_back(settings, monkeypatch):
    import torch

    store, catalog = operations.open_root(settings)
    domain = settings.domain("small")
    network, card = checkpoint.load(checkpoint.PRETRAINED / "champion")
    with torch.no_grad():
        network.slope.zero_()
        network.offset.fill_(-9.0)
        network.mix.zero_()
    checkpoint.save(store.models() / "crippled", network, card)
    done = retrain(settings, challenger="crippled")
    assert done.state == REJECTED, done
    assert promotion.in_use(catalog, domain) == "champion"
    # the same rule lets a challenger serve that the evidence speaks for
    shutil.copytree(checkpoint.PRETRAINED / "champion", store.models() / "good")
    monkeypatch.setattr(run, "decide", lambda *_: decision.Verdict(BETTER, "better: for a test", ()))
    done = retrain(settings, NOW + timedelta(hours=1), challenger="good")
    assert done.state == "promoted"
    row = promotion.history(catalog, domain)[0]
    assert (store.root / row["evidence"]).is_file()
    loader = nowcast.Loader(store, settings, catalog)
    assert loader.methods(domain, 2000.0).model_name == "good"
    promotion.demote(store, catalog, domain, NOW, "for a test")
    assert loader.methods(domain, 2000.0).model_name == "champion"


def test_killed_before_any_step_it_goes_on_to_the_same_end(settings, monkeypatch):
    monkeypatch.setattr(run, "decide", lambda *_: decision.Verdict(BETTER, "better: for a test", ()))
    for _ in killed_at_each_step(lambda: retrain(settings), every=9):
        catalog = Catalog(settings.catalog)
        if promotion.in_use(catalog, settings.domain("small")) != "champion":  # only what was compared serves
            assert journal(settings, "promoted") and list((settings.root / "models").glob("small-*/card.json"))
        catalog.close()
    store, catalog = operations.open_root(settings)
    domain = settings.domain("small")
    rows = promotion.history(catalog, domain)
    assert len(rows) == 1
    assert promotion.in_use(catalog, domain) == rows[0]["name"]
    rebuild([domain], store, catalog)
    promotion.demote(store, catalog, domain, NOW, "for a test")
    assert promotion.in_use(catalog, domain) == "champion"
    assert len(list((settings.root / "retrain/small").glob("*/plan.json"))) == 1
    assert not list(store.models().glob(".*"))


def test_an_archive_that_is_too_short_or_too_dry_changes_nothing(settings):
    wide = settings.model_copy(update={"retrain": Retrain(**SMALL | {"fewest_times": 500})})
    done = retrain(wide)
    assert (done.state, "500 are needed" in done.reason) == (run.NOT_TRAINED, True)
    done = operations.retrain(settings, "small", NOW, T0, T0 + 5 * STEP)
    assert done.state == run.NOT_TRAINED
    done = operations.retrain(settings, "small", NOW + STEP, NOW, NOW)
    assert (done.state, "no frames in that window" in done.reason) == (run.NOT_TRAINED, True)
    assert len(journal(settings, "retrained")) == 3


def test_a_loss_that_is_not_a_number_is_recorded_and_harms_nothing(settings):
    wild = settings.model_copy(update={"retrain": Retrain(**SMALL | {"learning_rate": 1.0, "steps": 40})})
    from models import training

    real = training._Run.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training._Run, "step", lambda self, n: float("nan") if n == 2 else real(self, n))
        done = retrain(wild)
    assert (done.state, "the training loss is nan at step 2" in done.reason) == (run.NOT_TRAINED, True)
    assert retrain(settings, NOW + STEP).state in {REJECTED, NO_EVIDENCE}


@pytest.mark.parametrize("where", ["models.training_state.save", "models.dataset.save", "models.checkpoint.save"])
def test_a_full_disk_stops_it_and_the_next_start_goes_on(settings, monkeypatch, where):
    with monkeypatch.context() as patch:
        patch.setattr(where, full_disk)
        with pytest.raises(StoreUnavailable, match="No space left"):
            retrain(settings)
    [plan] = (settings.root / "retrain/small").glob("*/plan.json")
    done = retrain(settings, NOW + STEP)
    assert done.state in {REJECTED, NO_EVIDENCE}
    assert (plan.parent / "verdict.json").is_file()


def test_two_at_once_and_a_question_that_differs_are_refused(settings, monkeypatch):
    _, catalog = operations.open_root(settings)
    with catalog.lease("retrain/small"), pytest.raises(NowcastError, match="another process retrains small"):
        retrain(settings)
    with monkeypatch.context() as patch:
        patch.setattr(run, "train", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            retrain(settings)
    with pytest.raises(SettingsError, match="is not finished"):
        operations.retrain(settings, "small", NOW, T0, T0 + timedelta(hours=5))
    assert retrain(settings, anew=True).state in {REJECTED, NO_EVIDENCE}


def test_a_better_challenger_may_have_to_forecast_beside_the_live_one_first(settings, monkeypatch):
    shadowed = settings.model_copy(update={"retrain": Retrain(**SMALL | {"shadow_hours": 6})})
    monkeypatch.setattr(run, "decide", lambda *_: decision.Verdict(BETTER, "better: for a test", ()))
    _, catalog = operations.open_root(settings)
    domain = settings.domain("small")
    done = retrain(shadowed)
    assert done.state == "shadow"
    assert promotion.in_use(catalog, domain) == "champion"
    assert promotion.in_shadow(catalog, domain)["name"] == done.challenger
    again = retrain(shadowed, NOW + timedelta(hours=3))
    assert (again.state, again.page) == ("shadow", None)
    last = retrain(shadowed, NOW + timedelta(hours=7))
    assert (last.state, last.challenger) == ("promoted", done.challenger)
    assert promotion.in_use(catalog, domain) == done.challenger
    assert promotion.standing(catalog, domain, SHADOW) == []


def test_online_tuning_is_off_uses_no_later_frame_and_serves_only_by_the_rule(settings, monkeypatch):
    assert retrain(settings, online=True).state == "off"
    on = settings.model_copy(update={"retrain": Retrain(**SMALL | {"online": True, "online_steps": 2})})
    _, catalog = operations.open_root(settings)
    domain = settings.domain("small")
    done = retrain(on, online=True)
    assert done.state == "shadow", done
    assert promotion.in_use(catalog, domain) == "champion"
    newest = T0 + timedelta(hours=6)
    card = checkpoint.read_card(settings.root / "models" / done.challenger)
    assert times.parse_time(card.training["periods"]["small"].split("/")[1]) == newest
    assert card.calibration == checkpoint.read_card(checkpoint.PRETRAINED / "champion").calibration
    # what decides is later than every frame it was tuned on; with nothing later, nothing can be decided
    assert retrain(on, NOW + timedelta(hours=1), online=True).state == "shadow"
    later = retrain(on, NOW + timedelta(hours=13), online=True)
    assert (later.state, "nothing was observed yet" in later.reason) == ("shadow", True)
    operations.ingest(settings, "small", newest, newest + timedelta(hours=6), NOW)
    seen = []
    real = run.evaluate
    monkeypatch.setattr(run, "evaluate", lambda *a: (seen.append(a[3]), real(*a))[1])
    last = retrain(on, NOW + timedelta(hours=14), online=True)
    assert last.challenger == done.challenger
    assert seen[0][0] >= newest + timedelta(minutes=20)
    assert promotion.in_use(catalog, domain) == "champion"


def test_a_challenger_that_is_not_there_leaves_no_plan_behind(settings):
    with pytest.raises(ModelRefused, match="no model 'typo'"):
        retrain(settings, challenger="typo")
    assert not (settings.root / "retrain").exists()


def test_a_page_that_cannot_be_made_does_not_hold_up_the_verdict(settings, monkeypatch):
    def broken(*_):
        raise ValueError("no font")

    monkeypatch.setattr("pipeline.retrain.page.figures.spectra", broken)
    shutil.copytree(checkpoint.PRETRAINED / "convlstm", settings.root / "models" / "other")
    done = retrain(settings, challenger="other")
    assert done.page is None and "no font" in done.problems[0]
    assert len(journal(settings, "retrained")) == 1


def test_what_was_trained_before_a_kill_reaches_the_store(settings, monkeypatch):
    sent = []

    def send(store, folder):
        sent.append(folder.name)
        if len(sent) == 1:
            raise StoreUnavailable("the bucket is away")

    monkeypatch.setattr(Store, "send", send)
    with pytest.raises(StoreUnavailable):
        retrain(settings)
    done = retrain(settings, NOW + STEP)
    assert sent == [done.challenger] * 2


def test_a_lost_promotion_gives_its_place_to_what_is_better_than_what_serves(settings, monkeypatch):
    store, catalog = operations.open_root(settings)
    domain = settings.domain("small")
    for name in ("first", "second"):
        shutil.copytree(checkpoint.PRETRAINED / "convlstm", store.models() / name)
    promotion.promote(store, catalog, domain, "first", NOW, "for a test")
    shutil.rmtree(store.models() / "first")
    monkeypatch.setattr(run, "decide", lambda *_: decision.Verdict(BETTER, "better: for a test", ()))
    done = retrain(settings, NOW + STEP, challenger="second")
    assert (done.state, done.model) == ("promoted", "champion")


def test_the_scheduled_retraining_ends_an_online_shadow(settings):
    on = settings.model_copy(update={"retrain": Retrain(**SMALL | {"online": True, "online_steps": 1})})
    tuned = retrain(on, online=True)
    assert tuned.state == "shadow"
    done = retrain(on, NOW + STEP)
    assert done.state in {REJECTED, NO_EVIDENCE} and done.challenger != tuned.challenger
    _, catalog = operations.open_root(settings)
    assert promotion.in_shadow(catalog, settings.domain("small")) is None


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"network": "nope"}, "retrain.network = 'nope'"),
        ({"network_config": {"x": 1}}, "retrain.network = 'growth_decay'"),
        ({"network": "unet"}, "retrain.leads_in_step"),
        ({"leads_in_step": 50}, "there are 12 leads"),
        ({"also": ["nope"]}, "no domain 'nope'"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_begun(root, wrong, says):
    settings = settings_for(root, synthetic_domain(model="champion"))
    settings = settings.model_copy(update={"retrain": Retrain(**SMALL | wrong)})
    with pytest.raises(SettingsError, match=says):
        retrain(settings)
    assert not (root / "retrain").exists()


def test_the_model_in_use_is_no_challenger_and_a_window_has_an_order(settings):
    with pytest.raises(BadInput, match="champion serves small already"):
        retrain(settings, challenger="champion")
    with pytest.raises(BadInput, match="before it begins"):
        operations.retrain(settings, "small", NOW, T0 + STEP, T0)
    assert not (settings.root / "retrain").exists()


def test_sums_that_were_cut_off_are_made_again(tmp_path):
    """A kill or a power cut leaves a part of a file, which stopped every further try of a retraining."""
    from pipeline.retrain.evaluation import _keep, _kept

    path = tmp_path / "20240601T020000Z.npz"
    _keep(path, {"hits": np.arange(5000)})
    whole = path.read_bytes()
    assert (_kept(path)["hits"] == np.arange(5000)).all()
    for damaged in (b"", whole[:1], whole[: len(whole) // 2], whole[:-1], whole[:40] + bytes(200) + whole[240:]):
        path.write_bytes(damaged)
        assert _kept(path) is None
    assert _kept(tmp_path / "none.npz") is None
