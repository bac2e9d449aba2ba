"""Each loss against another implementation: sentence-transformers' where there is one, a plain loop elsewhere."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
import torch
from torch.nn import functional

from rankwright.sections import LossName
from rankwright.toolbox import losses
from rankwright.toolbox.losses import LOSSES, chance_loss, combine, group_spread, mean

NAMES = list(LOSSES)
NAN = math.nan


def batch(*, groups=5, width=7, seed=0, dtype=torch.float32, ragged=True, weighed=False):
    """Random scores, grades 0 to 2 (the first candidate relevant), mask, teacher (some unknown) and weights."""
    random = torch.Generator().manual_seed(seed)
    scores = torch.randn(groups, width, generator=random, dtype=dtype)
    labels = torch.randint(0, 3, (groups, width), generator=random).to(dtype)
    labels[:, 0], labels[:, 1] = 1, 0
    sizes = torch.randint(3, width + 1, (groups,), generator=random) if ragged else torch.full((groups,), width)
    mask = torch.arange(width) < sizes[:, None]
    teacher = torch.randn(groups, width, generator=random, dtype=dtype)
    teacher[:, 2][torch.arange(groups) % 2 == 0] = NAN
    weights = torch.ones(groups, width, dtype=dtype)
    if weighed:
        weights = torch.rand(groups, width, generator=random, dtype=dtype)
        weights[:, 4] = 0
    return scores, labels, mask, teacher, weights


def cut_to_size(tensors, group):
    """One group alone, without its padding."""
    size = int(tensors[2][group].sum())
    return tuple(tensor[group : group + 1, :size] for tensor in tensors)


@pytest.fixture(scope="module")
def stub():
    """As much of a CrossEncoder as sentence-transformers' losses use: a document's text is its score."""
    from sentence_transformers import CrossEncoder

    class Stub(CrossEncoder):
        num_labels = 1
        device = torch.device("cpu")

        def __init__(self):
            torch.nn.Module.__init__(self)

        def preprocess(self, pairs, **_):
            return {"scores": torch.tensor([float(document) for _, document in pairs])}

        def forward(self, features):
            return features

    return Stub()


def listed(scores, labels):
    """One group as the inputs of sentence-transformers' listwise losses."""
    return [["query"], [[repr(float(score)) for score in scores]]], [labels]


def test_the_table_has_one_loss_for_each_word_of_the_configuration():
    assert set(LOSSES) == set(get_args(LossName))


@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_nothing_whatever_stands_in_it(name):
    scores, labels, mask, teacher, weights = batch(weighed=True)
    seen = []
    for junk in (0.0, 1e4, -math.inf, math.inf, NAN):
        filled = [tensor.masked_fill(~mask, junk) for tensor in (scores, labels, teacher, weights)]
        filled[0].requires_grad_()
        value = mean(LOSSES[name](filled[0], filled[1], mask, *filled[2:]))
        value.backward()
        assert value.item() > 0
        assert (filled[0].grad[~mask] == 0).all()
        assert filled[0].grad.isfinite().all()
        seen.append((value.item(), filled[0].grad))
    for (value, gradient), (again, gradient_again) in pairwise(seen):
        assert value == again
        assert torch.equal(gradient, gradient_again)


@pytest.mark.parametrize("name", NAMES)
def test_a_padded_group_has_the_value_of_the_group_without_padding(name):
    tensors = batch(weighed=True)
    values, counts = LOSSES[name](*tensors)
    for group in range(len(values)):
        alone, counts_alone = LOSSES[name](*cut_to_size(tensors, group))
        torch.testing.assert_close(values[group], alone[0])
        assert counts[group] == counts_alone[0]


@pytest.mark.parametrize("name", NAMES)
def test_padding_may_stand_anywhere(name):
    tensors = batch(weighed=True)
    order = torch.tensor([4, 0, 6, 1, 5, 2, 3])
    moved = [tensor[:, order] for tensor in tensors]
    torch.testing.assert_close(LOSSES[name](*moved)[0], LOSSES[name](*tensors)[0])


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_agree_with_finite_differences(name, weighed):
    scores, *others = batch(dtype=torch.float64, groups=3, width=5, weighed=weighed)
    scores.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: LOSSES[name](s, *others)[0], scores)


