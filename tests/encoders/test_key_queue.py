from collections import deque

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.key_queue import KeyQueue


def contents(queue: KeyQueue) -> list[tuple[int, list[float]]]:
    """Filled rows, oldest first."""
    total, capacity = int(queue.num_enqueued), len(queue.ids)
    rows = [row % capacity for row in range(max(0, total - capacity), total)]
    return [(int(queue.ids[row]), queue.keys[row].tolist()) for row in rows]


@settings(deadline=None, max_examples=60)
@given(capacity=st.integers(1, 9), sizes=st.lists(st.integers(1, 21), max_size=8))
def test_it_holds_what_a_bounded_deque_holds_for_any_batch_sizes(capacity, sizes):
    queue, expected = KeyQueue(capacity, 2), deque(maxlen=capacity)
    next_id = 0
    for size in sizes:
        ids = torch.arange(next_id, next_id + size)
        keys = torch.stack([ids.float(), -ids.float()], dim=1)
        queue.enqueue(keys, ids)
        expected.extend(zip(ids.tolist(), keys.tolist(), strict=True))
        next_id += size
        assert contents(queue) == list(expected)
        assert int(queue.num_filled) == len(expected)
        assert int((queue.ids < 0).sum()) == capacity - len(expected)


def test_keys_are_kept_in_float32_without_gradient():
    queue = KeyQueue(4, 3)
    queue.enqueue(torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True), torch.tensor([1, 2]))
    assert queue.keys.dtype == torch.float32
    assert not queue.keys.requires_grad


def test_a_restored_queue_continues_where_it_stopped():
    queue, restored = KeyQueue(5, 1), KeyQueue(5, 1)
    queue.enqueue(torch.ones(7, 1), torch.arange(7))
    restored.load_state_dict(queue.state_dict())
    for either in (queue, restored):
        either.enqueue(torch.zeros(2, 1), torch.tensor([70, 80]))
    assert contents(restored) == contents(queue)
    assert [picture for picture, _ in contents(queue)] == [4, 5, 6, 70, 80]
