"""Ranking losses: (scores, labels, mask, teacher, weights) -> one value a group, and which groups count.

In come five tensors of shape (groups, width), one row a query, padded on the right or anywhere:

    scores   the student's logits, float32 (float64 works too)
    labels   grades; above 0 is relevant
    mask     bool; True is a real candidate, False is padding
    teacher  the teacher's scores, NaN where it has none
    weights  how much a candidate counts as a negative, 0 to 1; not read for positives. A negative of weight 0 is as
             good as absent. `kl` and `margin_mse` know no negatives or need no labels, and do not read it

Out come `values` (groups,) and `counts` (groups,) bool. A group counts for a loss when it holds something to
compare; elsewhere its value means nothing, and reductions give it no weight. What stands in padding reaches neither
value nor gradient, even NaN. Everything is in nats. Nothing here knows a model, a batch order, or an optimiser.

A new loss is one function, one line in LOSSES, and its word in `sections.LossName`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from rankwright.sections import LossName

if TYPE_CHECKING:
    from torch import Tensor

NEGLIGIBLE = 1e-6
"""Weights below this count as 0: a mean over next to nothing has no sound gradient."""

PerGroup: TypeAlias = "tuple[Tensor, Tensor]"
Loss: TypeAlias = "Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], PerGroup]"


def listwise(scores: Tensor, labels: Tensor, mask: Tensor, teacher: Tensor, weights: Tensor) -> PerGroup:
    """Softmax cross-entropy to the uniform distribution over all positives of the group.

    ``-mean over positives p of log softmax(scores)[p]``. A group counts when it has a positive and two candidates.
    At equal scores the value is ln(candidates), see `chance_loss`; its least value is ln(positives), not 0.
    A negative's term in the denominator is multiplied by its weight: its score is taken as score + ln(weight).

    It is ListNet's top-one loss (Cao et al. 2007) with labels > 0 made a distribution by their count where ListNet
    takes softmax(labels), which leaves much weight on the negatives. With one positive it is the localised contrastive
    loss (Gao et al. 2021); with several, that loss draws one and hides the rest, while here all share one softmax.
    """
    positive = (labels > 0) & mask
    number = positive.sum(-1)
    counted = _counted(labels, mask, weights)
    present = counted > 0
    shifted = scores + counted.masked_fill(~present, 1.0).log()
    values = -(_log_softmax(shifted, present) * positive).sum(-1) / number.clamp(min=1)
    return values, _rankable(labels, present)


def bce(scores: Tensor, labels: Tensor, mask: Tensor, teacher: Tensor, weights: Tensor) -> PerGroup:
    """Binary cross-entropy of sigmoid(score) to ``label > 0``, mean over the group's candidates by their weights.

    A group counts when it has a candidate of a weight above 0. The mean over groups weighs each query alike, so with
    ragged groups it is not the mean over pairs.
    """
    from torch.nn.functional import binary_cross_entropy_with_logits

    positive = ((labels > 0) & mask).to(scores.dtype)
    losses = binary_cross_entropy_with_logits(_only(scores, mask), positive, reduction="none")
    return _weighted_mean(losses, _counted(labels, mask, weights), -1)


def ranknet(scores: Tensor, labels: Tensor, mask: Tensor, teacher: Tensor, weights: Tensor) -> PerGroup:
    """Pairwise logistic loss ``log(1 + exp(s_j - s_i))``, mean over the pairs with label_i > label_j.

    RankNet (Burges et al. 2005). A pair has the weight of its lower-graded candidate. A group counts when it has a
    pair of a weight above 0.
    """
    counted = _counted(labels, mask, weights)
    return _weighted_mean(_logistic(scores, mask), _ordered_pairs(labels, mask) * counted.unsqueeze(-2), (-2, -1))


def lambda_ndcg(scores: Tensor, labels: Tensor, mask: Tensor, teacher: Tensor, weights: Tensor) -> PerGroup:
    """RankNet's pairs, each weighted by ``|delta nDCG|`` and summed: LambdaRank as LambdaLoss writes it.

    The weight is what nDCG over the group would change if i and j swapped their present ranks,
    ``|G_i - G_j| |1/D_i - 1/D_j|`` with ``G = (2**grade - 1) / ideal DCG`` and ``D = log2(1 + rank)``
    (Wang et al. 2018, "The LambdaLoss Framework", LambdaRank's weights; not NDCG-Loss2). It carries no gradient.
    Ties take the group's order; grades below 0 have the gain of 0. The lower-graded candidate's weight multiplies
    the pair; candidates of weight 0 take no rank. A group counts as for `ranknet`.
    """
    import torch

    counted = _counted(labels, mask, weights)
    mask = counted > 0
    grades = _only(labels, mask).clamp(min=0)
    gains = (torch.exp2(grades) - 1).to(scores.dtype)
    order = scores.detach().masked_fill(~mask, -torch.inf).argsort(stable=True, dim=-1, descending=True)
    discounts = 1 / torch.log2(order.argsort(-1) + 2.0).to(scores.dtype)
    ideal = (gains.sort(-1, descending=True).values * discounts.sort(-1, descending=True).values).sum(-1)
    swaps = (_differences(gains) * _differences(discounts)).abs() / _each_pair(ideal.clamp(min=1e-9))
    pairs = _ordered_pairs(labels, mask)
    values = swaps * _logistic(scores, mask) * (pairs * counted.unsqueeze(-2))
    return values.sum((-2, -1)), pairs.any(-1).any(-1)


def margin_mse(scores: Tensor, labels: Tensor, mask: Tensor, teacher: Tensor, weights: Tensor) -> PerGroup:
    """Squared error between the student's and the teacher's differences, ``((s_i - s_j) - (t_i - t_j))**2``.

    In a group with a positive: mean over its (positive, negative) pairs (Hofstätter et al. 2020). In a group
    without one (unlabelled): mean over all pairs, which is twice the variance of ``s - t``. Pairs with an unknown
    teacher are left out; a group counts when a pair is left. The student's logits take the scale of the teacher.
    """
    import torch

    known = mask & teacher.isfinite()
    positive = (labels > 0) & mask
    across = _both(positive & known, ~positive & known)
    apart = _both(known, known) & ~torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device)
    pairs = torch.where(_each_pair(positive.any(-1)), across, apart)
    errors = _differences(_only(scores, known) - _only(teacher, known))
    return _weighted_mean(errors.square(), pairs.to(scores.dtype), (-2, -1))


def kl(
    scores: Tensor, labels: Tensor, mask: Tensor, teacher: Tensor, weights: Tensor, *, temperature: float = 1.0
) -> PerGroup:
    """``KL(softmax(teacher / temperature) || softmax(scores))`` over the group: listwise distillation.

    The temperature divides the teacher's scores alone: it turns cosines, say, into logits that the student can take
    on. Candidates without a teacher's score are left out of both softmaxes; a group counts when two have one.
    """
    known = mask & teacher.isfinite()
    wanted = _log_softmax(_only(teacher, known) / temperature, known)
    values = (wanted.exp() * known * (wanted - _log_softmax(scores, known))).sum(-1)
    return values, known.sum(-1) > 1


LOSSES: dict[LossName, Loss] = {
    "listwise": listwise,
    "bce": bce,
    "ranknet": ranknet,
    "lambda": lambda_ndcg,
    "margin-mse": margin_mse,
    "kl": kl,
}


def combine(shares: Mapping[LossName, float], *, temperature: float) -> Loss:
    """Several losses added up, as a function of the five tensors that returns (sum, count), both scalar tensors.

    `sum` is the values times their shares over all groups and terms, with its gradient; `count` is the number of
    groups that count for at least one term. The loss of a batch is ``sum / max(count, 1)``. Sums and counts of
    micro-batches add up, so an optimiser step over micro-batches of any sizes is exactly one over the whole:

        for micro in step:
            total, count = loss(*micro)
            total.backward()
            counted += count
        (divide all gradients by max(counted, 1), or, since counts need no scores, each total by it beforehand)

    Hence a term is averaged over all groups that count, not over its own: where few groups have a teacher, its
    term weighs little. When nothing counts, the sum is a 0 whose gradient is 0.
    """
    table: dict[LossName, Loss] = {**LOSSES, "kl": partial(kl, temperature=temperature)}
    terms = [(table[name], share) for name, share in shares.items() if share]

    def combined(scores: Tensor, labels: Tensor, mask: Tensor, teacher: Tensor, weights: Tensor) -> PerGroup:
        import torch

        total = _only(scores, mask).sum() * 0
        counted = torch.zeros(scores.shape[0], dtype=torch.bool, device=scores.device)
        for loss, share in terms:
            values, counts = loss(scores, labels, mask, teacher, weights)
            total = total + share * _only(values, counts).sum()
            counted = counted | counts
        return total, counted.sum()

    return combined


def mean(per_group: PerGroup) -> Tensor:
    """The mean of a loss's values over the groups that count, a scalar; 0 with a gradient of 0 when none does."""
    values, counts = per_group
    return _only(values, counts).sum() / counts.sum().clamp(min=1)


def group_spread(scores: Tensor, mask: Tensor) -> Tensor:
    """The standard deviation of scores inside a group (population), mean over groups of two or more candidates.

    A scalar; NaN when there is no such group. Near 0 while the listwise loss stays at `chance_loss`, the model
    has collapsed: it gives all candidates one score.
    """
    scores = _only(scores.detach(), mask)
    number = mask.sum(-1)
    centre = scores.sum(-1, keepdim=True) / number.clamp(min=1).unsqueeze(-1)
    variance = (_only(scores - centre, mask).square()).sum(-1) / number.clamp(min=1)
    counts = number > 1
    return _only(variance.sqrt(), counts).sum() / counts.sum()


def chance_loss(mask: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """The mean `listwise` loss at equal scores: ln(sum of weights), where positives weigh 1. NaN if no group counts."""
    counted = _counted(labels, mask, weights)
    counts = _rankable(labels, counted > 0)
    return _only(counted.sum(-1).clamp(min=1).log(), counts).sum() / counts.sum()


def _counted(labels: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """How much each candidate counts: 1 for a positive, its weight for a negative, 0 for padding."""
    return _only(weights.masked_fill(weights < NEGLIGIBLE, 0.0).masked_fill(labels > 0, 1.0), mask)


def _rankable(labels: Tensor, mask: Tensor) -> Tensor:
    return ((labels > 0) & mask).any(-1) & (mask.sum(-1) > 1)


def _only(values: Tensor, keep: Tensor) -> Tensor:
    """0 where not kept. Filled, not multiplied: 0 * NaN is NaN, and so would be its gradient."""
    return values.masked_fill(~keep, 0.0)


def _log_softmax(scores: Tensor, keep: Tensor) -> Tensor:
    """Log-softmax over the kept entries, 0 at the others. Not -inf: an empty group would give NaN gradients."""
    import torch

    lowest = torch.finfo(scores.dtype).min
    return _only(scores.masked_fill(~keep, lowest).log_softmax(-1), keep)


def _logistic(scores: Tensor, mask: Tensor) -> Tensor:
    from torch.nn.functional import logsigmoid

    return -logsigmoid(_differences(_only(scores, mask)))


def _ordered_pairs(labels: Tensor, mask: Tensor) -> Tensor:
    return (_differences(_only(labels, mask)) > 0) & _both(mask, mask)


def _differences(values: Tensor) -> Tensor:
    """(groups, width) -> (groups, width, width): entry [g, i, j] is value i minus value j."""
    return values.unsqueeze(-1) - values.unsqueeze(-2)


def _both(first: Tensor, second: Tensor) -> Tensor:
    return first.unsqueeze(-1) & second.unsqueeze(-2)


def _each_pair(per_group: Tensor) -> Tensor:
    return per_group.unsqueeze(-1).unsqueeze(-1)


def _weighted_mean(values: Tensor, weights: Tensor, over: int | tuple[int, int]) -> PerGroup:
    """The mean over these dimensions; a group without any weight does not count."""
    total = weights.sum(over)
    counts = total > 0
    return (values * weights).sum(over) / total.masked_fill(~counts, 1.0), counts
