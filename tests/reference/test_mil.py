"""Multiple instance learning against loops over images, classes and patches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from foveate.bags.embedding import Bag, compute_output_weights, compute_patch_shares
from foveate.batch import Batch, Patches, View
from foveate.encoders.small import SmallEncoder
from foveate.errors import OptionError
from foveate.methods.base import (
    AbstractMethod,
    Auxiliary,
    Penalty,
    Prediction,
    further_loss,
)
from foveate.methods.clam import Clustering
from foveate.nn.heads import Head
from foveate.parts import find
from foveate.tasks.binary import BinaryTask
from foveate.tasks.multiclass import MulticlassTask
from helpers.compare import assert_near

DIM = 6
CLASSES = Head("class", 3, True, "sum")
SIGNS = Head("sign", 2, False, "max")
HEADS = (CLASSES, SIGNS)
LENGTHS = (9, 1, 20, 2)

METHODS: list[tuple[str, dict[str, Any]]] = [
    ("mil_mean", {"dropout": 0.0, "instance": 1.0}),
    ("mil_max", {}),
    ("abmil", {"dropout": 0.0}),
    ("abmil", {"pooling": "additive", "k_min": 3.0}),
    ("clam", {"dropout": 0.0, "width": 10, "hidden": 7, "instance": 1.0}),
    ("clam", {"dropout": 0.0, "width": 10, "hidden": 7, "branch": "multi"}),
    ("dsmil", {"hidden": 5}),
    ("transmil", {"dropout": 0.0, "width": 16, "landmarks": 4}),
]
EVERY = pytest.mark.parametrize(
    ("name", "options"),
    METHODS,
    ids=lambda x: x if isinstance(x, str) else x.get("branch", x.get("aggregator", "")),
)


class BagInputs:
    """A substitute for bag and batch that returns given features, masks and places."""

    def __init__(self, f: Tensor, valid: Tensor, centre: Tensor) -> None:
        self.f, self.valid, self.centre = f, valid, centre
        box = SimpleNamespace(size=(1.0,) * centre.shape[-1])
        self.items = [SimpleNamespace(image=SimpleNamespace(box_um=box))] * len(f)

    def cover(self, batch: Any, *, training: bool) -> list[Patches]:
        return [Patches(np.zeros((int(n), 2)), np.ones(int(n))) for n in self.valid.sum(1)]

    def embed(self, *_: Any) -> tuple[Tensor, Tensor]:
        return self.f, self.valid

    def layout(self, patches: Any, n: int) -> tuple[Tensor, Tensor]:
        return self.centre, torch.ones_like(self.centre[..., 0])

    def evidence(
        self, patches: Sequence[Patches], weight: Tensor, *, by_output: Tensor | None = None
    ) -> Any:
        assert (weight >= 0).all()
        assert (weight.masked_select(~self.valid) == 0).all()
        return Batch.evidence(cast(Batch, self), patches, weight, by_output=by_output)


def build(name: str, heads: Sequence[Head] = HEADS, **options: Any) -> AbstractMethod:
    torch.manual_seed(0)
    encoder = SmallEncoder(width=8, dim=DIM)
    method = find("methods", name)(encoder=encoder, heads=heads, **options).double()
    for parameter in method.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter)
    return cast(AbstractMethod, method)


def problem(lengths: Sequence[int] = LENGTHS, *, n: int | None = None) -> BagInputs:
    """Return bags of these lengths at distinct places of a lattice."""
    generator = torch.Generator().manual_seed(1)
    n = n or max(lengths)
    f = torch.randn(len(lengths), n, DIM, dtype=torch.float64, generator=generator)
    valid = torch.arange(n) < torch.tensor(lengths)[:, None]
    cells = torch.stack([torch.randperm(64, generator=generator)[:n] for _ in lengths])
    centre = torch.stack([cells // 8, cells % 8], -1) + 0.3
    return BagInputs(f * valid.unsqueeze(-1), valid, centre.float() * valid.unsqueeze(-1))


def run(method: AbstractMethod, inputs: BagInputs) -> Prediction:
    method.bag = inputs  # type: ignore[assignment]
    return cast(Prediction, method(inputs))


def bags(inputs: BagInputs) -> list[Tensor]:
    return [row[mask] for row, mask in zip(inputs.f, inputs.valid, strict=True)]


# -- every method ----------------------------------------------------------------------------------


def outputs_and_gradients(method: AbstractMethod, inputs: BagInputs) -> dict[str, Tensor]:
    """Return all outputs of a training step and the gradients of their random projection."""
    method.zero_grad()
    inputs.f.requires_grad_()
    prediction = run(method, inputs)
    outputs = {"logits": prediction.logits}
    for key, loss in prediction.further.items():
        outputs |= {
            f"{key} {i}": output for i, output in enumerate(loss) if isinstance(output, Tensor)
        }
    generator = torch.Generator().manual_seed(2)
    total = torch.zeros((), dtype=torch.float64)
    for output in outputs.values():
        total = total + (output * torch.randn(output.shape, generator=generator)).sum()
    parts = {f"d {k}": p for k, p in method.named_parameters() if not k.startswith("encoder")}
    parts["d f"] = inputs.f
    gradients = torch.autograd.grad(total, list(parts.values()), allow_unused=True)
    assert all(g is not None for g in gradients), "all that is learnt is used"
    outputs |= dict(zip(parts, cast(tuple[Tensor, ...], gradients), strict=True))
    return {key: output.detach().clone() for key, output in outputs.items()}


@EVERY
def test_padding_changes_nothing(name: str, options: dict[str, Any]) -> None:
    """Rows of garbage that are not valid change no output, no gradient and no buffer (trap 9)."""
    method, inputs = build(name, **options).train(), problem()
    before = {key: value.clone() for key, value in method.named_buffers()}
    plain = outputs_and_gradients(method, inputs)
    more = problem(n=max(LENGTHS) + 5)
    garbage = 30 * torch.randn(more.f.shape, dtype=torch.float64)
    inside = torch.cat([inputs.f.detach(), torch.zeros(len(LENGTHS), 5, DIM)], 1)
    filled = torch.where(more.valid.unsqueeze(-1), inside, garbage)
    place = torch.cat([inputs.centre, torch.zeros(len(LENGTHS), 5, 2)], 1)
    place = torch.where(more.valid.unsqueeze(-1), place, 3.7)
    padded = outputs_and_gradients(method, BagInputs(filled, more.valid, place))
    inner = padded.pop("d f")
    assert (inner[~more.valid] == 0).all()
    assert_near(inner[more.valid], plain.pop("d f")[inputs.valid])
    assert padded.keys() == plain.keys()
    for key, expected in plain.items():
        assert_near(padded[key], expected)
    assert all(torch.equal(value, before[key]) for key, value in method.named_buffers())
    taken = outputs_and_gradients(method, BagInputs(filled, torch.ones_like(more.valid), place))
    assert (taken["logits"] - plain["logits"]).abs().amax(1).min() > 1e-4, "padding would tell"


@EVERY
def test_the_order_of_patches_changes_nothing(name: str, options: dict[str, Any]) -> None:
    """Permuted patches with their places give the same logits and evidence (trap 22)."""
    method, inputs = build(name, **options).eval(), problem((20, 20, 20))
    turn = torch.randperm(20)
    turned = BagInputs(inputs.f[:, turn], inputs.valid, inputs.centre[:, turn])
    with torch.no_grad():
        first, second = run(method, inputs), run(method, turned)
    assert_near(second.logits, first.logits)
    for a, b in zip(first.evidence, second.evidence, strict=True):
        np.testing.assert_allclose(b.weight, a.weight[turn], atol=1e-10)
        assert b.weight.sum() == pytest.approx(1, abs=1e-12)
        assert b.weight.max() - b.weight.min() > 1e-6, "equal weights could not be disordered"


@EVERY
def test_positions_matter_only_where_documented(name: str, options: dict[str, Any]) -> None:
    """Exchanging places of patches changes the prediction only for methods with positions."""
    method, inputs = build(name, **options).eval(), problem((20, 20, 20))
    moved = BagInputs(inputs.f, inputs.valid, inputs.centre[:, torch.randperm(20)])
    with torch.no_grad():
        far = (run(method, moved).logits - run(method, inputs).logits).abs().amax(1)
    if name == "transmil":
        assert far.min() > 1e-4, far
    else:
        assert far.max() == 0, far


@EVERY
@pytest.mark.parametrize("n", [1, 2, 7])
def test_bags_of_few_patches_are_finite(name: str, options: dict[str, Any], n: int) -> None:
    """Bags of fewer than eight patches give finite outputs (trap 21)."""
    method = build(name, **options)
    outputs = outputs_and_gradients(method.train(), problem((n, n)))
    assert all(output.isfinite().all() for output in outputs.values())
    with torch.no_grad():
        prediction = run(method.eval(), problem((n, n)))
    for evidence in prediction.evidence:
        assert evidence.weight.shape == (n,)
        assert evidence.weight.sum() == pytest.approx(1, abs=1e-12)


@EVERY
def test_evaluation_equals_training_without_dropout(name: str, options: dict[str, Any]) -> None:
    """No layer except dropout behaves differently in the two modes (trap 10)."""
    method, inputs = build(name, **options), problem()
    assert_near(run(method.train(), inputs).logits, run(method.eval(), inputs).logits)


@EVERY
def test_evidence_sums_to_one_in_half_precision(name: str, options: dict[str, Any]) -> None:
    """Under autocast to bfloat16, evidence sums to 1 and logits are close."""
    method, inputs = build(name, **options).float().eval(), problem()
    inputs.f = inputs.f.float()
    with torch.no_grad():
        exact = run(method, inputs).logits
        with torch.autocast("cpu", torch.bfloat16):
            half = run(method, inputs)
    assert_near(half.logits.float(), exact, 0.2)
    for evidence in half.evidence:
        assert evidence.weight.sum() == pytest.approx(1, abs=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        prediction = run(method.train(), inputs)
        further = further_loss(GivenLabels(torch.ones(4, 5)), prediction, torch.zeros(4))
        (prediction.logits.float().sum() + further).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())


@pytest.mark.parametrize("name", ["mil_mean", "abmil", "clam", "transmil"])
def test_the_instance_head_is_an_option(name: str) -> None:
    inputs = problem()
    weights = {"abmil": 1.0, "transmil": 1.0, "mil_mean": None, "clam": None}
    instance_loss = run(build(name).train(), inputs).further.get("instance")
    assert getattr(instance_loss, "weight", None) == weights[name]
    assert run(build(name, instance=0.5).train(), inputs).further["instance"].weight == 0.5
    assert "instance" not in run(build(name, instance=0).train(), inputs).further


# -- each against its formula ----------------------------------------------------------------------


def test_mean_pooling_matches_the_loop() -> None:
    """The logit of the mean is the mean of the logits."""
    method, inputs = build("mil_mean").eval(), problem()
    prediction = run(method, inputs)
    for i, f in enumerate(bags(inputs)):
        single = torch.stack([method.head(method.norm(patch)) for patch in f])
        assert_near(prediction.logits[i], single.mean(0))


def test_max_pooling_matches_the_loop() -> None:
    method, inputs = build("mil_max").eval(), problem()
    prediction = run(method, inputs)
    for i, f in enumerate(bags(inputs)):
        single = torch.stack([method.head(method.norm(patch)) for patch in f])
        slow = [max(single[n, k].item() for n in range(len(f))) for k in range(5)]
        assert_near(prediction.logits[i], torch.tensor(slow, dtype=torch.float64))
        near = single.softmax(0)
        shares = [*prediction.logits[i, :3].softmax(0), *prediction.logits[i, 3:].sigmoid()]
        weight = sum(s * near[:, k] for k, s in enumerate(shares)) / sum(shares)
        assert_near(torch.from_numpy(prediction.evidence[i].weight), weight.detach())


def test_max_learns_from_one_patch_per_class() -> None:
    method, inputs = build("mil_max").train(), problem()
    inputs.f.requires_grad_()
    run(method, inputs).logits[:, 0].sum().backward()
    assert ((inputs.f.grad != 0).any(-1).sum(1) == 1).all()


def gate(f: Tensor, value: nn.Module, gate: nn.Module, score: nn.Module) -> Tensor:
    """Return the gated attention of one bag, ``(n, branches)``."""
    scores = [score(torch.tanh(value(h)) * torch.sigmoid(gate(h))) for h in f]
    return torch.stack(scores).softmax(0)


def test_gated_attention_matches_the_loop() -> None:
    method, inputs = build("abmil").eval(), problem()
    prediction = run(method, inputs)
    net = method.pool.pool.attention
    for i, f in enumerate(bags(inputs)):
        h = method.norm(f)
        weight = gate(h, net.value, net.gate, net.score)[:, 0]
        pooled = sum(w * row for w, row in zip(weight, h, strict=True))
        assert_near(prediction.logits[i], method.pool.head(pooled))
        assert_near(torch.from_numpy(prediction.evidence[i].weight), weight.detach())


@pytest.mark.parametrize("k_min", [1.0, 12.0])
def test_additive_pooling_matches_the_loop(k_min: float) -> None:
    """Gated probabilities are summed; missing gate mass below k_min counts as "no" or even odds."""
    method, inputs = build("abmil", pooling="additive", k_min=k_min).eval(), problem()
    prediction = run(method, inputs)
    for i, f in enumerate(bags(inputs)):
        h, parts = method.norm(f), []
        for part, logits, even in zip(
            method.pool.parts, prediction.logits[i].split([3, 2]), (1 / 3, 0.0), strict=True
        ):
            opinions = torch.stack([part.opinion(patch) for patch in h])
            p = opinions.softmax(-1) if even else opinions.sigmoid()
            w = part.gate(h).sigmoid()
            total = w.sum().item()
            withheld = max(k_min - total, 0.0)
            expected = ((w[:, None] * p).sum(0) + withheld * even) / max(total, k_min)
            assert_near(logits.softmax(0) if even else logits.sigmoid(), expected)
            added = w * (p[:, logits.argmax()] if even else p.sum(1))
            parts.append(added / added.sum())
        assert_near(torch.from_numpy(prediction.evidence[i].weight), sum(parts).detach() / 2)


@pytest.mark.parametrize("dropout", [0.0, 0.9])
def test_two_stream_pooling_matches_the_loop(dropout: float) -> None:
    """Dropout on the values changes neither the patch stream nor the attention."""
    method = build("dsmil", hidden=5, dropout=dropout)
    inputs = problem()
    trained, evaluated = run(method.train(), inputs), run(method.eval(), inputs)
    inputs.f.requires_grad_()
    again = method.train().aggregate(method.norm(inputs.f), inputs.valid)[2]
    for i, f in enumerate(bags(inputs)):
        h = method.norm(f)
        single, query, value = method.single(h), method.query(h), method.value[1](h)
        critical = single.argmax(0)
        rows, attention = [], []
        for k in range(5):
            scores = torch.stack([q @ query[critical[k]] / math.sqrt(5) for q in query])
            attention.append(scores.softmax(0))
            rows.append(sum(a * v for a, v in zip(attention[-1], value, strict=True)))
        kernel = method.head.weight.view(5, 5, DIM)
        bag = functional.conv1d(torch.stack(rows)[None], kernel, method.head.bias)[0, :, 0]
        assert_near(evaluated.logits[i], bag)
        assert_near(trained.further["instance"].logits[i], single.amax(0))
        assert_near(again[i, :, : len(f)], torch.stack(attention))
        parts = [inputs.f, *method.query.parameters()]
        ours, theirs = (
            torch.autograd.grad((a * torch.arange(len(f))).sin().sum(), parts, retain_graph=True)
            for a in (again[i, :, : len(f)], torch.stack(attention))
        )
        for a, b in zip(ours, theirs, strict=True):
            assert_near(a, b)
        if dropout == 0:
            assert_near(trained.logits[i], bag)
    assert trained.further["instance"].weight == 1.0, "both streams weigh the same"


def slow_transmil(method: AbstractMethod, f: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Compute one image with exact attention and a convolution on a dense grid."""

    def attend(module: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = (tokens @ w.T for w in module.query_key_value.weight.chunk(3))
        size = q.shape[1] // module.heads
        mixed, weights = [], []
        for h in range(module.heads):
            columns = slice(h * size, (h + 1) * size)
            weights.append((q[:, columns] @ k[:, columns].T / math.sqrt(size)).softmax(-1))
            mixed.append(weights[-1] @ v[:, columns])
        return module.out(torch.cat(mixed, 1)), torch.stack(weights).mean(0)

    tokens = torch.cat([method.class_token[None], method.embed(f)])
    tokens = tokens + attend(method.relate, method.norms[0](tokens))[0]
    grid = torch.zeros(1, tokens.shape[1], 8, 8, dtype=torch.float64)
    cells = centre.floor().long().tolist()
    for token, (y, x) in zip(tokens[1:], cells, strict=True):
        grid[0, :, y, x] = token
    around = sum(conv(grid) for conv in method.position.convs)
    moved = torch.stack(
        [t + around[0, :, y, x] for t, (y, x) in zip(tokens[1:], cells, strict=True)]
    )
    tokens = torch.cat([tokens[:1], moved])
    added, weight = attend(method.answer, method.norms[1](tokens))
    logits = method.head(method.norms[2](tokens[0] + added[0]))
    return logits, weight[0, 1:] / weight[0, 1:].sum()


def test_transmil_matches_exact_attention() -> None:
    method, inputs = build("transmil", width=16).eval(), problem()
    prediction = run(method, inputs)
    for i, f in enumerate(bags(inputs)):
        logits, weight = slow_transmil(method, f, inputs.centre[i, : len(f)])
        assert_near(prediction.logits[i], logits)
        assert_near(torch.from_numpy(prediction.evidence[i].weight), weight.detach())


def test_transmil_with_landmarks_approximates_exact_attention() -> None:
    """With 41 tokens, 2 landmarks differ from exact attention and 21 equal it."""
    inputs = problem((40,))

    def logits(landmarks: int) -> Tensor:
        with torch.no_grad():
            return run(build("transmil", width=16, landmarks=landmarks).eval(), inputs).logits

    exact = logits(256)
    assert_near(logits(21), exact)
    assert (logits(20) - exact).abs().max() > 1e-9
    assert (logits(2) - exact).abs().max() > 1e-4


# -- CLAM ------------------------------------------------------------------------------------------


class GivenLabels(MulticlassTask):
    """A task with a loss of zero that returns given labels as the truth."""

    def __init__(self, truth: Tensor | None) -> None:
        super().__init__(classes=("a", "b"))
        self.given = truth

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        return logits.sum() * 0

    def truth(self, target: Tensor) -> Any:
        return self.given


def slow_clustering(method: AbstractMethod, f: Tensor, truth: Sequence[int]) -> Tensor:
    """Compute the instance loss of one image as published, with pseudo labels."""
    h = method.embed(method.norm(f))
    net = method.attend
    attention = gate(h, net.value[0], net.gate[0], net.score)
    half = min(8, len(h) // 2)

    def two_way(head: int, patches: Sequence[int], labels: Sequence[int]) -> Tensor:
        logit = torch.stack([method.cluster.example(h[p])[head] for p in patches])
        both = torch.stack([torch.zeros_like(logit), logit], 1)
        return functional.cross_entropy(both, torch.tensor(labels))

    total = torch.zeros((), dtype=torch.float64)
    for k in range(5):
        branch = k if method.branch == "multi" else 0
        order = attention[:, branch].argsort(descending=True).tolist()
        top, bottom = order[: max(half, 1)], order[len(order) - half :]
        labels = [1] * len(top) + [0] * len(bottom)
        if k < 3:
            inside = truth[k] == 1
            loss = two_way(k, top + bottom, labels) if inside else two_way(k, top, [0] * len(top))
            total = total + loss / 3
        else:
            present = k if truth[k] else k + 2
            total = total + two_way(present, top + bottom, labels) / 2
    return total


@pytest.mark.parametrize("branch", ["single", "multi"])
@pytest.mark.parametrize("lengths", [(20, 7, 1), (16, 15, 2)])
def test_clam_matches_the_loop(branch: str, lengths: tuple[int, ...]) -> None:
    """Logits and attention match; bag and instance loss are weighted .7 to .3."""
    method = build("clam", dropout=0.0, width=10, hidden=7, branch=branch).train()
    inputs = problem(lengths)
    truth = torch.tensor([[1, 0, 0, 1, 0], [0, 0, 1, 1, 1], [0, 1, 0, 0, 0]])
    prediction, evaluated = run(method, inputs), run(method.eval(), inputs)
    slow = torch.zeros((), dtype=torch.float64)
    for i, f in enumerate(bags(inputs)):
        h, net = method.embed(method.norm(f)), method.attend
        attention = gate(h, net.value[0], net.gate[0], net.score)
        for k in range(5):
            pooled = attention[:, k if branch == "multi" else 0] @ h
            assert_near(prediction.logits[i, k], method.head(pooled)[k])
        weight = attention[:, 0]
        if branch == "multi":
            answer = prediction.logits[i].detach()
            shares = torch.tensor([*answer[:3].softmax(0), *answer[3:].sigmoid()])
            weight = (attention * shares / shares.sum()).sum(1)
        np.testing.assert_allclose(evaluated.evidence[i].weight, weight.detach(), atol=1e-7)
        slow = slow + slow_clustering(method, f, truth[i].tolist()) / len(lengths)
    extra = further_loss(GivenLabels(truth.double()), prediction, torch.zeros(3))
    assert_near(0.7 * extra, 0.3 * slow)
    parameters = list(method.attend.parameters()) + list(method.cluster.parameters())
    ours = torch.autograd.grad(extra, parameters, allow_unused=True, retain_graph=True)
    theirs = torch.autograd.grad(slow * 3 / 7, parameters, allow_unused=True)
    assert ours[0] is None
    assert theirs[0] is None, "clustering itself does not move attention"
    for a, b in zip(ours[-2:], theirs[-2:], strict=True):
        assert_near(a, b)


@pytest.mark.parametrize("n", [1, 2, 7, 15, 16, 40])
def test_strongest_and_weakest_patches_are_disjoint(n: int) -> None:
    method = build("clam", width=10, hidden=7, branch="multi")
    inputs = problem((n, 3))
    top, bottom = method.extremes(inputs.f, inputs.valid)
    assert not (top & bottom).any()
    assert not (top | bottom)[~inputs.valid].any()
    assert (top.sum(1)[0] == max(1, min(8, n // 2))).all()
    assert (bottom.sum(1)[0] == min(8, n // 2)).all()
    scores = method.attend(method.eval().embed(inputs.f))
    assert (
        (scores[top].numel() == 0)
        or n == 1
        or all(
            scores[0, :, k][top[0, :, k]].min() > scores[0, :, k][bottom[0, :, k]].max()
            for k in range(5)
        )
    )


def test_dropout_does_not_change_the_clustered_patches() -> None:
    """Training clusters the same patches as evaluation (trap 10), and keeps the mode."""
    method, inputs = build("clam", dropout=0.9), problem((40, 20))
    chosen = method.eval().extremes(inputs.f, inputs.valid)
    method.train()
    for _ in range(3):
        for a, b in zip(method.extremes(inputs.f, inputs.valid), chosen, strict=True):
            assert torch.equal(a, b)
    assert all(module.training for module in method.modules())


def test_the_instance_head_sees_all_patches_despite_dropout() -> None:
    """Otherwise it would depend on dropout which patch is the strongest."""
    method, inputs = build("clam", dropout=0.9, instance=1.0).train(), problem((40, 20))
    first, second = (run(method, inputs) for _ in range(2))
    assert not torch.equal(first.logits, second.logits)
    assert torch.equal(first.further["instance"].logits, second.further["instance"].logits)


def test_clustering_trains_the_embedding_and_not_the_encoder() -> None:
    method, inputs = build("clam", width=10, hidden=7).train(), problem((20, 7))
    inputs.f.requires_grad_()
    truth = GivenLabels(torch.tensor([[1.0, 0, 0, 1, 0], [0, 0, 1, 1, 1]]).double())
    further_loss(truth, run(method, inputs), torch.zeros(2)).backward()
    assert inputs.f.grad is None
    assert method.embed[0].weight.grad.abs().sum() > 0


def test_clustering_is_omitted_where_it_has_no_meaning() -> None:
    """It is omitted for a share of 0 and for tasks without classes."""
    inputs = problem()
    assert not run(build("clam", clustering=0.0).train(), inputs).further
    prediction = run(build("clam").train(), inputs)
    assert further_loss(GivenLabels(None), prediction, torch.zeros(4)) == 0
    with pytest.raises(OptionError, match=r"method\.clustering: got 1"):
        build("clam", clustering=1.0)


def test_further_losses_add_up() -> None:
    logits = torch.randn(4, 3)
    true, false = torch.rand(2, 4, 3).double()
    target = torch.tensor([2, 0, 1, 1])
    task = MulticlassTask(classes=("a", "b", "c"))
    prediction = Prediction(
        logits,
        further={
            "x": Penalty(torch.tensor(0.25)),
            "y": Auxiliary(logits + 1, 2.0),
            "z": Clustering(true, false, 3.0),
        },
    )
    slow = 0.25 + 2 * task.loss(logits, target)
    for i, label in enumerate(target.tolist()):
        slow = slow + 3 / 4 * sum((true if k == label else false)[i, k] for k in range(3))
    assert_near(further_loss(task, prediction, target).double(), slow.double(), 1e-6)
    assert further_loss(task, Prediction(logits), target) == 0
    binary = BinaryTask(classes=("no", "yes")).truth(torch.tensor([1, 0]))
    assert binary.tolist() == [[1.0], [0.0]]


# -- evidence --------------------------------------------------------------------------------------


def test_output_weights_match_the_loop() -> None:
    logits = torch.randn(4, 5, dtype=torch.float64)
    weights = compute_output_weights(logits, HEADS)
    for row, row_weights in zip(logits, weights, strict=True):
        slow = torch.tensor([*row[:3].softmax(0), *row[3:].sigmoid()])
        assert_near(row_weights, (slow / slow.sum()).double(), 1e-7)
    far = compute_output_weights(torch.full((1, 1), -1000.0), (Head("sign", 1, False, "max"),))
    assert far.item() == 1.0


def test_patch_shares_sum_to_the_margin() -> None:
    """The contributions of all patches to the margins of the prediction sum to the margins."""
    single = torch.randn(3, 8, 5, dtype=torch.float64)
    valid = torch.arange(8) < torch.tensor([[8], [5], [1]])
    for i, n in enumerate((8, 5, 1)):
        logits = (single[i, :n].mean(0))[None]
        shares = compute_patch_shares(single[i : i + 1], logits, HEADS, valid[i : i + 1])[0]
        best = int(logits[0, :3].argmax())
        added = []
        for patch in single[i, :n]:
            margin = patch[best] - patch[:3].mean()
            added.append(margin + sum(patch[k] * (1 if logits[0, k] >= 0 else -1) for k in (3, 4)))
        margin = logits[0, best] - logits[0, :3].mean() + logits[0, 3:].abs().sum()
        assert_near(torch.stack(added).mean(), margin)
        speaking = torch.stack(added).clamp_min(0)
        assert_near(shares[:n], speaking / speaking.sum(), 1e-7)
        assert (shares[n:] == 0).all()
    nothing = compute_patch_shares(torch.zeros(1, 8, 5), torch.zeros(1, 5), HEADS, valid[1:2])[0]
    assert_near(nothing, torch.tensor([0.2] * 5 + [0.0] * 3), 1e-7)


# -- frozen encoders -------------------------------------------------------------------------------


class TrainingDependentEncoder(SmallEncoder):
    """An encoder with dropout and batch norm, which differ between the two modes."""

    def __init__(self) -> None:
        super().__init__(width=8, dim=DIM)
        self.odd = nn.Sequential(nn.BatchNorm1d(DIM), nn.Dropout(0.5))

    def pool(self, maps: list[Tensor]) -> Tensor:
        return cast(Tensor, self.odd(super().pool(maps)))


class PixelBatch:
    """A substitute for a batch whose patches are pixel tensors."""

    device, view, kept, frozen = torch.device("cpu"), View(0.5, 16, 4.0), None, False

    def __init__(self, pixels: dict[str, Tensor]) -> None:
        self.items = [SimpleNamespace(image=SimpleNamespace(path=key)) for key in pixels]
        self.pixels, self.read = pixels, 0

    def __len__(self) -> int:
        return len(self.items)

    def chunks(self, patches: Sequence[Patches], size: int, *, augment: bool = True) -> Any:
        bags = zip(self.pixels.values(), patches, strict=True)
        parts = torch.cat([p[: len(bag)] for p, bag in bags]).split(size)
        self.read += sum(len(part) for part in parts)
        methods = {"__len__": lambda _: len(parts), "__call__": lambda _, c: parts[c]}
        return type("Chunks", (), methods)()


def test_a_frozen_encoder_is_in_evaluation_mode() -> None:
    """Features agree in both modes, no statistic changes, no patch is read twice (traps 9, 10)."""
    torch.manual_seed(0)
    encoder = TrainingDependentEncoder().requires_grad_(False).train()
    nn.init.normal_(encoder.odd[0].running_mean)
    batch = PixelBatch({"a": torch.randn(5, 3, 16, 16), "b": torch.randn(2, 3, 16, 16)})
    patches = [Patches(np.zeros((n, 2)), np.ones(n)) for n in (5, 2)]
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    bag = Bag(train_encoder=False, chunk=3, jitter=True)
    f, valid = bag.embed(encoder, cast(Batch, batch), patches)
    assert encoder.training
    assert encoder.odd[1].training
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
    encoder.eval()
    for i, (pixels, n) in enumerate(zip(batch.pixels.values(), (5, 2), strict=True)):
        assert_near(f[i, :n], encoder(pixels), 1e-6)
    assert torch.equal(bag.embed(encoder, cast(Batch, batch), patches)[0], f)
    assert batch.read == 7
    alone = Bag(train_encoder=False, chunk=3, jitter=True)
    assert alone.embed(encoder.train(), cast(Batch, batch), patches)[0][valid].equal(f[valid])


def test_features_cached_in_inference_mode_can_be_trained_on() -> None:
    encoder = SmallEncoder(width=8, dim=DIM).requires_grad_(False)
    batch = PixelBatch({"a": torch.randn(5, 3, 16, 16)})
    patches = [Patches(np.zeros((5, 2)), np.ones(5))]
    bag = Bag(train_encoder=False, chunk=3, jitter=True)
    with torch.inference_mode():
        bag.embed(encoder, cast(Batch, batch), patches)
    learnt = nn.Linear(DIM, 1)
    f, _ = bag.embed(encoder, cast(Batch, batch), patches)
    learnt(f).sum().backward()
    assert batch.read == 5
    assert_near(learnt.weight.grad[0], f.sum((0, 1)), 1e-6)