@pytest.mark.parametrize("name", NAMES)
def test_scores_of_ten_thousand_keep_value_and_gradient_finite(name):
    scores, labels, mask, teacher, weights = batch(weighed=True)
    for sign in (1, -1):
        large = (sign * 1e4 * labels.clamp(max=1) + scores).requires_grad_()
        value = mean(LOSSES[name](large, labels, mask, teacher * 1e4, weights))
        value.backward()
        assert value.isfinite()
        assert large.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_in_which_nothing_counts_gives_zero_with_a_zero_gradient(name):
    scores = torch.randn(2, 3, requires_grad=True)
    nothing = (torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool), torch.full((2, 3), NAN), torch.ones(2, 3))
    value = mean(LOSSES[name](scores, *nothing))
    value.backward()
    assert value.item() == 0
    assert torch.equal(scores.grad, torch.zeros(2, 3))


def test_listwise_with_one_positive_is_cross_entropy():
    scores, labels, mask, teacher, weights = batch(ragged=False)
    labels = functional.one_hot(torch.tensor([3, 0, 6, 2, 1]), 7).float()
    expected = functional.cross_entropy(scores, labels.argmax(1), reduction="none")
    torch.testing.assert_close(losses.listwise(scores, labels, mask, teacher, weights)[0], expected)


def test_listwise_is_the_mean_over_all_positives_of_minus_the_log_softmax():
    tensors = batch()
    values, _ = losses.listwise(*tensors)
    for group in range(5):
        alone, grades, *_ = (tensor[0].double().numpy() for tensor in cut_to_size(tensors, group))
        logs = alone - np.log(np.exp(alone).sum())
        assert values[group].item() == pytest.approx(-logs[grades > 0].mean(), rel=1e-5)


def test_listwise_is_listnet_when_its_label_softmax_is_uniform_over_the_positives(stub):
    from sentence_transformers.cross_encoder.losses import ListNetLoss

    tensors = batch()
    values, _ = losses.listwise(*tensors)
    for group in range(5):
        scores, labels, *_ = cut_to_size(tensors, group)
        inputs, their_labels = listed(scores[0], torch.where(labels[0] > 0, 0.0, -1e9))
        torch.testing.assert_close(values[group], ListNetLoss(stub)(inputs, their_labels))


def test_listwise_counts_groups_with_a_positive_and_something_to_compare_it_to():
    labels = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 0, 0], [0, 0, 1]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 0]]).bool()
    _, counts = losses.listwise(torch.randn(4, 3), labels, mask, labels, torch.ones(4, 3))
    assert counts.tolist() == [False, True, False, False]


def test_bce_is_sentence_transformers_bce_over_pairs_when_groups_are_equal(stub):
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

    scores, labels, mask, teacher, weights = batch(ragged=False)
    pairs = [["query"] * scores.numel(), [repr(float(score)) for score in scores.flatten()]]
    expected = BinaryCrossEntropyLoss(stub)(pairs, (labels > 0).float().flatten())
    torch.testing.assert_close(mean(losses.bce(scores, labels, mask, teacher, weights)), expected)


def test_ranknet_is_sentence_transformers_ranknet_in_nats(stub):
    from sentence_transformers.cross_encoder.losses import RankNetLoss

    tensors = batch()
    values, _ = losses.ranknet(*tensors)
    for group in range(5):
        scores, labels, *_ = cut_to_size(tensors, group)
        expected = RankNetLoss(stub, reduction_log="natural")(*listed(scores[0], labels[0]))
        torch.testing.assert_close(values[group], expected)


def test_lambda_is_sentence_transformers_lambdarank_summed_over_pairs_in_nats(stub):
    from sentence_transformers.cross_encoder.losses import LambdaLoss, LambdaRankScheme

    tensors = batch()
    values, _ = losses.lambda_ndcg(*tensors)
    theirs = LambdaLoss(stub, weighting_scheme=LambdaRankScheme(), reduction_log="natural")
    for group in range(5):
        scores, labels, *_ = cut_to_size(tensors, group)
        pairs = (labels[0][:, None] > labels[0]).sum()
        torch.testing.assert_close(values[group], theirs(*listed(scores[0], labels[0])) * pairs)


def test_lambda_weighs_a_pair_by_what_its_swap_does_to_ndcg():
    from sklearn.metrics import ndcg_score

    scores, grades = np.array([0.2, 1.5, -0.3, 0.9]), np.array([2, 0, 1, 0])
    gains = (2.0**grades - 1)[None]
    expected = 0.0
    for better in range(4):
        for worse in range(4):
            if grades[better] > grades[worse]:
                swapped = scores.copy()
                swapped[[better, worse]] = scores[[worse, better]]
                change = abs(ndcg_score(gains, scores[None]) - ndcg_score(gains, swapped[None]))
                expected += change * math.log1p(math.exp(scores[worse] - scores[better]))
    one = [torch.tensor(values, dtype=torch.float64)[None] for values in (scores, grades)]
    values, _ = losses.lambda_ndcg(*one, torch.ones(1, 4, dtype=torch.bool), one[0], torch.ones(1, 4))
    assert values.item() == pytest.approx(expected)


