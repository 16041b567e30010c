"""A steering vector from hidden states of texts in pairs: one of what is wanted, one of its opposite."""

from typing import Literal

import torch

Method = Literal["mean", "pca"]
METHODS: tuple[Method, ...] = ("mean", "pca")


def contrast(positive: torch.Tensor, negative: torch.Tensor, method: Method) -> torch.Tensor:
    """The direction from ``negative`` to ``positive`` after every layer.

    - ``mean``: the mean of the differences, as contrastive activation addition does (arXiv 2312.06681, section 3).
    - ``pca``: the first principal component of the differences, not centred, as representation engineering does
      (arXiv 2310.01405, section 3.1, whose differences have random signs and so the mean 0). It is turned to the side
      of ``positive``, and its length is the mean of the differences' projections on it (ours), so that a coefficient of
      1 means the same of both methods: as far as the pairs are apart.

    Args:
        positive, negative: [pairs, layers, hidden] float.

    Returns:
        [layers, hidden] float64; zeros after a layer where no pair differs.
    """
    apart = positive.double() - negative.double()
    if method == "mean":
        return apart.mean(dim=0)
    # [layers, pairs, hidden]: the first right singular vector of each layer's differences is the direction that
    # explains most of them. Its sign is arbitrary; the mean projection on it sets sign and length.
    by_layer = apart.transpose(0, 1)
    direction = torch.linalg.svd(by_layer, full_matrices=False).Vh[:, 0]
    return direction * (by_layer @ direction[:, :, None]).mean(dim=1)
