"""One training loop for every study, and the measures of what it trained."""

from normlib.training.clipping import adaptive_clip, adaptive_clip_grad_, parameters_except, unitwise_norm
from normlib.training.evaluation import Evaluation, accuracy, evaluate, mode
from normlib.training.history import History, append_rows, log_steps
from normlib.training.loop import data_order, train
from normlib.training.losses import LOSSES, cross_entropy, make_loss, squared_error

__all__ = [
    "LOSSES",
    "Evaluation",
    "History",
    "accuracy",
    "adaptive_clip",
    "adaptive_clip_grad_",
    "append_rows",
    "cross_entropy",
    "data_order",
    "evaluate",
    "log_steps",
    "make_loss",
    "mode",
    "parameters_except",
    "squared_error",
    "train",
    "unitwise_norm",
]
