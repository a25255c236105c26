"""Policy gradients for discrete choices: the log-probability of a draw, and unbiased baselines.

A reward without a gradient (right or wrong) can still train a policy, since::

    d E[R] / d theta = E[(R - b) * d log p(draw) / d theta]

for every baseline b that does not depend on the draw. A mean that contains the draw's own reward
does depend on it; with s draws it shrinks the gradient by the factor 1 - 1 / s.

Source: Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement
learning", 1992; leave-one-out baseline: Kool, van Hoof & Welling, "Buy 4 REINFORCE samples, get a
baseline for free!", ICLR 2019 workshop. ``tests/reference/test_tnet.py`` enumerates every draw.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from foveate.errors import ArrayError


def draw_log_prob(
    logits: Float[Tensor, "m k"], index: Int[Tensor, "m n"], valid: Bool[Tensor, "m n"]
) -> Float[Tensor, "m n"]:
    """Compute the log-probability of each draw without replacement, given the draws before it.

    The sum over a row is the log-probability of its draws in this order.

    Args:
        logits: logits of the policy, ``(m, k)``; ``-inf`` for entries that cannot be drawn, never
            for a whole row.
        index: numbers of the drawn entries, ``(m, n)``, in the order of drawing.
        valid: False for draws of padding, ``(m, n)`` bool; they must come last.

    Returns:
        Log-probabilities ``(m, n)``, 0 for padding.
    """
    remaining, log_probs = logits, []
    for i in range(index.shape[1]):
        # A row may have no entry left; its draw is padding then, and only has to stay finite.
        row = torch.where(valid[:, i : i + 1], remaining, logits).log_softmax(-1)
        log_probs.append(row.gather(1, index[:, i : i + 1])[:, 0])
        remaining = remaining.scatter(1, index[:, i : i + 1], -torch.inf)
    return torch.stack(log_probs, 1).masked_fill(~valid, 0.0)


def leave_one_out(reward: Float[Tensor, "*b s"]) -> Float[Tensor, "*b s"]:
    """Compute for each draw the mean reward of the other draws, as its baseline.

    Args:
        reward: rewards of s draws, ``(…, s)``.

    Returns:
        The baselines ``(…, s)``.

    Raises:
        ArrayError: fewer than two draws.
    """
    n = reward.shape[-1]
    if n < 2:
        raise ArrayError("leaving one out needs at least two draws")
    return (reward.sum(-1, keepdim=True) - reward) / (n - 1)


def policy_loss(
    reward: Float[Tensor, " *b"], baseline: Float[Tensor, " ..."], log_prob: Float[Tensor, " *b"]
) -> Float[Tensor, " *b"]:
    """Compute the loss, element by element, whose gradient is minus the policy gradient.

    Its value has no meaning. Neither the reward nor the baseline gets a gradient.

    Args:
        reward: rewards of draws, ``(…)``.
        baseline: baselines, ``(…)`` or a shape that expands to it.
        log_prob: log-probabilities of the draws, ``(…)``.

    Returns:
        The losses ``(…)``.
    """
    return (baseline - reward).detach() * log_prob


class RunningReward(nn.Module):
    """A running mean of the rewards of earlier steps, as a baseline that needs no further draw.

    Args:
        start: value before the first step.
        decay: weight of the old value in each update.
    """

    value: Float[Tensor, ""]

    def __init__(self, *, start: float = 0.5, decay: float = 0.9) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("value", torch.tensor(start))

    @torch.no_grad()
    def update(self, reward: Float[Tensor, ""]) -> None:
        """Update the running mean by the mean reward ``()`` of a step, after its use there."""
        # A new tensor: the old one may belong to a graph that is still to be differentiated.
        self.value = self.value.lerp(reward.to(self.value), 1 - self.decay)
