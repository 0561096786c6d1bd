from dataclasses import replace
from typing import Any, Literal

import pytest
import torch

from encoders.losses import NO_LABEL, nt_xent, sup_con
from encoders.method import Batch, Parts
from encoders.recipes import supcon_small, tiny
from encoders.supcon import SupConConfig
from encoders.training import Pretraining

TEMPERATURE = 0.1
ROWS = torch.nn.functional.normalize(torch.randn(12, 8, generator=torch.manual_seed(1)), dim=1)
IDS = torch.tensor([4, 9, 2, 7, 30, 1])


def loss_of(labels: list[int], unlabelled: Literal["ignore", "alone"]) -> torch.Tensor:
    config = SupConConfig(temperature=TEMPERATURE, unlabelled=unlabelled)
    nothing: Any = torch.nn.Sequential()
    method = config.build(Parts(backbone=nothing, projector=nothing, embedding_dim=8, seed=0))
    batch = Batch(view_a=ROWS[:6], view_b=ROWS[6:], ids=IDS, labels=torch.tensor(labels), step=0)
    return method.compare((ROWS[:6], ROWS[6:]), (), batch).loss


def test_pictures_alone_in_their_class_make_the_loss_of_simclr() -> None:
    found = loss_of([NO_LABEL] * 6, "alone")
    expected = nt_xent(ROWS[:6], ROWS[6:], IDS, temperature=TEMPERATURE)
    torch.testing.assert_close(found, expected)


def test_unlabelled_pictures_are_negatives_of_the_labelled_unless_they_are_ignored() -> None:
    labels = [0, 0, 1, NO_LABEL, 1, NO_LABEL]
    alone = torch.tensor([0, 0, 1, 77, 1, 99])
    expected = sup_con(ROWS[:6], ROWS[6:], alone, temperature=TEMPERATURE)
    torch.testing.assert_close(loss_of(labels, "alone"), expected)
    ignored = sup_con(ROWS[:6], ROWS[6:], torch.tensor(labels), temperature=TEMPERATURE)
    torch.testing.assert_close(loss_of(labels, "ignore"), ignored)
    assert not torch.isclose(expected, ignored)


def test_another_word_is_refused() -> None:
    with pytest.raises(ValueError, match="unlabelled is 'skip'; it must be ignore or alone"):
        SupConConfig(unlabelled="skip")  # type: ignore[arg-type]


def test_a_run_of_few_labels_trains_on_all_pictures() -> None:
    config = tiny(supcon_small())
    method = SupConConfig(unlabelled="alone")
    training = Pretraining(replace(config, method=method), num_pictures=24)
    pixels = torch.randint(0, 256, (24, 16, 16, 3), dtype=torch.uint8).numpy()
    rows = training.next_rows()
    labels = torch.full((len(rows),), NO_LABEL).numpy()
    assert training.train_step(pixels[rows], rows, labels)["loss"] > 0
