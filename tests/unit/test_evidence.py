"""Evidence peaks where most of the weight lies, not at the box that happens to be the heaviest."""

from __future__ import annotations

import numpy as np
import pytest

from foveate.images.evidence import Evidence


def evidence_at(
    centres: list[tuple[float, ...]], weight: list[float], side: float = 8.0
) -> Evidence:
    """Return evidence of boxes of one size by their centres, in micrometres."""
    centre = np.asarray(centres, float)
    size = np.full_like(centre, side)
    return Evidence(centre - size / 2, size, np.asarray(weight))


@pytest.mark.parametrize("axes", [2, 3])
def test_a_cluster_of_boxes_outweighs_a_single_box_that_is_slightly_heavier(axes: int) -> None:
    """The peak is the middle of the cluster, though its own weight is the least of the three."""
    rest = (100.0,) * (axes - 1)
    centres = [(500.0, *rest), (92.0, *rest), (100.0, *rest), (108.0, *rest)]
    evidence = evidence_at(centres, [0.3, 0.25, 0.2, 0.25])
    assert evidence.peak_um().centre == (100.0, *rest)
    assert evidence.heaviest_um().centre == (500.0, *rest)


def test_a_single_box_with_most_of_the_weight_is_the_peak() -> None:
    centres = [(500.0, 100.0), (92.0, 100.0), (100.0, 100.0), (108.0, 100.0)]
    assert evidence_at(centres, [0.7, 0.1, 0.1, 0.1]).peak_um().centre == (500.0, 100.0)


def test_boxes_far_apart_do_not_add_up() -> None:
    centres = [(16.0 * k, 0.0) for k in range(1, 5)]
    assert evidence_at(centres, [0.1, 0.4, 0.3, 0.2]).peak_um().centre == (32.0, 0.0)


def test_the_peak_is_that_of_a_sum_over_all_pairs_written_as_loops() -> None:
    rng = np.random.default_rng(0)
    origin, size = rng.uniform(0, 60, (40, 2)), rng.uniform(6, 12, (40, 2))
    weight = rng.dirichlet(np.ones(40))
    centre, reach = origin + size / 2, 2 * size.min(0)
    around = np.zeros(40)
    for i in range(40):
        for j in range(40):
            apart = np.abs(centre[i] - centre[j]) / reach
            around[i] += weight[j] * max(0.0, 1 - apart[0]) * max(0.0, 1 - apart[1])
    peak = Evidence(origin, size, weight).peak_um()
    assert peak.origin == tuple(origin[int(np.argmax(around))])


def test_evidence_of_many_boxes_has_its_peak_at_once() -> None:
    """A hundred thousand boxes take no table of all pairs."""
    side = 320
    y, x = np.divmod(np.arange(side * side), side)
    centre = np.stack([y, x], 1) * 8.0
    weight = np.exp(-(np.hypot(y - 200, x - 17) ** 2) / 50) + 1e-3
    assert evidence_at(centre.tolist(), weight.tolist()).peak_um().centre == (1600.0, 136.0)
