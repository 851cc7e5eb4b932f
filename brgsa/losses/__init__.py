"""The losses: what `brgsa_loss` adds up, each part in a module of its own."""

from brgsa.losses.contrasts import info_nce, sigmoid_loss
from brgsa.losses.gathering import gather
from brgsa.losses.loss import Losses, brgsa_loss
from brgsa.losses.pairs import Pairs, not_negatives, pairs_of
from brgsa.losses.supervised import Supervision, supervised_loss

__all__ = [
    "Losses",
    "Pairs",
    "Supervision",
    "brgsa_loss",
    "gather",
    "info_nce",
    "not_negatives",
    "pairs_of",
    "sigmoid_loss",
    "supervised_loss",
]
