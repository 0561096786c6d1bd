"""What of an encoder's preprocessing is stated, and what is refused."""

import pytest

from encoders.preprocess import PreprocessConfig


def test_the_edge_is_stated_where_it_is_not_what_it_always_was():
    before = PreprocessConfig(size=96)
    assert "decode_edge" not in before.facts()
    assert before.square() == {"size": 96, "fit": "crop"}
    chosen = PreprocessConfig(size=96, decode_edge=0)
    assert chosen.facts() == PreprocessConfig(size=96, decode_edge=187).facts()
    assert chosen.square() == {"size": 96, "fit": "crop", "decode_edge": 187}
    assert PreprocessConfig(**chosen.facts()).least_edge == 187


@pytest.mark.parametrize("decode_edge", [-1, 95, 513])
def test_an_edge_out_of_range_is_refused_with_what_is_allowed(decode_edge):
    with pytest.raises(ValueError, match=rf"decode_edge is {decode_edge} px.*96, the size, to 512"):
        PreprocessConfig(size=96, decode_edge=decode_edge)
