"""The lab: studies, records, the engine that runs them, and verdicts. It knows no study and no network."""

from normlib.lab.claims import (
    Claim,
    Judgement,
    Verdict,
    bootstrap_interval,
    judge_effect,
    judge_identity,
    number,
)
from normlib.lab.engine import Outcome, execute, run, seed_everything
from normlib.lab.records import Record, RecordWarning, Store
from normlib.lab.study import PRESETS, Config, Diverged, Drawing, Study, table_of

__all__ = [
    "PRESETS",
    "Claim",
    "Config",
    "Diverged",
    "Drawing",
    "Judgement",
    "Outcome",
    "Record",
    "RecordWarning",
    "Store",
    "Study",
    "Verdict",
    "bootstrap_interval",
    "execute",
    "judge_effect",
    "judge_identity",
    "number",
    "run",
    "seed_everything",
    "table_of",
]
