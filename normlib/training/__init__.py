"""One training loop for every study, and the measures of what it trained."""

from normlib.training.evaluation import Evaluation, accuracy, evaluate, mode
from normlib.training.history import History, append_rows, log_steps
from normlib.training.loop import data_order, train
from normlib.training.losses import LOSSES, cross_entropy, make_loss, squared_error

__all__ = [
    "LOSSES",
    "Evaluation",
    "History",
    "accuracy",
    "append_rows",
    "cross_entropy",
    "data_order",
    "evaluate",
    "log_steps",
    "make_loss",
    "mode",
    "squared_error",
    "train",
]
