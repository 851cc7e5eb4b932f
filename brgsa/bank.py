"""The Cross-Modal Knowledge Bank and the interaction with it (CMKI)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from brgsa.config import BankConfig
from brgsa.errors import UserError


class KnowledgeBank(nn.Module):
    """Re-expresses embeddings of either modality through one learnable bank M (K, D): softmax(x Mᵀ) M, row by row."""

    def __init__(self, config: BankConfig, width: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.empty(config.size, width))
        self.logit_scale = 1.0 / math.sqrt(width) if config.scale_logits else 1.0
        if config.init == "gaussian":
            nn.init.normal_(self.vectors)
        elif config.init == "xavier":
            nn.init.xavier_uniform_(self.vectors)
        elif config.init == "uniform":
            nn.init.uniform_(self.vectors, -0.1, 0.1)
        else:
            # k-means starts here too, until `initialise_from` gets embeddings.
            nn.init.orthogonal_(self.vectors)

    def forward(self, x: Tensor) -> Tensor:
        """Plain embeddings, float (B, D), to bridged ones of the same shape: weighted means of the bank's vectors."""
        return torch.softmax(x @ self.vectors.T * self.logit_scale, dim=-1) @ self.vectors

    @torch.no_grad()
    def initialise_from(self, embeddings: Tensor, seed: int = 0) -> None:
        """Set the bank to the K k-means centroids of embeddings, float (N, D) on any device.

        Raises:
            UserError: there are fewer embeddings than bank vectors.
        """
        from scipy.cluster.vq import kmeans2

        size = self.vectors.shape[0]
        if len(embeddings) < size:
            raise UserError(
                f"bank.init=kmeans needs at least bank.size={size} embeddings and the training split gives "
                f"{len(embeddings)}: choose a smaller bank.size or another bank.init.",
                code="too-few-embeddings",
                field="bank.size",
                value=size,
            )
        points = embeddings.detach().float().cpu().numpy()
        centroids, _ = kmeans2(points, size, minit="++", rng=seed, missing="warn")
        self.vectors.copy_(torch.from_numpy(centroids))