def test_pairwise_losses_count_only_groups_with_two_different_grades():
    labels, mask = torch.tensor([[1.0, 1, 0], [2, 1, 0]]), torch.tensor([[1, 1, 0], [1, 1, 0]]).bool()
    for loss in (losses.ranknet, losses.lambda_ndcg):
        assert loss(torch.randn(2, 3), labels, mask, labels, torch.ones(2, 3))[1].tolist() == [False, True]


def test_margin_mse_is_sentence_transformers_for_one_positive(stub):
    from sentence_transformers.cross_encoder.losses import MarginMSELoss

    scores, labels, mask, _, weights = batch(ragged=False)
    labels = torch.zeros_like(labels)
    labels[:, 0] = 1
    teacher = torch.randn(5, 7, generator=torch.Generator().manual_seed(3))
    columns = [["query"] * 5, *([repr(float(score)) for score in column] for column in scores.T)]
    expected = MarginMSELoss(stub)(columns, list(teacher))
    torch.testing.assert_close(mean(losses.margin_mse(scores, labels, mask, teacher, weights)), expected)


def test_margin_mse_leaves_out_pairs_with_an_unknown_teacher():
    scores, labels = torch.tensor([[3.0, 1.0, 2.0, 9.0]]), torch.tensor([[1.0, 0, 0, 1]])
    teacher = torch.tensor([[0.5, 0.25, NAN, NAN]])
    values, counts = losses.margin_mse(scores, labels, torch.ones(1, 4).bool(), teacher, torch.ones(1, 4))
    assert values.item() == pytest.approx(((3 - 1) - (0.5 - 0.25)) ** 2)
    assert counts.item()


def test_margin_mse_of_a_labelled_group_whose_positive_has_no_teacher_does_not_count():
    labels, teacher = torch.tensor([[1.0, 0, 0]]), torch.tensor([[NAN, 0.2, 0.3]])
    ones = torch.ones(1, 3)
    assert not losses.margin_mse(torch.randn(1, 3), labels, ones.bool(), teacher, ones)[1].item()


def test_margin_mse_without_labels_is_twice_the_variance_of_the_difference():
    scores, _, mask, teacher, weights = tensors = batch()
    values, counts = losses.margin_mse(scores, torch.zeros_like(scores), mask, teacher, weights)
    assert counts.all()
    for group in range(5):
        student, _, _, wanted, _ = (tensor[0] for tensor in cut_to_size(tensors, group))
        apart = (student - wanted)[wanted.isfinite()]
        torch.testing.assert_close(values[group], 2 * apart.var())


@pytest.mark.parametrize("temperature", [0.05, 1.0, 3.0])
def test_kl_is_torchs_divergence_over_the_candidates_that_the_teacher_scored(temperature):
    tensors = batch()
    values, counts = losses.kl(*tensors, temperature=temperature)
    assert counts.all()
    for group in range(5):
        scores, _, _, teacher, _ = (tensor[0] for tensor in cut_to_size(tensors, group))
        known = teacher.isfinite()
        student, wanted = scores[known].log_softmax(0), (teacher[known] / temperature).softmax(0)
        expected = functional.kl_div(student, wanted, reduction="sum")
        torch.testing.assert_close(values[group], expected, rtol=1e-5, atol=1e-6)


def test_kl_is_zero_for_a_student_that_agrees_and_counts_only_two_known_scores():
    teacher = torch.tensor([[0.1, 0.7, 0.4], [NAN, NAN, 0.3]])
    ones = torch.ones(2, 3)
    values, counts = losses.kl(teacher / 0.5 + 2, torch.zeros(2, 3), ones.bool(), teacher, ones, temperature=0.5)
    assert values[0].item() == pytest.approx(0, abs=1e-6)
    assert counts.tolist() == [True, False]


def test_combined_terms_are_the_weighted_sum_of_each():
    tensors = batch()
    total, count = combine({"listwise": 2.0, "kl": 0.5, "bce": 0.0}, temperature=0.3)(*tensors)
    expected = 2 * losses.listwise(*tensors)[0].sum() + 0.5 * losses.kl(*tensors, temperature=0.3)[0].sum()
    torch.testing.assert_close(total, expected)
    assert count.item() == 5


