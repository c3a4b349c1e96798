"""Training: the loop, gradients in shards, evaluation, and a run that can be killed and resumed."""

from .evaluation import evaluate
from .gradients import loss_and_gradients, loss_of, sharded_loss_and_gradients
from .loop import fit
from .run import History

__all__ = ["History", "evaluate", "fit", "loss_and_gradients", "loss_of", "sharded_loss_and_gradients"]
