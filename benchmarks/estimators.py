"""Gradient estimators compared with published ones: bias, direction, length and variance.

    python benchmarks/estimators.py [--csv FILE] [--draws 10000]

Attention sampling: the gradient with respect to the logits of the attention, for features of unit
length and a random direction of the loss. Up to K = 6 by enumeration of every draw, exact; above by
sampling, with the standard error in brackets: that much is what an unbiased rule shows. Perturbed
top-k: against central finite differences of the smoothed choice, computed by quadrature, for a loss
whose weights on the rows of the choice differ, or are equal (mean pooling). Figures are relative to
the true gradient, and means over random problems; the variance at concentration 8 rests on rare
draws. K cells, N drawn, a attention, f features, g gradient of the loss, v = f.g.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
import resource
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from foveate.nn.sampling import (
    draw_with_replacement,
    draw_without_replacement,
    expectation,
    expectation_with_replacement,
)
from foveate.nn.top_k import perturbed_top_k

DIM, BATCH = 16, 1000
Row = dict[str, str | float]


@dataclass(frozen=True)
class Case:
    """Attention ``softmax(concentration * normal)``, with features after a ReLU or centred."""

    k: int
    n: int
    concentration: float
    centred: bool = False
    problems: int = 10


CASES = (
    Case(5, 3, 0.3),
    Case(5, 3, 1.0),
    Case(5, 3, 3.0),
    Case(6, 4, 1.0),
    Case(6, 4, 1.0, centred=True),
    Case(400, 10, 0.1, problems=3),
    Case(400, 10, 2.0, problems=3),
    Case(400, 10, 4.0, problems=3),
    Case(400, 10, 8.0, problems=3),
    Case(400, 10, 0.1, centred=True, problems=3),
    Case(400, 10, 4.0, centred=True, problems=3),
)


# -- rules: dL/da of the drawn cells (r, n), from a (r, n) and v = g.f (r, n) in draw order --------


def published(a: Tensor, v: Tensor) -> Tensor:
    """Compute the attention gradient of the official code."""
    i = torch.arange(a.shape[1], dtype=a.dtype)
    remaining = 1 - (a.cumsum(1) - a)
    terms = (a * v).cumsum(1) - a * v + remaining * v
    return (terms * remaining / a + v.cumsum(1) - v - i * v) / a.shape[1]


def plain_mean_baseline(a: Tensor, v: Tensor) -> Tensor:
    """Compute the library's gradient with an unshrunk mean of earlier terms as baseline."""
    n = a.shape[1]
    i = torch.arange(n, dtype=a.dtype)
    remaining = 1 - (a.cumsum(1) - a)
    terms = (a * v).cumsum(1) - a * v + remaining * v
    b = (terms.cumsum(1) - terms) / i.clamp_min(1)
    after = b.sum(1, keepdim=True) - b.cumsum(1)
    return (remaining / a * (v - b) + (n - 1 - i) * v - after) / n


