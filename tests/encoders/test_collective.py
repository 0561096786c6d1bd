import torch

from encoders.collective import average, gather_rows, rank, world_size


def rows_of(which: int) -> torch.Tensor:
    return torch.arange(6.0, dtype=torch.float64).view(3, 2) + 10 * which


def gather_and_differentiate() -> tuple[list, list]:
    """Every rank weighs every gathered row in its own way, so each owes gradient to all."""
    local = rows_of(rank()).requires_grad_()
    gathered = gather_rows(local)
    weights = torch.arange(gathered.numel(), dtype=torch.float64).view_as(gathered) * (1 + rank())
    (gathered.square() * weights).sum().backward()
    return gathered.tolist(), local.grad.tolist()


def average_of_two_tensors() -> list:
    tensors = [torch.full((2, 2), float(rank())), torch.tensor(10.0 * rank())]
    average(tensors)
    return [tensor.tolist() for tensor in tensors]


def gather_ids() -> list:
    return gather_rows(torch.tensor([rank(), 5])).tolist()


def gather_in_chunks() -> tuple[list, list]:
    """Two chunks of four rows, of which each rank holds two; each row by its place."""
    places = torch.tensor([[0.0, 1.0, 4.0, 5.0], [2.0, 3.0, 6.0, 7.0]])[rank()].requires_grad_()
    gathered = gather_rows(places, 2)
    (gathered * torch.arange(8) * (1 + rank())).sum().backward()
    return gathered.tolist(), places.grad.tolist()


def test_rows_come_back_chunk_by_chunk_with_their_gradients(ranks):
    (first, first_grad), (second, second_grad) = ranks(gather_in_chunks)
    assert first == second == list(range(8))
    assert first_grad == [0, 3, 12, 15]
    assert second_grad == [6, 9, 18, 21]
    rows = torch.arange(6)
    assert gather_rows(rows, 3) is rows


def test_without_ranks_everything_is_the_identity():
    rows = rows_of(0)
    assert (rank(), world_size()) == (0, 1)
    assert gather_rows(rows) is rows
    average([rows])
    assert torch.equal(rows, rows_of(0))


def test_rows_are_gathered_in_rank_order(ranks):
    expected = torch.cat([rows_of(0), rows_of(1)]).tolist()
    for gathered, _ in ranks(gather_and_differentiate):
        assert gathered == expected
    assert ranks(gather_ids) == [[0, 5, 1, 5]] * 2


def test_a_row_receives_the_gradient_of_every_ranks_loss(ranks):
    everything = torch.cat([rows_of(0), rows_of(1)]).requires_grad_()
    weights = torch.arange(12, dtype=torch.float64).view(6, 2)
    sum((everything.square() * weights * (1 + r)).sum() for r in range(2)).backward()
    found = [grad for _, grad in ranks(gather_and_differentiate)]
    assert torch.tensor(found, dtype=torch.float64).view(6, 2).equal(everything.grad)


def test_average_is_the_mean_of_each_tensor(ranks):
    assert ranks(average_of_two_tensors) == [[[[0.5, 0.5], [0.5, 0.5]], 5.0]] * 2
