"""One training loop for every study, and the measures of what it trained."""

from normlib.training.augmentation import AUGMENTATIONS, HorizontalFlip, Mixup, Pipeline, RandomCrop
from normlib.training.clipping import CLIPS, adaptive_clip, adaptive_clip_grad_, make_clip, parameters_except, unitwise_norm
from normlib.training.evaluation import Evaluation, accuracy, evaluate, mode
from normlib.training.execution import EXECUTIONS
from normlib.training.history import History, append_rows, log_steps
from normlib.training.loop import data_order, train
from normlib.training.losses import LOSSES, cross_entropy, make_loss, squared_error
from normlib.training.optimizers import OPTIMIZERS, make_optimizer, weights_and_others
from normlib.training.probing import Step, accuracy_probe
from normlib.training.schedules import SCHEDULES, make_schedule
from normlib.training.stacked import ChangeGradients, Named
from normlib.training.together import train_together
from normlib.training.update import Update

__all__ = [
    "AUGMENTATIONS",
    "CLIPS",
    "EXECUTIONS",
    "LOSSES",
    "OPTIMIZERS",
    "SCHEDULES",
    "ChangeGradients",
    "Evaluation",
    "History",
    "HorizontalFlip",
    "Mixup",
    "Named",
    "Pipeline",
    "RandomCrop",
    "Step",
    "Update",
    "accuracy",
    "accuracy_probe",
    "adaptive_clip",
    "adaptive_clip_grad_",
    "append_rows",
    "cross_entropy",
    "data_order",
    "evaluate",
    "log_steps",
    "make_clip",
    "make_loss",
    "make_optimizer",
    "make_schedule",
    "mode",
    "parameters_except",
    "squared_error",
    "train",
    "train_together",
    "unitwise_norm",
    "weights_and_others",
]
