"""A network from scratch that no epoch trains is refused."""

from __future__ import annotations

import pytest

from foveate.errors import OptionError
from foveate.runs.schedule import TrainOptions, settle_schedule


def test_no_epoch_for_a_network_from_scratch_is_refused() -> None:
    options = TrainOptions(epochs=0)
    with pytest.raises(OptionError, match=r"train\.epochs: 0 leaves nothing to learn"):
        settle_schedule(options, 20, pretrained=False)
    assert settle_schedule(options, 20, pretrained=True).epochs == 0
