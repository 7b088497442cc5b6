"""The alphabet is an ordered value: text to classes and back, and nothing that is not in it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captcha_ray.errors import InputError
from captcha_ray.text.charset import Charset

ALPHABETS = st.text(min_size=1, max_size=40).map(lambda text: "".join(dict.fromkeys(text)))


def test_class_k_is_character_k_in_the_given_order() -> None:
    charset = Charset("ba9")
    assert charset.encode(["9ab", "bbb"], 3).tolist() == [[2, 1, 0], [0, 0, 0]]
    assert charset.decode(np.array([[0, 2], [1, 1]])) == ["b9", "aa"]
    assert len(charset) == 3


@given(st.data())
@settings(deadline=None)
def test_decoding_undoes_encoding(data: st.DataObject) -> None:
    charset = Charset(data.draw(ALPHABETS))
    max_length = data.draw(st.integers(0, 6))
    texts = data.draw(st.lists(st.text(charset.characters, min_size=max_length, max_size=max_length)))
    classes = charset.encode(texts, max_length)
    assert classes.shape == (len(texts), max_length)
    assert classes.dtype == np.int64
    assert charset.decode(classes) == texts


@given(st.lists(st.text()).filter(any))
@settings(deadline=None)
def test_the_alphabet_of_texts_is_their_characters_sorted_whatever_their_order(texts: list[str]) -> None:
    charset = Charset.found_in(texts)
    assert charset == Charset.found_in(reversed(texts))
    assert list(charset.characters) == sorted(set("".join(texts)))
    assert not any(charset.unknown_in(text) for text in texts)


def test_unknown_characters_are_told_once_in_order_of_appearance() -> None:
    assert Charset("012").unknown_in("z1az0") == "za"


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_an_alphabet_of_nothing_is_refused(texts: list[str]) -> None:
    with pytest.raises(InputError, match="empty"):
        Charset.found_in(texts)


def test_a_character_that_stands_twice_is_refused() -> None:
    with pytest.raises(InputError, match="'0120' holds a character twice"):
        Charset("0120")


def test_a_label_of_another_length_is_refused_with_both_lengths() -> None:
    with pytest.raises(InputError, match="label '123' has 3 characters where the network recognizes 2"):
        Charset("123").encode(["12", "123"], 2)


def test_a_label_with_an_unknown_character_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="label '1x' holds 'x', which the charset '12' lacks"):
        Charset("12").encode(["12", "1x"], 2)


def test_shorter_texts_are_filled_up_with_the_class_after_the_last() -> None:
    charset = Charset("ab")
    encoded = charset.encode(["ba", "a", "bbb"], 3, variable=True)
    assert encoded.tolist() == [[1, 0, 2], [0, 2, 2], [1, 1, 1]]
    assert charset.decode(encoded) == ["ba", "a", "bbb"]
    assert charset.decode(np.array([[0, 2, 1]])) == ["a"], "what stands behind the end is not read"
    for text in ("", "abab"):
        with pytest.raises(InputError, match=f"has {len(text)} characters where the network recognizes 1 to 3"):
            charset.encode([text], 3, variable=True)
