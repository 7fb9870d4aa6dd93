"""Skill on events that a model never saw: ``python -m tests.benchmarks.event_folds ROOT``.

For each fold a network is trained on all others, then every domain of the fold is forecast from every frame by it,
by the control and by the baselines, and scored by the verification of the product. Takes hours on two cores; what is
there already is not done again. Writes ``folds.csv``: the rows of all reports.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd

from pipeline.settings import load
from tests.conftest import PROJECT

# folds, and the domains that are in them; Brisbane is an unseen place, whose data no shipped model may learn from
FOLDS = {
    "fmi": ("finland",),
    "knmi_mrms": ("netherlands", "conus"),
    "mch": ("swiss_summer", "swiss_winter"),
    "brisbane": ("brisbane",),
}
LEARNT = ("finland", "netherlands", "conus", "swiss_summer", "swiss_winter")
PERIODS = {
    "finland": ("2016-09-28T15:05Z", "2016-09-28T17:55Z"),
    "netherlands": ("2010-08-26T00:20Z", "2010-08-26T07:30Z"),
    "swiss_summer": ("2016-07-11T21:05Z", "2016-07-11T23:55Z"),
    "swiss_winter": ("2017-01-31T10:05Z", "2017-01-31T12:55Z"),
    "brisbane": ("2020-10-31T00:40Z", "2020-10-31T12:50Z"),
    "conus": ("2019-06-10T00:24Z", "2019-06-10T00:54Z"),
}
# trained in the moving frame, for a fold each: further options of `python -m models.training`. Ten to seventeen minutes
# of one core; what takes no part of its leads is slower, and gets fewer steps
COMMON = "--crop 128 --batch 6"
NETWORKS = {
    "growth_decay": f"{COMMON} --leads-in-step 3 --learning-rate 2e-3 --steps 2500 --validate-every 250",
    "convlstm": f"{COMMON} --bf16 --learning-rate 2e-3 --steps 600 --validate-every 60 --network-config "
    '{"widths":[32,32],"head":"ordinal","from_newest":true}',
    "dc": f"{COMMON} --bf16 --learning-rate 1e-3 --steps 400 --validate-every 50 --loss mse --network-config "
    '{"input_frames":3,"taps":21,"from_newest":true}',
}
CONTROLS = ("area_matched",)
# of pysteps, on the pixels of the first network; a minute of a core for each ten forecasts
REFERENCES = ("anvil", "sprog")


def command(*words: str) -> None:
    """Run one of ours; what it says is shown."""
    print("+", *words, flush=True)
    subprocess.run([sys.executable, "-m", *words], cwd=PROJECT, check=False)


def train(root: Path, config: Path, fold: str, network: str) -> Path:
    """The model of a fold."""
    data, out = root / f"data_{fold}", root / f"{network}_{fold}"
    if not data.is_dir():
        rest = [name for name in LEARNT if name not in FOLDS[fold]]
        share = ("--validation-share", "0")
        command("flows.cli", "dataset", "build", str(data), *rest, *share, "--config", str(config))
    if not out.is_dir():
        options = (*NETWORKS[network].split(), "--threads", "1")
        command("models.training", str(data), "--out", str(out), "--network", network, *options)
    return out


def score(root: Path, config: Path, domain: str, name: str, model: str) -> pd.DataFrame:
    """Forecast a domain from every frame of its period by one model, verify, and read the scores."""
    folder = root / f"run_{name}"
    settings = ["--config", str(config), "--set", f"root={folder}", "--set", f"domains.{domain}.model={model}"]
    if name == next(iter(NETWORKS)) and domain != "conus":  # pysteps needs an hour for its six million cells
        settings += ["--set", f"domains.{domain}.verification.references={json.dumps(REFERENCES)}"]
    start, end = PERIODS[domain]
    found = list((folder / "reports" / domain).glob("*.csv"))
    if not found:
        command("flows.cli", "backfill", domain, "--from", start, "--to", end, *settings)
        command("flows.cli", "report", domain, "--out", str(folder / "reports" / domain), *settings)
        found = list((folder / "reports" / domain).glob("*.csv"))
    return pd.read_csv(found[0]).assign(domain=domain, run=name)


def main() -> None:
    """Train, forecast and score what is not there yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--folds", default=",".join(FOLDS))
    parser.add_argument("--models", default=",".join((*NETWORKS, *CONTROLS)), help="of them only these")
    wanted = parser.parse_args()
    root, config = wanted.root.resolve(), PROJECT / "infra" / "domains" / "folds.toml"
    load(config)
    root.mkdir(parents=True, exist_ok=True)
    tables = []
    for fold in wanted.folds.split(","):
        chosen = wanted.models.split(",")
        models = {network: str(train(root, config, fold, network)) for network in NETWORKS if network in chosen}
        for domain in FOLDS[fold]:
            for name, model in (models | {control: control for control in CONTROLS if control in chosen}).items():
                tables.append(score(root, config, domain, name, model).assign(fold=fold))
    pd.concat(tables).to_csv(root / "folds.csv", index=False)
    print(root / "folds.csv")


if __name__ == "__main__":
    main()
