"""The page that compares a challenger with the model in use: the rule, what was found, and the scores."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import times
from pipeline.domain import Domain
from pipeline.retrain.decision import SEED
from pipeline.retrain.evaluation import Evidence
from pipeline.retrain.plan import Plan, folder_of
from pipeline.storage import Store
from pipeline.verification import figures, summary
from pipeline.verification.bootstrap import FEWEST_BLOCKS
from pipeline.verification.report import csi_rows
from pipeline.verification.tables import estimates

if TYPE_CHECKING:
    from pipeline.retrain.run import Retrained

FIELDS = ("mse", "rain_mae", "rain_ratio", "correlation")


def write_page(domain: Domain, store: Store, plan: Plan, done: "Retrained", evidence: Evidence, now: datetime) -> Path:
    """Write ``index.html`` of a retraining; returns its path."""
    from jinja2 import Environment, FileSystemLoader, select_autoescape

    verified = evidence.verified
    assert verified is not None
    found = {one.score: one for one in estimates(verified, "common", SEED)}
    other = verified.methods[1]
    compared = summary.verdicts(verified, found["csi"], verified.methods[0], other)
    shaded = "Shaded: 95 % intervals." if verified.block_count >= FEWEST_BLOCKS else "Too few blocks for intervals."
    pictures = [
        ("Critical success index against lead time", shaded, figures.against_lead(found["csi"], verified, "CSI")),
        ("Errors, correlation and amount of rain", shaded, figures.errors(found, verified, FIELDS)),
        ("Fractions skill score by scale", "", figures.fss_by_scale(found["fss"], verified)),
        (
            "Spectra: structure that is left",
            "Power relative to the observation; below 1 the forecast is smoother. Grey: showers, 4 to 16 km.",
            figures.spectra(verified),
        ),
    ]
    for one, whose in ((verified, "the challenger"), (evidence.in_use, "the model in use")):
        if one is not None and "bin_pairs" in one.by_hour:
            pictures.append((f"Reliability of probabilities of {whose}", "", figures.reliability(one)))
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(["j2"]))
    text = environment.get_template("page.html.j2").render(
        domain=domain,
        plan=plan,
        done=done,
        said=[summary.belief(compared), *map(summary.sentence, compared), summary.about_certainty(verified)],
        amount=[line for m in verified.methods[:2] for line in summary.about_amount_and_blur(verified, m)],
        methods=verified.methods,
        rows=csi_rows(verified, found["csi"]),
        figures=pictures,
        made=times.iso(now.replace(microsecond=0)),
    )
    path = folder_of(store, plan.domain, plan.id) / "index.html"
    with store.publish(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
