"""Policy gradients for hard choices: the log-probability of a draw, and baselines without bias.

A reward that no gradient reaches (right or wrong) still teaches a policy, since::

    d E[R] / d theta = E[(R - b) * d log p(draw) / d theta]

for every baseline b that does not depend on the draw itself. A mean that contains the draw's own
reward does depend on it, and shrinks the gradient by 1 / s.

Source: Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement
learning", 1992; leave-one-out baseline: Kool, van Hoof & Welling, "Buy 4 REINFORCE samples, get a
baseline for free!", ICLR 2019 workshop. ``tests/reference/test_tnet.py`` enumerates every draw.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def draw_log_prob(logits: Tensor, index: Tensor, valid: Tensor) -> Tensor:
    """Log-probability of each draw without replacement, given the draws before it.

    Their sum is the log-probability of the draw in this order.

    Args:
        logits: ``(m, k)`` of the policy; ``-inf`` marks what cannot be drawn, never a whole row.
        index: ``(m, n)`` what was drawn, in the order of drawing.
        valid: ``(m, n)`` bool; False marks draws of padding, which must come last.

    Returns:
        ``(m, n)``, 0 for padding.
    """
    left, found = logits, []
    for i in range(index.shape[1]):
        # A row may have nothing left; its draw is padding then, and only has to stay finite.
        row = torch.where(valid[:, i : i + 1], left, logits).log_softmax(-1)
        found.append(row.gather(1, index[:, i : i + 1])[:, 0])
        left = left.scatter(1, index[:, i : i + 1], -torch.inf)
    return torch.stack(found, 1).masked_fill(~valid, 0.0)


def leave_one_out(reward: Tensor) -> Tensor:
    """For every draw the mean reward of the other draws, ``(…, s)``.

    Raises:
        ValueError: fewer than two draws.
    """
    n = reward.shape[-1]
    if n < 2:
        raise ValueError("leaving one out needs at least two draws")
    return (reward.sum(-1, keepdim=True) - reward) / (n - 1)


def policy_loss(reward: Tensor, baseline: Tensor, log_prob: Tensor) -> Tensor:
    """What is minimised to raise the expected reward, element by element.

    Its gradient is the policy gradient; its value means nothing. Neither the reward nor the
    baseline gets a gradient.
    """
    return (baseline - reward).detach() * log_prob


class RunningReward(nn.Module):
    """Mean reward of the steps before this one: a baseline that costs no further draw.

    Args:
        start: value before the first step.
        decay: share of the old value that every step keeps.
    """

    value: Tensor

    def __init__(self, *, start: float = 0.5, decay: float = 0.9) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("value", torch.tensor(start))

    @torch.no_grad()
    def update(self, reward: Tensor) -> None:
        """Count in the mean reward of a step, after the step has used the value."""
        # A new tensor: the old one may belong to a graph that is still to be differentiated.
        self.value = self.value.lerp(reward.to(self.value), 1 - self.decay)