def test_a_group_counts_once_if_any_term_counts_it():
    scores, mask = torch.randn(3, 2), torch.ones(3, 2, dtype=torch.bool)
    labels = torch.tensor([[1.0, 0], [0, 0], [0, 0]])
    teacher = torch.tensor([[0.1, 0.2], [0.3, 0.1], [NAN, NAN]])
    tensors = (scores, labels, mask, teacher, torch.ones(3, 2))
    total, count = combine({"listwise": 1, "kl": 1}, temperature=1)(*tensors)
    assert count.item() == 2
    both = losses.listwise(*tensors)[0][0] + losses.kl(*tensors)[0][:2].sum()
    torch.testing.assert_close(total, both)


def test_micro_batches_of_different_sizes_accumulate_to_one_large_batch():
    scores, *others = batch(groups=9, dtype=torch.float64, weighed=True)
    others[0][4] = 0
    loss = combine(dict.fromkeys(NAMES, 1.0), temperature=0.5)
    whole = scores.clone().requires_grad_()
    total, count = loss(whole, *others)
    (total / count).backward()
    parts, counted = scores.clone().requires_grad_(), 0
    for start, end in ((0, 2), (2, 7), (7, 9)):
        total, count = loss(parts[start:end], *(tensor[start:end] for tensor in others))
        total.backward()
        counted += count
    torch.testing.assert_close(parts.grad / counted, whole.grad)


def test_combining_where_nothing_counts_leaves_a_zero_gradient():
    scores = torch.full((2, 2), NAN, requires_grad=True)
    nothing = (torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.bool), torch.zeros(2, 2), torch.ones(2, 2))
    total, count = combine({"listwise": 1, "kl": 1}, temperature=1)(scores, *nothing)
    total.backward()
    assert (total.item(), count.item()) == (0, 0)
    assert torch.equal(scores.grad, torch.zeros(2, 2))


def test_spread_is_the_mean_standard_deviation_inside_groups():
    tensors = batch()
    expected = np.mean([cut_to_size(tensors, group)[0][0].numpy().std() for group in range(5)])
    assert group_spread(tensors[0], tensors[2]).item() == pytest.approx(float(expected), rel=1e-5)


def test_spread_sees_groups_not_the_batch():
    scores = torch.tensor([[5.0, 5.0, NAN], [-5.0, -5.0, -5.0], [2.0, NAN, NAN]])
    assert group_spread(scores, scores.isfinite()).item() == 0


@pytest.mark.parametrize("weighed", [False, True])
def test_chance_is_what_listwise_gives_to_equal_scores(weighed):
    scores, labels, mask, teacher, weights = batch(weighed=weighed)
    labels[2] = 0
    level = mean(losses.listwise(torch.full_like(scores, 3.7), labels, mask, teacher, weights))
    assert chance_loss(mask, labels, weights).item() == pytest.approx(level.item())


def test_chance_is_the_logarithm_of_the_weighted_count():
    mask, labels, weights = torch.ones(1, 8).bool(), torch.eye(8)[:1], torch.full((1, 8), 0.25)
    assert chance_loss(mask, labels, torch.ones(1, 8)).item() == pytest.approx(math.log(8))
    assert chance_loss(mask, labels, weights).item() == pytest.approx(math.log(1 + 7 * 0.25))


def test_the_alarm_has_no_opinion_on_groups_that_say_nothing():
    alone = torch.tensor([[True, False]])
    assert group_spread(torch.ones(1, 2), alone).isnan()
    assert chance_loss(alone, torch.ones(1, 2), torch.ones(1, 2)).isnan()


# ------------------------------------------------------------------------------------------- weights of negatives

LABELLED = ["listwise", "bce", "ranknet", "lambda"]


@pytest.mark.parametrize("name", LABELLED)
def test_a_negative_of_weight_zero_is_as_good_as_left_out(name):
    scores, labels, mask, teacher, weights = batch()
    gone = (labels <= 0) & (torch.rand(labels.shape, generator=torch.Generator().manual_seed(1)) < 0.6)
    gone[0] = labels[0] <= 0  # nothing is left to compare
    seen = []
    for present, counted in ((mask, weights.masked_fill(gone, 0)), (mask & ~gone, weights)):
        own = scores.clone().requires_grad_()
        per_group = LOSSES[name](own, labels, present, teacher, counted)
        mean(per_group).backward()
        seen.append((*per_group, own.grad))
    assert gone[1:].any()
    torch.testing.assert_close(seen[0][0][seen[0][1]], seen[1][0][seen[1][1]])
    assert torch.equal(seen[0][1], seen[1][1])
    torch.testing.assert_close(seen[0][2], seen[1][2])
    assert not seen[0][2][gone].any()


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_positives_are_not_read(name):
    tensors = batch(weighed=True)
    changed = tensors[4].masked_fill(tensors[1] > 0, 0.125)
    assert torch.equal(LOSSES[name](*tensors)[0], LOSSES[name](*tensors[:4], changed)[0])


