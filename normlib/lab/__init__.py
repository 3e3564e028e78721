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
from normlib.lab.config import Config, Diverged
from normlib.lab.records import Record, RecordWarning, Store
from normlib.lab.running.engine import LabWarning, Outcome, run
from normlib.lab.running.trial import Task, execute, seed_everything
from normlib.lab.study import PRESETS, Drawing, Study
from normlib.lab.table import table_of

__all__ = [
    "PRESETS",
    "Claim",
    "Config",
    "Diverged",
    "Drawing",
    "Judgement",
    "LabWarning",
    "Outcome",
    "Record",
    "RecordWarning",
    "Store",
    "Study",
    "Task",
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
