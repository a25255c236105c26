"""All work reports progress by one protocol, and every kind of callback is made from it."""

from __future__ import annotations

import functools
import logging

import pytest

from foveate.messages.display import CallingDisplay, ProgressUpdate, as_display, within
from helpers.progress import Recorder


def test_a_bar_with_its_title_is_the_callback_of_one_piece_of_work() -> None:
    display = Recorder()
    on_progress = functools.partial(display.bar, "reading")
    on_progress(1, 4)
    assert display.updates == [ProgressUpdate("reading", 1, 4)]


def test_the_progress_of_a_step_is_added_to_that_of_the_steps_before_it() -> None:
    display = Recorder()
    on_step = within(functools.partial(display.bar, "steps"), 2, 4)
    assert on_step is not None
    on_step(0.5)
    of_model = within(on_step, 1, 2)  # the second of two models about the third of four images
    assert of_model is not None
    of_model(3, 6)
    assert [update.done for update in display.updates] == [2.5, 2.75]
    assert {update.total for update in display.updates} == {4}
    assert within(None, 0, 1) is None


def test_a_function_of_a_python_caller_becomes_a_display(
    caplog: pytest.LogCaptureFixture,
) -> None:
    updates: list[ProgressUpdate] = []
    display = as_display(updates.append)
    display.bar("training", 1, 2, "epoch 1")
    assert updates == [("training", 1, 2, "epoch 1")]
    with caplog.at_level(logging.INFO, "foveate"):
        display.say("one line")
    assert caplog.messages == ["one line"]
    with pytest.warns(UserWarning, match="^too dark$"):
        display.say("warning: too dark")
    assert as_display(display) is display
    assert isinstance(as_display(None), CallingDisplay)
