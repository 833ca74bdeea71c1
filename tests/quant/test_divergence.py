"""How far answers are apart."""

import pytest
import torch

from dffg.quant.divergence import divergence

LOGITS = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)) * 3
OTHERS = LOGITS + torch.randn(5, 7, generator=torch.Generator().manual_seed(1))


def test_divergence_is_torchs():
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=LOGITS), torch.distributions.Categorical(logits=OTHERS)
    )
    torch.testing.assert_close(divergence(LOGITS, OTHERS), expected)


def test_every_one_of_several_answers_counts_on_its_own():
    loud = 300 * LOGITS
    parts = [slice(0, 7), slice(7, 14)]
    found = divergence(torch.cat([loud, LOGITS], 1), torch.cat([loud, OTHERS], 1), parts)
    torch.testing.assert_close(found, divergence(LOGITS, OTHERS))


@pytest.mark.parametrize("scale", [1.0, 1.01])
def test_divergence_of_probabilities_is_that_of_the_logits_they_come_from(scale):
    answers = LOGITS.softmax(1), OTHERS.softmax(1) * scale
    torch.testing.assert_close(divergence(*answers), divergence(LOGITS, OTHERS), rtol=1e-4, atol=1e-6)


def test_certain_probabilities_have_a_finite_divergence_and_gradient():
    output = torch.tensor([[0.0, 1.0]], requires_grad=True)
    divergence(torch.tensor([[1.0, 0.0]]), output).sum().backward()
    assert output.grad.isfinite().all()
