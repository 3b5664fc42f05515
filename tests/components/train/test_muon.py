import pytest
import torch

from components.train.muon import FP32_COEFFICIENTS, FP32_MARGIN, Muon, orthogonal

SHAPES = [(6, 6), (6, 24), (24, 6), (5, 9)]
SETTINGS = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}


def train_both(dtype):
    """The same three steps by ours and by torch's."""
    torch.manual_seed(0)
    first = [torch.nn.Parameter(torch.randn(*shape)) for shape in SHAPES]
    second = [torch.nn.Parameter(value.detach().clone()) for value in first]
    ours = Muon(first, dtype=dtype, **SETTINGS)
    theirs = torch.optim.Muon(second, adjust_lr_fn="match_rms_adamw", **SETTINGS)
    for _ in range(3):
        for one, other in zip(first, second, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        ours.step()
        theirs.step()
    return first, second


def test_in_bf16_the_steps_are_those_of_torch():
    for one, other in zip(*train_both(torch.bfloat16), strict=True):
        torch.testing.assert_close(one, other)


def test_in_fp32_the_steps_are_near_those_of_torch():
    for one, other in zip(*train_both(torch.float32), strict=True):
        # Three updates of 0.02 in the root mean square; singular values within 0.85 to 1.13 here, 0.7 to 1.2 there.
        assert (one - other).norm() < 0.3 * 3 * 0.02 * one.numel() ** 0.5


def test_in_fp32_singular_values_become_nearly_one_and_directions_stay():
    torch.manual_seed(0)
    for columns in (16, 48, 64):
        left = torch.linalg.qr(torch.randn(16, 16)).Q
        right = torch.linalg.qr(torch.randn(columns, 16)).Q.T
        values = torch.logspace(0, -2.2, 16)
        (result,) = orthogonal([left @ torch.diag(values) @ right])
        inner = left.T @ result @ right.T
        assert inner.diagonal().min() > 0.84
        assert inner.diagonal().max() < 1.14
        torch.testing.assert_close(inner, torch.diag(inner.diagonal()), atol=0.01, rtol=0)


def test_products_of_matrices_give_the_iterations_of_the_matrices_themselves():
    torch.manual_seed(0)
    matrices = [torch.randn(16, columns) * torch.logspace(0, -3, 16)[:, None] for columns in (16, 48, 64)]
    for matrix, result in zip(matrices, orthogonal(matrices), strict=True):
        expected = matrix.double() / matrix.double().norm() / FP32_MARGIN
        for a, b, c in FP32_COEFFICIENTS:
            gram = expected @ expected.T
            expected = a * expected + (b * gram + c * gram @ gram) @ expected
        # Squared singular values cost half of the digits of fp32.
        torch.testing.assert_close(result.double(), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("shape", [(8, 8), (8, 32)])
def test_a_matrix_of_rank_one_or_zero_stays_finite(shape):
    one = torch.outer(torch.randn(shape[0]), torch.randn(shape[1]))
    first, second = orthogonal([one, torch.zeros(shape)])
    assert 0.8 < first.norm() < 1.2
    assert torch.equal(second, torch.zeros(shape))


def test_a_matrix_without_a_gradient_stays():
    still, moved = (torch.nn.Parameter(torch.ones(2, 3)) for _ in range(2))
    moved.grad = torch.ones(2, 3)
    Muon([still, moved], dtype=torch.float32, **SETTINGS).step()
    assert torch.equal(still, torch.ones(2, 3))
    assert not torch.equal(moved, torch.ones(2, 3))