def _library(
    estimator: Callable[..., Tensor], baseline: bool
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a gradient rule that uses an estimator of the library."""

    def rule(a: Tensor, v: Tensor) -> Tensor:
        leaf = a.detach().requires_grad_()
        estimate = estimator(leaf, v.unsqueeze(-1), baseline=baseline)
        return torch.autograd.grad(estimate.sum(), leaf)[0]

    return rule


WITHOUT = {
    "published": published,
    "ours": _library(expectation, False),
    "ours, causal baseline": _library(expectation, True),
    "ours, plain-mean baseline": plain_mean_baseline,
}
WITH = {
    "with replacement": _library(expectation_with_replacement, False),
    "with replacement, leave-one-out": _library(expectation_with_replacement, True),
}


# -- attention sampling -----------------------------------------------------------------------


def problem(case: Case, seed: int) -> tuple[Tensor, Tensor]:
    """Draw the attention ``(k,)`` and ``v = f.g`` of every cell ``(k,)``."""
    generator = torch.Generator().manual_seed(1000 * seed + case.k)
    logits = torch.randn(case.k, generator=generator, dtype=torch.float64)
    f = torch.randn(case.k, DIM, generator=generator, dtype=torch.float64)
    f = f if case.centred else f.relu()
    g = torch.randn(DIM, generator=generator, dtype=torch.float64)
    return (case.concentration * logits).softmax(0), torch.nn.functional.normalize(f) @ g


def every_draw(a: Tensor, n: int, *, replacement: bool) -> tuple[Tensor, Tensor]:
    """Return all ordered draws ``(r, n)`` and their probabilities ``(r,)``."""
    if replacement:
        index = torch.tensor(list(itertools.product(range(len(a)), repeat=n)))
        return index, a[index].prod(1)
    index = torch.tensor(list(itertools.permutations(range(len(a)), n)))
    drawn = a[index]
    return index, (drawn / (1 - (drawn.cumsum(1) - drawn))).prod(1)


def moments(
    rule: Callable[[Tensor, Tensor], Tensor], case: Case, a: Tensor, v: Tensor, draws: int
) -> tuple[Tensor, float, int]:
    """Return the mean logit gradient ``(k,)``, its variance, and the draws (0: all of them)."""
    replacement = rule in WITH.values()
    exact = case.k <= 6
    sampler = draw_with_replacement if replacement else draw_without_replacement
    mean, square = torch.zeros_like(a), 0.0
    for _ in range(1 if exact else draws // BATCH):
        if exact:
            index, share = every_draw(a, case.n, replacement=replacement)
        else:
            index = sampler(a.log().expand(BATCH, -1), case.n)
            share = torch.full((BATCH,), 1 / (draws // BATCH * BATCH), dtype=a.dtype)
        by_log = a[index] * rule(a[index], v[index])
        gradient = torch.zeros(len(index), case.k, dtype=a.dtype).scatter_add_(1, index, by_log)
        gradient -= a * by_log.sum(1, keepdim=True)
        mean += share @ gradient
        square += float(share @ gradient.square().sum(1))
    return mean, square - float(mean.square().sum()), 0 if exact else draws


def attention_rows(draws: int) -> list[Row]:
    """Compare the attention gradients of all rules."""
    rows: list[Row] = []
    for case in CASES:
        for seed in range(case.problems):
            torch.manual_seed(seed)
            a, v = problem(case, seed)
            truth = a * (v - a @ v)
            index = draw_without_replacement(a.log().expand(BATCH, -1), case.n)
            for name, rule in (WITHOUT | WITH).items():
                mean, variance, used = moments(rule, case, a, v, draws)
                size = float(truth.norm())
                rows.append(
                    {
                        "K": case.k,
                        "N": case.n,
                        "concentration": case.concentration,
                        "features": "centred" if case.centred else "ReLU",
                        "problem": seed,
                        "largest_a": float(a.max()),
                        "mass": float(a[index].sum(1).mean()),
                        "rule": name,
                        "bias": float((mean - truth).norm()) / size,
                        "bias_error": math.sqrt(variance / used) / size if used else 0.0,
                        "cosine": float(mean @ truth / mean.norm()) / size,
                        "norm_ratio": float(mean.norm()) / size,
                        "variance": variance / size**2,
                    }
                )
    return rows


def inclusive_rows() -> list[Row]:
    """Compare the feature gradients of inclusive and exclusive remaining mass."""
    rows: list[Row] = []
    for case in (c for c in CASES if c.k <= 6 and not c.centred):
        for seed in range(case.problems):
            a, _ = problem(case, seed)
            index, share = every_draw(a, case.n, replacement=False)
            drawn = a[index]
            later = torch.arange(case.n - 1, -1, -1)
            row: Row = {"K": case.k, "N": case.n, "concentration": case.concentration}
            after = 1 - drawn.cumsum(1)
            for name, remaining in (("exclusive", after + drawn), ("inclusive", after)):
                weight = share[:, None] * (remaining + later * drawn) / case.n
                weights = torch.zeros_like(a).scatter_add_(0, index.flatten(), weight.flatten())
                row[name] = float((weights - a).norm() / a.norm())
            rows.append(row)
    return rows


# -- perturbed top-k --------------------------------------------------------------------------


def smoothed(scores: Tensor, n: int, sigma: float, *, points: int = 200) -> Tensor:
    """Return the exact mean ``(n, k)`` of the sorted top-n indicator, by quadrature.

    With t the value of the (n+1)-th largest, cell m say, every other cell is in or out on its own;
    how many are in before and after cell i are two sums of independent coins.
    """
    k = len(scores)
    low, high = float(scores.min()) - 7 * sigma, float(scores.max()) + 7 * sigma
    t = torch.linspace(low, high, points, dtype=scores.dtype)[:, None]
    z = (scores - t) / sigma
    density = torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) / sigma * (t[1] - t[0])
    p = torch.special.ndtr(z)[:, None, :] * (1 - torch.eye(k, dtype=scores.dtype))

    def counts(order: range) -> list[Tensor]:
        """``(points, m, n)`` probability of j cells in, before each cell of the order."""
        now = torch.zeros(points, k, n, dtype=scores.dtype)
        now[:, :, 0] = 1
        probabilities = []
        for i in order:
            probabilities.append(now)
            shifted = torch.nn.functional.pad(now[..., :-1], (1, 0))
            now = now * (1 - p[:, :, i : i + 1]) + shifted * p[:, :, i : i + 1]
        return probabilities

    before, after = counts(range(k)), counts(range(k - 1, -1, -1))[::-1]
    columns = [
        ((density * p[:, :, i]).unsqueeze(-1) * before[i] * after[i].flip(-1)).sum((0, 1))
        for i in range(k)
    ]
    return torch.stack(columns, 1)


def differences(scores: Tensor, n: int, sigma: float, g: Tensor) -> Tensor:
    """Return central finite differences of ``<g, smoothed>``, ``(k,)``."""
    step = 1e-3 * sigma
    gradients = []
    for i in range(len(scores)):
        shift = torch.zeros_like(scores)
        shift[i] = step
        up, down = (smoothed(scores + sign * shift, n, sigma) for sign in (1, -1))
        gradients.append(((up - down) * g).sum() / (2 * step))
    return torch.stack(gradients)


def library_gradient(
    scores: Tensor, n: int, sigma: float, g: Tensor, repeats: int, samples: int
) -> Tensor:
    """Return the library's gradient, ``(repeats, k)``."""
    leaf = scores.expand(repeats, -1).clone().requires_grad_()
    top = perturbed_top_k(leaf, n, sigma=sigma, samples=samples)
    weights = g[:, top.index].transpose(0, 1)
    return torch.autograd.grad((top.weight * weights).sum(), leaf)[0]


def noise_covariance(
    scores: Tensor, n: int, sigma: float, g: Tensor, repeats: int, samples: int
) -> tuple[Tensor, Tensor]:
    """Return the covariance of output and noise, and its diagonal part.

    The second is each cell's own entry of the Jacobian, as in two published backward passes.
    """
    full, diagonal = [], []
    for _ in range(repeats):
        z = torch.randn(samples, len(scores), dtype=scores.dtype)
        index = (scores + sigma * z).topk(n).indices.sort(-1).values
        g_chosen = g.gather(1, index.T)
        s = g_chosen.sum(0)
        full.append((s - s.mean()) @ z / (samples - 1) / sigma)
        part = (g_chosen * z.gather(1, index).T).flatten() / samples / sigma
        diagonal.append(torch.zeros_like(scores).scatter_add_(0, index.T.flatten(), part))
    return torch.stack(full), torch.stack(diagonal)


def top_k_rows(repeats: int = 200, samples: int = 500) -> list[Row]:
    """Compare the gradients of perturbed top-k."""
    rows: list[Row] = []
    sizes = ((10, 2, 0.05), (32, 5, 0.05), (32, 5, 0.3), (64, 8, 0.1))
    for (k, n, sigma), equal, seed in itertools.product(sizes, (False, True), range(2)):
        scores = torch.rand(k, dtype=torch.float64, generator=torch.manual_seed(seed))
        g = torch.randn(1 if equal else n, k, dtype=torch.float64).expand(n, k).contiguous()
        truth = differences(scores, n, sigma, g)
        full, diagonal = noise_covariance(scores, n, sigma, g, repeats, samples)
        rules = {
            "ours": library_gradient(scores, n, sigma, g, repeats, samples),
            "noise itself": full,
            "noise itself, times k": n * full,
            "diagonal only": diagonal,
        }
        for name, gradient in rules.items():
            mean, size = gradient.mean(0), float(truth.norm())
            one = torch.nn.functional.cosine_similarity(gradient, truth[None]).mean()
            rows.append(
                {
                    "K": k,
                    "k": n,
                    "sigma": sigma,
                    "rows": "equal" if equal else "differ",
                    "problem": seed,
                    "rule": name,
                    "cosine": float(mean @ truth / mean.norm()) / size,
                    "norm_ratio": float(mean.norm()) / size,
                    "variance": float(gradient.var(0).sum()) / size**2,
                    "cosine of one estimate": float(one),
                }
            )
    return rows


def top_k_cost(k: int = 100_000, n: int = 16, samples: int = 500) -> str:
    """Measure seconds and memory of a forward and backward pass; call it first: peaks only rise."""
    scores = torch.rand(1, k, requires_grad=True)
    perturbed_top_k(scores, n, sigma=0.05, samples=2).weight.sum().backward()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    top = perturbed_top_k(scores, n, sigma=0.05, samples=samples)
    (top.weight * torch.rand_like(top.weight)).sum().backward()
    seconds = time.perf_counter() - started
    mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    noise = samples * k * 4 / 2**20
    return (
        f"K {k}, k {n}, {samples} samples: {seconds:.2f} s, {mib:.0f} MiB above the start, "
        f"{top.index.shape[1]} cells touched. Kept, the noise would be {noise:.0f} MiB and the "
        f"indicators {n * noise:.0f} MiB"
    )


# -- tables -----------------------------------------------------------------------------------


def table(
    rows: list[Row],
    keys: tuple[str, ...],
    values: tuple[str, ...],
    *,
    errors: list[Row] | None = None,
) -> str:
    """Return a Markdown table with one line per key, averaged over problems."""
    groups: dict[tuple[str | float, ...], list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        groups[tuple(row[key] for key in keys)].append(i)
    lines = ["| " + " | ".join((*keys, *values)) + " |", "|---" * (len(keys) + len(values)) + "|"]
    for name_rows, group in groups.items():
        cells = [str(f) for f in name_rows]
        for value in values:
            mean = sum(float(rows[i][value]) for i in group) / len(group)
            error = sum(float(errors[i][value]) for i in group) / len(group) if errors else 0.0
            figure = f"{mean:.3g}" if abs(mean) > 1e-9 else "0"
            cells.append(figure + (f" ({error:.2g})" if error > 0 else ""))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def pivot(rows: list[Row], value: str) -> list[Row]:
    """Return one row per problem with a column of `value` for each rule."""
    merged: dict[tuple[str | float, ...], Row] = {}
    for row in rows:
        key = tuple(row[c] for c in ("K", "N", "concentration", "features", "problem"))
        merged.setdefault(key, {**row})[str(row["rule"])] = row[value]
    return list(merged.values())


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--csv", type=Path, help="every figure, one row for each problem and rule")
    parser.add_argument("--draws", type=int, default=10_000, help="of each problem with K > 6")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    print("## Perturbed top-k\n\n" + top_k_cost() + "\n")
    choices = top_k_rows()
    values = ("cosine", "norm_ratio", "variance", "cosine of one estimate")
    print(table(choices, ("K", "k", "sigma", "rows", "rule"), values))
    inclusive = inclusive_rows()
    print("\n## Feature gradient: relative bias by how the mass before a draw is summed\n")
    print(table(inclusive, ("K", "N", "concentration"), ("exclusive", "inclusive")))
    rows = attention_rows(chosen.draws)
    case, names = ("K", "N", "concentration", "features"), tuple(WITHOUT | WITH)
    print("\n## Attention gradient: the published rule\n")
    of_published = [row for row in rows if row["rule"] == "published"]
    print(table(of_published, case, ("mass", "largest_a", "bias", "cosine", "norm_ratio")))
    print("\n## Attention gradient: bias (and its standard error)\n")
    print(table(pivot(rows, "bias"), case, names, errors=pivot(rows, "bias_error")))
    print("\n## Attention gradient: variance\n")
    print(table(pivot(rows, "variance"), case, names))
    if chosen.csv is not None:
        every = rows + inclusive + choices
        with chosen.csv.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(key for row in every for key in row)))
            writer.writeheader()
            writer.writerows(every)


if __name__ == "__main__":
    main()
