"""Several questions about one image."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.mnist.tasks import DigitTask, JointTask, PresenceTask
from foveate.nn.heads import Head


def test_chance_loss_of_a_joint_task_is_the_mean_over_its_questions() -> None:
    digit = DigitTask(classes=["0", "1", "2"], head=Head("digit", 3, True, "none"))
    joint = JointTask({"digit": digit, "seen": PresenceTask(classes=["0", "1"])})
    answers = ["digit=0;seen=0", "digit=0;seen=0 1", "digit=1;seen=", "digit=2;seen=1"] * 5
    target = torch.tensor([joint.parse(answer) for answer in answers])
    of_four = 1.5 * math.log(2)  # 1/2, 1/4, 1/4; each digit is seen in half of the images
    expected = (of_four + math.log(2)) / 2
    assert joint.chance_loss(target) == pytest.approx(expected, abs=1e-5)
