"""Settings of retraining."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from pipeline.domain import as_tuple
from pipeline.source_settings import Frozen


class Retrain(Frozen):
    """How models are trained again, and when the new one takes the place of the one in use (``pipeline.retrain``).

    Attributes:
        network, network_config, batch, crop, leads_in_step, learning_rate, steps, minutes, seed: of the training.
        start_from: with the weights of the model in use, if its architecture is the same, or from scratch.
        also: further domains whose archive is learnt from.
        window_days: newest part of the archive that is used.
        tune_share, decide_share: of the window, the newest frames of what is learnt from, and the newest of all.
        gap_minutes: between the parts, so that the weather of one is not that of the next.
        fewest_times: to learn from; with fewer, nothing is trained.
        forecasts: most that are made to decide.
        confidence: of the interval that must leave out 0.
        margin: by which the CSI at no threshold may be worse.
        calibration_margin: by which the reliability term may be worse, as a share of the event's variance.
        forecast_s: most seconds for a forecast.
        fewest_wet_blocks: independent spells with rain; with fewer, the model in use stays.
        shadow_hours: that a better challenger forecasts live beside the model in use before it serves; 0 is none.
        online: the model in use is tuned between cycles on what was just observed (Shi et al. 2017, the online setting
            of HKO-7), and forecasts beside until the rule lets it serve.
        online_hours, online_steps: newest frames that it is tuned on, and for how long.
        online_shadow_hours: that it forecasts beside at least.
    """

    network: str = "growth_decay"
    network_config: dict[str, Any] = Field(default_factory=dict)
    start_from: Literal["model", "scratch"] = "model"
    also: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = ()
    steps: int = Field(1000, ge=1, le=10**7)
    minutes: float = Field(120.0, gt=0, le=10**5)
    batch: int = Field(6, ge=1, le=4096)
    crop: int = Field(128, ge=16, le=4096)
    leads_in_step: int = Field(3, ge=0, le=72)
    learning_rate: float = Field(3e-4, gt=0, le=1)
    seed: int = Field(0, ge=0)
    window_days: float = Field(60.0, gt=0, le=36500)
    tune_share: float = Field(0.15, gt=0, le=0.5)
    decide_share: float = Field(0.25, gt=0, le=0.5)
    gap_minutes: float = Field(120.0, ge=0, le=10080)
    fewest_times: int = Field(50, ge=1)
    forecasts: int = Field(500, ge=1, le=100000)
    confidence: float = Field(0.9, ge=0.5, lt=1)
    margin: float = Field(0.01, ge=0, le=1)
    calibration_margin: float = Field(0.02, ge=0, le=1)
    forecast_s: float = Field(30.0, gt=0)
    fewest_wet_blocks: int = Field(20, ge=6, le=10000)
    shadow_hours: float = Field(0.0, ge=0, le=8760)
    online: bool = False
    online_hours: float = Field(6.0, gt=0, le=168)
    online_steps: int = Field(50, ge=1, le=10**5)
    online_shadow_hours: float = Field(12.0, gt=0, le=8760)
