"""Training: the loop, gradients in shards, evaluation, and a run that can be killed and resumed."""

from .distillation import distillation
from .evaluation import evaluate
from .gradients import loss_and_gradients, loss_of, sharded_loss_and_gradients
from .history import History
from .loop import fit

__all__ = ["History", "distillation", "evaluate", "fit", "loss_and_gradients", "loss_of", "sharded_loss_and_gradients"]
