"""What draws the workflows: words are swapped whole."""

import pytest
from graphing.parts import reword


def test_words_that_hold_the_old_word_stay():
    assert reword("a red star, checkered red", "red", "green") == "a green star, checkered green"


def test_a_word_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match="no word 'red'"):
        reword("a checkered star", "red", "green")
