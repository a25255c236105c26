"""Answers that go up step by step: each logit says how likely it is to go on beyond one step.

The continuation ratio is the model of ordered grades (going on beyond a grade) and of survival in
discrete time (going on without an event). All steps that an image did not come to are left out, so
that the loss is a likelihood, and is convex in the logits.

Sources: Fienberg, The Analysis of Cross-Classified Categorical Data (1980), for the continuation
ratio; Cox, JRSS B 34 (1972), 187, section 8, for survival in discrete time.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional


def continuation_losses(
    logits: Float[Tensor, "m k"],
    passed: Int[Tensor, " m"],
    stopped: Bool[Tensor, " m"],
    smoothing: float = 0.0,
) -> Float[Tensor, " m"]:
    """Compute the negative log-likelihood of each row, ``(m,)``.

    Args:
        logits: log odds of going on beyond each of k steps, ``(m, k)``.
        passed: number of steps that the row went beyond, ``(m,)``.
        stopped: whether it is known that it went no further, ``(m,)``; of no meaning where all
            steps were passed.
        smoothing: label smoothing of the answer at every step.
    """
    step = torch.arange(logits.shape[1], device=logits.device)
    count, ends = passed.to(logits.device)[:, None], stopped.to(logits.device)[:, None]
    asked = (step < count) | ((step == count) & ends)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    goes_on = (step < count).to(wide) * (1 - smoothing) + smoothing / 2
    losses = functional.binary_cross_entropy_with_logits(wide, goes_on, reduction="none")
    return (losses * asked).sum(-1)


def continuation_shares(logits: Float[Tensor, "m k"]) -> Float[Tensor, "m k"]:
    """Compute the probabilities of going beyond each step, ``(m, k)`` in float64.

    Args:
        logits: log odds of going on beyond each step, ``(m, k)``.
    """
    return functional.logsigmoid(logits.double()).cumsum(-1).exp()