@pytest.mark.parametrize("name", ["kl", "margin-mse"])
def test_distillation_does_not_read_weights(name):
    tensors = batch()
    assert torch.equal(LOSSES[name](*tensors)[0], LOSSES[name](*tensors[:4], tensors[4] * 0.3)[0])


@pytest.mark.parametrize("name", LABELLED)
def test_nothing_breaks_when_all_negatives_weigh_nothing_or_next_to_nothing(name):
    for weight in (0.0, 1e-45, 1e-30, 1e-6):
        scores, labels, mask, teacher, weights = batch()
        scores.requires_grad_()
        value = mean(LOSSES[name](scores, labels, mask, teacher, weights * weight))
        value.backward()
        assert value.isfinite()
        assert scores.grad.isfinite().all()


def by_loop(tensors, group):
    """(score, grade, weight) of one group's candidates as plain numbers; a positive weighs 1."""
    scores, labels, _, _, weights = (tensor[0].tolist() for tensor in cut_to_size(tensors, group))
    return [(s, g, 1.0 if g > 0 else w) for s, g, w in zip(scores, labels, weights, strict=True)]


def test_listwise_multiplies_a_negatives_term_in_the_denominator_by_its_weight():
    tensors = batch(weighed=True, dtype=torch.float64)
    values, _ = losses.listwise(*tensors)
    for group in range(5):
        rows = by_loop(tensors, group)
        whole = math.log(sum(weight * math.exp(score) for score, _, weight in rows))
        expected = np.mean([whole - score for score, grade, _ in rows if grade > 0])
        assert values[group].item() == pytest.approx(expected)


def test_bce_is_the_weighted_mean_over_candidates():
    tensors = batch(weighed=True, dtype=torch.float64)
    values, _ = losses.bce(*tensors)
    for group in range(5):
        rows = by_loop(tensors, group)
        total = sum(w * math.log1p(math.exp(-s if g > 0 else s)) for s, g, w in rows)
        assert values[group].item() == pytest.approx(total / sum(weight for *_, weight in rows))


def test_bce_without_positives_is_the_weighted_mean_too():
    scores, nothing, weights = torch.tensor([[1.0, -2.0]]), torch.zeros(1, 2), torch.tensor([[0.1, 0.3]])
    values, counts = losses.bce(scores, nothing, torch.ones(1, 2).bool(), nothing, weights)
    assert values.item() == pytest.approx((0.1 * math.log1p(math.exp(1)) + 0.3 * math.log1p(math.exp(-2))) / 0.4)
    assert counts.item()


def test_ranknet_is_the_mean_over_pairs_weighted_by_their_lower_graded_candidate():
    tensors = batch(weighed=True, dtype=torch.float64)
    values, _ = losses.ranknet(*tensors)
    for group in range(5):
        rows = by_loop(tensors, group)
        pairs = [(weight, t - s) for s, g, _ in rows for t, h, weight in rows if g > h]
        expected = sum(w * math.log1p(math.exp(d)) for w, d in pairs) / sum(w for w, _ in pairs)
        assert values[group].item() == pytest.approx(expected)


def test_lambda_multiplies_each_pair_by_the_weight_of_its_lower_graded_candidate():
    scores, labels = torch.tensor([[0.2, 1.5, -0.3, 0.9]]), torch.tensor([[2.0, 0, 1, 0]])
    mask, half = torch.ones(1, 4).bool(), torch.tensor([[1.0, 0.5, 1.0, 0.5]])
    whole = losses.lambda_ndcg(scores, labels, mask, labels, torch.ones(1, 4))[0]
    halved = losses.lambda_ndcg(scores, labels, mask, labels, half)[0]
    # The pair of grades 2 and 1, at ranks 3 and 4, keeps its weight: the rest is halved.
    ideal = 3 + 1 / math.log2(3)
    kept = 2 / ideal * (1 / math.log2(4) - 1 / math.log2(5)) * math.log1p(math.exp(-0.3 - 0.2))
    assert halved.item() == pytest.approx(kept + (whole.item() - kept) / 2)
