"""What every aggregator promises, asked of every one that is found; and one that is dropped in."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from conftest import picture
from foveate import parts
from foveate.aggregators.base import AbstractAggregator
from foveate.bags.related import RelatedPool
from foveate.batch import Batch, View
from foveate.encoders.small import SmallEncoder
from foveate.errors import UnknownName
from foveate.loading.loader import CaseLoader
from foveate.methods.base import further_loss
from foveate.nn.heads import Head
from foveate.parts import add_plugin_folder, find, names
from foveate.parts.options import parse_options
from foveate.runs.card import ModelCard
from foveate.runs.checkpoint import Model, build_model, load_model, save_model
from foveate.table import Case

AGGREGATORS = names("aggregators")
HEADS = (Head("grade", 3, True, "none"), Head("tumour", 1, False, "max"))
VIEW = View(spacing_um=1.0, patch_px=16, glimpse_spacing_um=2.0)
DIM, N, K = 16, 7, 4

DROPPED_IN = '''
"""The mean of the tokens that are pooled, and a linear layer."""

from torch import nn

from foveate.aggregators.base import AbstractAggregator


class PlainMean(AbstractAggregator):
    """No relations and no attention.

    Args:
        encoder: the encoder whose features are the tokens.
        heads: the questions of the task.
        dropout: rate of dropout on the mean.
    """

    def __init__(self, *, encoder, heads, dropout):
        super().__init__()
        outputs = nn.Linear(encoder.dim, sum(head.size for head in heads))
        self.answers = nn.Sequential(nn.Dropout(dropout), outputs)

    def forward(self, tokens, valid, centre_patch, extent_patch, *, pooled, everywhere):
        """Average the tokens that are pooled."""
        share = pooled.float() / pooled.sum(1, keepdim=True).clamp_min(1)
        return self.answers((share.unsqueeze(-1) * tokens).sum(1)), share
'''


def build(name: str) -> AbstractAggregator:
    torch.manual_seed(0)
    encoder = SmallEncoder(width=8, dim=DIM)
    aggregator: AbstractAggregator = find("aggregators", name)(
        encoder=encoder, heads=HEADS, dropout=0.1
    )
    return aggregator.eval()


def tokens(b: int = 2) -> dict[str, Tensor]:
    """Patches, a tile that is not pooled, and a glimpse at the end; the last row is padded."""
    generator = torch.Generator().manual_seed(1)
    valid = torch.ones(b, N, dtype=torch.bool)
    valid[-1, 3:5] = False
    pooled = valid.clone()
    pooled[:, 5] = False
    everywhere = torch.zeros(b, N, dtype=torch.bool)
    everywhere[:, -1] = True
    return {
        "tokens": torch.randn(b, N, DIM, generator=generator),
        "valid": valid,
        "centre_patch": 4 * torch.rand(b, N, 2, generator=generator),
        "extent_patch": torch.ones(b, N),
        "pooled": pooled,
        "everywhere": everywhere,
    }


@pytest.mark.parametrize("name", AGGREGATORS)
def test_logits_of_all_heads_and_a_share_for_each_pooled_token(name: str) -> None:
    given = tokens()
    with torch.no_grad():
        logits, share = build(name)(**given)
    assert logits.shape == (2, K)
    assert logits.isfinite().all()
    assert share.shape == (2, N)
    assert (share >= 0).all()
    assert (share[~given["pooled"]] == 0).all()
    torch.testing.assert_close(share.sum(1), torch.ones(2))


@pytest.mark.parametrize("name", AGGREGATORS)
def test_padding_and_the_order_of_tokens_change_nothing(name: str) -> None:
    aggregator, given = build(name), tokens()
    changed = {k: v.clone() for k, v in given.items()}
    changed["tokens"][~given["valid"]] = 100.0
    changed["centre_patch"][~given["valid"]] = -50.0
    order = torch.tensor([4, 0, 6, 2, 1, 3, 5])
    mixed = {k: v[:, order] for k, v in given.items()}
    with torch.no_grad():
        logits, share = aggregator(**given)
        for other, expected in ((changed, share), (mixed, share[:, order])):
            same, others = aggregator(**other)
            torch.testing.assert_close(same, logits, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(others, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_it_learns_and_pickles(name: str) -> None:
    aggregator, given = build(name), tokens()
    given["tokens"].requires_grad_()
    logits, _ = aggregator(**given)
    logits.square().sum().backward()
    assert given["tokens"].grad is not None
    assert (given["tokens"].grad.abs().sum(-1) > 0)[given["pooled"]].all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in aggregator.parameters())
    again = pickle.loads(pickle.dumps(aggregator))
    with torch.no_grad():
        assert torch.equal(again(**given)[0], aggregator(**given)[0])


# -- in a method -----------------------------------------------------------------------------------


@pytest.fixture
def batch(tmp_path: Path) -> Iterator[Batch]:
    cases = [
        Case(str(i), str(i), picture(tmp_path / f"{i}.png", i), spacing_um=(1.0, 1.0))
        for i in range(2)
    ]
    loader = CaseLoader(VIEW)
    with ThreadPoolExecutor(1) as pool:
        yield Batch(
            [loader.load(case) for case in cases],
            view=VIEW,
            normalise=((0.5,) * 3, (0.25,) * 3),
            device=torch.device("cpu"),
            pool=pool,
        )
    loader.close()


@pytest.fixture
def plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """One class in one file; nothing else knows of it."""
    monkeypatch.setattr(parts, "_folders", [])
    path = tmp_path / "plug-ins" / "aggregators" / "plain_mean.py"
    path.parent.mkdir(parents=True)
    path.write_text(DROPPED_IN, encoding="utf-8")
    add_plugin_folder(tmp_path / "plug-ins")
    return "plain_mean"


def build_method(method: str, options: dict[str, object]) -> Model:
    torch.manual_seed(0)
    size = {"width": 8, "dim": DIM}
    settled = {"classes": ["dark", "plain"]}
    card = ModelCard(method, options, "small", size, "binary", {}, settled, VIEW)
    return build_model(card, pretrained=False)


@pytest.mark.parametrize("method", ["glimpse", "glimpse_zoom"])
def test_one_that_is_dropped_in_is_trained_stored_and_read(
    method: str, plug_in: str, batch: Batch, tmp_path: Path
) -> None:
    zoom = {"zoom": (2.0,), "looks": 2} if method == "glimpse_zoom" else {}
    model = build_method(method, {"aggregator": plug_in, "patches": 4, "eval_patches": 4} | zoom)
    net = model.method.aggregator
    assert type(net).__name__ == "PlainMean"
    before = [p.detach().clone() for p in net.parameters()]
    optimizer = torch.optim.SGD(model.method.parameters(), lr=0.1)
    target = torch.tensor([0, 1])
    prediction = model.method.train()(batch)
    loss = model.task.loss(prediction.logits, target) + further_loss(model.task, prediction, target)
    loss.backward()
    optimizer.step()
    assert all(not torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True))
    save_model(tmp_path / "model", model.card, model.method.state_dict())
    again = load_model(tmp_path / "model").method.eval()
    with torch.inference_mode():
        shown, expected = again(batch), model.method.eval()(batch)
    assert torch.equal(shown.logits, expected.logits)
    for evidence in shown.evidence:
        assert evidence.weight.sum() == pytest.approx(1)
        if not zoom:
            assert 0 < evidence.remainder < 1


@pytest.mark.parametrize("method", ["glimpse", "glimpse_zoom"])
def test_the_default_stores_the_weights_of_a_related_pool(method: str) -> None:
    """The names of the weights do not depend on the default's class, only on `RelatedPool`."""
    net = build_method(method, {}).method
    encoder = SmallEncoder(width=8, dim=DIM)
    pool = RelatedPool(encoder, HEADS[1:], layers=1, attention_heads=8, dropout=0.1)
    assert {n.split(".")[0] for n in net.aggregator.state_dict()} == {"position", "relate", "pool"}
    net.aggregator.load_state_dict(pool.state_dict())
    assert {n for n in net.state_dict() if "aggregator" in n} == {
        f"aggregator.{n}" for n in pool.state_dict()
    }


def test_a_wrong_name_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(UnknownName, match=r"no aggregator 'relatd'\. Did you mean 'related'"):
        parse_options(find("methods", "glimpse"), {"aggregator": "relatd"}, "method")
