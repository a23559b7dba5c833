"""The Walsh matrix in closed form, and the two block transforms, against the recursion."""

from __future__ import annotations

import pytest
import torch

from hadamard_fx.kernels.walsh import block_transform, low_rank_walsh, token_transform, walsh, walsh_reference

CPU = torch.device("cpu")
ORDERS = [2, 4, 8, 16, 32, 64, 128]


@pytest.mark.parametrize("order", ORDERS)
def test_rows_are_orthogonal_symmetric_and_sorted_by_sign_changes(order: int) -> None:
    matrix = walsh_reference(order)
    assert torch.equal(matrix @ matrix.t(), order * torch.eye(order, dtype=torch.float64))
    assert torch.equal(matrix, matrix.t())
    assert (matrix[:, 1:] != matrix[:, :-1]).sum(1).tolist() == list(range(order))


@pytest.mark.parametrize("order", ORDERS)
def test_closed_form_is_the_recursion(order: int) -> None:
    assert torch.equal(walsh(order, CPU, torch.float64), walsh_reference(order))
    assert torch.equal(low_rank_walsh(order // 2, order, CPU, torch.float64), walsh_reference(order)[: order // 2])


@pytest.mark.parametrize(("length", "order", "multiple"), [(37, 16, 16), (64, 4, 16), (1, 2, 16), (130, 128, 128)])
def test_block_transform_pads_with_zeros(length: int, order: int, multiple: int) -> None:
    x = torch.randint(-9, 10, (3, length)).float()
    v = block_transform(x, order, multiple)
    padded = torch.nn.functional.pad(x.double(), (0, -length % multiple))
    expected = padded @ torch.block_diag(*[walsh_reference(order)] * (padded.shape[1] // order))
    assert torch.equal(v.double(), expected)


@pytest.mark.parametrize(("length", "order", "rank", "multiple"), [(37, 16, 8, 2), (5, 4, 3, 16), (128, 64, 64, 1)])
def test_token_transform_keeps_the_low_sequencies(length: int, order: int, rank: int, multiple: int) -> None:
    x = torch.randint(-9, 10, (length, 5)).float()
    v = token_transform(x, order, rank, multiple)
    padded = torch.nn.functional.pad(x.double(), (0, 0, 0, -length % (order * multiple)))
    assert torch.equal(v.double(), walsh_reference(order)[:rank] @ padded.view(-1, order, 5))
    assert v.shape[0] % multiple == 0


def test_the_transform_cancels_in_a_product() -> None:
    """(A H)(Hᵀ B)/n = A B, law 1 of the algorithms; and the padding adds nothing."""
    a, b = torch.randn(7, 45, dtype=torch.float64), torch.randn(45, 6, dtype=torch.float64)
    left = block_transform(a.float(), 16, 16).double()
    right = token_transform(b.float(), 16, 16, 1).double().reshape(-1, 6)
    torch.testing.assert_close(left @ right / 16, a @ b, rtol=1e-5, atol=1e-4)
