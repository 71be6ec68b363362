"""Hidden tests of chapter 01. Expected values come from the tokenizers library, from PyTorch and transformers, from
arithmetic that fits on a line, and from laws; none from the reference.

tokenizers works on characters. Byte b is shown to it as the b-th of 256 characters that sort alike, so that its ids,
its order among ties and ours are the same.
"""

import functools
import itertools
import json
import math
import random
import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from autograder.student import Remote, Student, StudentError, Unfinished, assert_close, tensor
from autograder.testing import gradients, normal

RESERVED = {"train_bpe": ("tokenizers",), "next_token_distribution": ("transformers",)}  # libraries: no import of them

Merges = list[tuple[int, int]]

PAD = -100
BYTES = [chr(0x4E00 + byte) for byte in range(256)]
ENGLISH = (
    "The story of a token begins with a text. The text is cut into tokens, and the tokens are cut into nothing else. "
    "A token that is seen often is a token of its own; a token that is seen once is built from others, and others. "
    "The number of tokens is chosen by us; the tokens are chosen by counting, and by nothing but counting!\n\n"
    "Of this text, then, the tokens are these: they are the strings that stood together often in this text.\n"
)
CODE = (
    "def merge(ids, pair, new):\n    out = []\n    for i in range(len(ids)):\n        if ids[i:i + 2] == pair:\n"
    "            out.append(new)\n        else:\n            out.append(ids[i])\n    return out\n\n\n"
    "def merged(ids, pairs):\n    for new, pair in enumerate(pairs):\n        ids = merge(ids, pair, 256 + new)\n"
    "    return ids\n"
)
JAPANESE = (
    "むかしむかし、あるところに、おじいさんとおばあさんがいました。おじいさんは山へしばかりに、おばあさんは川へ"
    "せんたくに行きました。おばあさんが川でせんたくをしていると、川上から大きな桃が、どんぶらこ、どんぶらこ、と"
    "流れて来ました。おばあさんは桃をひろって、うちへ帰りました。\n"
)
TEXTS = {"English": ENGLISH, "code": CODE, "Japanese": JAPANESE}
UNUSUAL = "\ufeffnaïve 👩‍🚀👩‍🚀 \t\r\n\n  한국어 ﷽ a\u0301 \x00\x7f ١٢٣ \U0001f1ef\U0001f1f5!? __x__ 　全角　"


def pieces(text: str) -> list[str]:
    """As in the set-up cell."""
    return re.findall(r" ?\w+| ?[^\w\s]+|\s+", text)


@functools.cache
def trained(text: str, n_merges: int) -> tuple[Any, Merges]:
    """A tokeniser of the tokenizers library, and its merges."""
    from tokenizers import Tokenizer, models, trainers

    bpe = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=256 + n_merges, initial_alphabet=BYTES, show_progress=False)
    bpe.train_from_iterator([shown(piece) for piece in pieces(text)], trainer)
    model = json.loads(bpe.to_str())["model"]
    return bpe, [(model["vocab"][left], model["vocab"][right]) for left, right in model["merges"]]


def merges_of(text: str, n_merges: int) -> Merges:
    return list(trained(text, n_merges)[1])


def made_of(merges: Merges) -> Any:
    """A tokeniser of the tokenizers library with these merges."""
    from tokenizers import Tokenizer, models

    names = list(BYTES)
    for left, right in merges:
        names.append(names[left] + names[right])
    pairs = [(names[left], names[right]) for left, right in merges]
    return Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, pairs))


def ids_of(text: str, of: str, n_merges: int) -> list[int]:
    """The ids of a text by the tokenizers library, trained on another one."""
    bpe, _ = trained(of, n_merges)
    return [i for piece in pieces(text) for i in bpe.encode(shown(piece)).ids]


def shown(piece: str) -> str:
    return "".join(BYTES[byte] for byte in piece.encode())


def tokens(merges: Merges) -> list[bytes]:
    """The bytes of every id."""
    found = [bytes([byte]) for byte in range(256)]
    for left, right in merges:
        found.append(found[left] + found[right])
    return found


def jumble(alphabet: str, length: int, seed: int) -> str:
    return "".join(random.Random(seed).choices(alphabet, k=length))


# -- train_bpe ------------------------------------------------------------------------------------------------------


def learnt(student: Student, text: str, n_merges: int) -> Merges:
    """The student's merges, once they are pairs of ids that exist already. That pairs are tuples has its own test."""
    found = student.train_bpe(text, n_merges)
    assert isinstance(found, list), f"train_bpe should return a list, but it returned {kind(found)}."
    for i, pair in enumerate(found):
        assert isinstance(pair, tuple | list), f"Merge {i} should be a tuple of two ids, not {kind(pair)}."
        assert len(pair) == 2, f"Merge {i} should be a tuple of two ids, and it has {len(pair)}."
        assert all(type(part) is int for part in pair), f"Merge {i} should hold two integers, and one is none."
        assert all(0 <= part < 256 + i for part in pair), f"Merge {i} uses an id that does not exist yet, or never."
    assert len(found) <= n_merges, f"{len(found)} merges were returned where at most {n_merges} were asked for."
    return [(left, right) for left, right in found]


def kind(value: Any) -> str:
    if isinstance(value, Remote):
        return repr(value)
    return "None (is a `return` missing?)" if value is None else f"a {type(value).__name__}"


def agrees(found: Merges, expected: Merges, text: str) -> None:
    """Assert that these are the same merges; say where they part, and show nothing of what is right."""
    at = next((i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), None)
    assert at is None, f"Trained on {text}, merge {at} (counted from 0) is another one than it should be."
    assert len(found) == len(expected), f"Trained on {text}, the merges are right as far as they go, but too " + (
        "few." if len(found) < len(expected) else "many."
    )


@pytest.mark.exercise("train_bpe", weight=2.5)
def test_the_merges_are_those_of_a_tokeniser_in_use(student: Student) -> None:
    """Trained on the same pieces, the tokenizers library finds the same merges in the same order."""
    for name, text in TEXTS.items():
        agrees(learnt(student, text, 40), merges_of(text, 40), f"a text in {name}")


@pytest.mark.exercise("train_bpe")
def test_training_starts_from_bytes(student: Student) -> None:
    """The ids 0 to 255 are the bytes of UTF-8, of which many characters have two, three or four."""
    for letter, expected in (("é", (0xC3, 0xA9)), ("ж", (0xD0, 0xB6)), ("橋", (0xA9, 0x8B)), ("🍣", (0x8D, 0xA3))):
        text = f"{letter}{letter}\n"
        assert learnt(student, text, 1) == [expected], f"In {text!r} the first merge should join two bytes of {letter}."
    text = "AB\nAB\nAB\nåB\nåB\n"  # å ends in the byte 165, whose last digits are those of A, 65
    agrees(learnt(student, text, 3), merges_of(text, 3), repr(text))


@pytest.mark.exercise("train_bpe")
def test_merge_i_makes_the_id_256_plus_i(student: Student) -> None:
    """The first merge makes the id 256, the next one 257; later merges use these ids."""
    for n in (2, 3, 5):
        text = "".join("abcdefgh"[: length + 2] + "\n" for length in range(n)) * 2  # the longer, the rarer
        found = learnt(student, text, n)
        uses = [part for pair in found for part in pair if part >= 256]
        assert len(found) == n, f"{text!r} allows {n} merges; there are {len(found)}."
        assert uses == list(range(256, 255 + n)), f"In {text!r} each merge should build on the token made just before."


@pytest.mark.exercise("train_bpe")
def test_of_two_pairs_with_the_same_count_the_smaller_wins(student: Student) -> None:
    """Ties are decided by the ids: the smaller pair, as Python compares tuples, is merged first."""
    for one, two in (("ab", "xy"), ("xy", "ab"), ("ac", "ab"), ("bb", "ab"), ("éa", "az")):
        text = f"{one}\n{two}\n{one}\n{two}"
        expected = min(tuple(word.encode()[:2]) for word in (one, two))
        found = learnt(student, text, 1)
        assert found == [expected], f"In {text!r} two pairs are equally frequent, and the wrong one is merged first."
    for alphabet in ("ab", "abc"):
        text = 2 * (jumble(alphabet + "  ", 60, seed=3) + "\n")
        agrees(learnt(student, text, 25), merges_of(text, 25), f"a text of {len(alphabet)} letters, full of ties")


@pytest.mark.exercise("train_bpe")
def test_no_merge_reaches_across_pieces(student: Student) -> None:
    """Pairs are counted inside pieces only: no token holds the end of one piece and the beginning of the next."""
    for text in ("to be or not to be, to be or not to be", "a1! a1! b2? b2?\n\n a1! b2?"):
        inside = {piece.encode() for piece in pieces(text)}
        found = tokens(learnt(student, text, 12))[256:]
        assert found, f"No merge was found in {text!r}."
        assert all(any(token in piece for piece in inside) for token in found), (
            f"Trained on {text!r}, a token reaches from one piece into the next."
        )


@pytest.mark.exercise("train_bpe")
def test_a_piece_counts_as_often_as_it_occurs(student: Student) -> None:
    """A word that is there five times gives its pairs five counts."""
    for often, others in (("zq", "abc abd abe abf"), ("yx", "aba abo abu")):
        text = "\n".join([often] * (len(others.split()) + 1) + others.split())
        found = learnt(student, text, 1)
        assert found == [tuple(often.encode())], (
            f"{often!r} occurs {text.count(often)} times, more often than any other pair, but it is not merged first."
        )


@pytest.mark.exercise("train_bpe")
def test_every_place_counts_also_where_pairs_overlap(student: Student) -> None:
    """In aaa the pair of two a stands in two places, so it has the count 2."""
    for text in ("zzz\nab\nzzz\nab\nab", "yyyy\nab\nab"):
        found = learnt(student, text, 1)
        assert found == [(ord(text[0]),) * 2], f"In {text!r} the pair that stands in most places is not merged first."
    for text in ("aaaaaaa\n" * 2, "aaaaa\naaaa\naaaaaaaa\n" * 2, "あああああ\n" * 2):
        agrees(learnt(student, text, 4), merges_of(text, 4), repr(text))


@pytest.mark.exercise("train_bpe")
def test_merging_goes_from_left_to_right(student: Student) -> None:
    """In aaab the first two a are merged: what is left is aa, a, b."""
    for letter, after in (("a", "b"), ("x", "a")):
        text = f"{letter * 3}{after}\n" * 3 + f"{letter * 3}\n"
        agrees(learnt(student, text, 3), merges_of(text, 3), repr(text))


@pytest.mark.exercise("train_bpe")
def test_training_ends_when_no_pair_is_left(student: Student) -> None:
    """Pairs that occur once are merged too; when every piece is one token, there is nothing more to learn."""
    for text in ("cab\ncab", "abc", "one two", "日本"):
        expected = merges_of(text, 30)
        found = learnt(student, text, 30)
        assert len(found) == len(expected), f"Trained on {text!r} with room for 30, the number of merges is wrong."
        assert found == expected, f"Trained on {text!r} until nothing is left, a merge is wrong."


@pytest.mark.exercise("train_bpe", weight=0.5)
def test_a_merge_is_a_tuple_of_two_integers(student: Student) -> None:
    """The result is a list of tuples, so that a merge can be looked up in a dictionary."""
    found = student.train_bpe("to be or not to be, to be or not to be", 4)
    assert isinstance(found, list), f"train_bpe should return a list, but it returned {kind(found)}."
    assert len(found) == 4, f"4 merges were asked for, and there are {len(found)}."
    for pair in found:
        assert isinstance(pair, tuple), f"A merge should be a tuple, and one is {kind(pair)}."
        assert [type(part) for part in pair] == [int, int], "A merge should hold two integers."
    assert len(set(found)) == 4, "The same merge is there more than once."


@pytest.mark.exercise("train_bpe", weight=0.5)
def test_nothing_to_learn_gives_no_merges(student: Student) -> None:
    """n_merges may be 0, and a text may be empty or too short to hold a pair."""
    assert learnt(student, "abab", 2), "No merge was found in 'abab'."  # an empty list for every text is no merit
    for text, n_merges in (("abab", 0), ("", 3), ("a", 3), ("a b", 0)):
        found = learnt(student, text, n_merges)
        assert found == [], f"train_bpe({text!r}, {n_merges}) should find nothing, and found {len(found)} merges."


@pytest.mark.exercise("train_bpe", weight=0.5)
def test_more_merges_only_add_to_the_list(student: Student) -> None:
    """The first merges do not depend on how many follow, nor on what was trained before."""
    long = learnt(student, CODE, 30)
    assert len(long) == 30, f"30 merges were asked for, and {len(long)} found."
    learnt(student, JAPANESE, 3)
    for n in (1, 13):
        assert learnt(student, CODE, n) == long[:n], (
            f"The first {n} of 30 merges differ from those of a shorter training."
        )


@pytest.mark.exercise("train_bpe", weight=0.5)
def test_a_few_thousand_bytes_are_soon_learnt(student: Student) -> None:
    """Each round counts all pairs in one pass. Going through the text once for every pair takes minutes."""
    text = jumble("etaoinshrdlucmfwypvbgk" + 5 * " ", 6_000, seed=7)
    agrees(learnt(student, text, 60), merges_of(text, 60), "6,000 bytes")


# -- encode ---------------------------------------------------------------------------------------------------------


def encoded(student: Student, text: str, merges: Merges) -> list[int]:
    """The student's ids, once they are a list of ids that exist."""
    found = student.encode(text, merges)
    assert isinstance(found, list), f"encode should return a list, but it returned {kind(found)}."
    assert all(type(i) is int for i in found), "The ids should be integers, and one is none."
    assert all(0 <= i < 256 + len(merges) for i in found), "An id is not in the vocabulary."
    return found


@pytest.mark.exercise("encode", weight=2)
def test_the_ids_are_those_of_a_tokeniser_in_use(student: Student) -> None:
    """With the same merges, the tokenizers library cuts the same text into the same tokens."""
    for of, text in itertools.product(TEXTS, TEXTS):
        found = encoded(student, TEXTS[text][:300], merges_of(TEXTS[of], 60))
        expected = ids_of(TEXTS[text][:300], TEXTS[of], 60)
        at = next(
            (i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b),
            min(map(len, (found, expected))),
        )
        assert found == expected, (
            f"A text in {text}, with merges learnt on {of}: token {at} is another one than it should be."
        )


@pytest.mark.exercise("encode")
def test_without_merges_the_ids_are_the_bytes(student: Student) -> None:
    """Each piece starts as the bytes of its UTF-8."""
    for text in ("a z", "né", "箸と橋", "🍣 !", UNUSUAL):
        assert encoded(student, text, []) == list(text.encode()), (
            f"Without merges, the ids of {text!r} are not its bytes."
        )


@pytest.mark.exercise("encode", weight=2)
def test_the_earliest_merge_comes_first(student: Student) -> None:
    """The order of the list decides, not the place in the text and not the length of the token."""
    for text, merges in (
        # Each of these tells another wrong rule from the right one. Each list is one that training can return: with
        # such a list it comes to the same whether ids are looked up, or the bytes of two neighbours, as in tiktoken.
        ("cdb", [(99, 100), (100, 98)]),
        ("abc", [(98, 99), (97, 256), (97, 98)]),
        ("dbc", [(98, 99), (100, 98)]),
        ("aabab", [(97, 98), (97, 97), (97, 256)]),
        ("baadadd", [(97, 97), (97, 100), (100, 100)]),
    ):
        found = encoded(student, text, merges)
        assert found == made_of(merges).encode(shown(text)).ids, (
            f"With the merges {merges}, {text!r} comes out as {found}. Which of them stands earliest in the list?"
        )
    for seed in range(4):
        of, text = (jumble("abc", 80, seed=seed + shift) for shift in (10, 20))
        found = encoded(student, text, merges_of(of, 30))
        assert found == ids_of(text, of, 30), "In a long word of three letters some merge comes before an earlier one."


@pytest.mark.exercise("encode")
def test_one_merge_is_made_from_left_to_right(student: Student) -> None:
    """Where places overlap, the left one is merged: aaa becomes aa and a."""
    for n in (3, 5, 7):
        merges = [(97, 97)]
        found = encoded(student, "a" * n, merges)
        assert sorted(found)[1:] == [256] * (n // 2), f"{n} times a should hold {n // 2} times the token aa."
        assert found[-1] == 97, f"In {n} times a, the a that is left over should be the last one."


@pytest.mark.exercise("encode")
def test_tokens_stay_inside_their_piece(student: Student) -> None:
    """A merge of a letter with a space, or of two words' letters, is not made across the border of pieces."""
    merges = [(97, 32), (97, 33), (33, 10), (32, 98)]
    for text in ("a b a b", "a a!", "a!\na!", "ba b"):
        found = encoded(student, text, merges)
        cuts = set(itertools.accumulate(len(tokens(merges)[i]) for i in found))
        borders = set(itertools.accumulate(len(piece.encode()) for piece in pieces(text)))
        assert b"".join(tokens(merges)[i] for i in found) == text.encode(), f"The tokens of {text!r} do not make it up."
        assert borders <= cuts, f"In {text!r} a token reaches from one piece into the next."
    assert len(encoded(student, " b b", merges)) == 2, "Inside a piece, a space and a letter may be merged."


@pytest.mark.exercise("encode")
def test_the_tokens_make_up_the_text(student: Student) -> None:
    """Put together, the bytes of the tokens are the bytes of the text, for any Unicode."""
    for of in TEXTS.values():
        merges = merges_of(of, 60)
        for text in (of[:99], UNUSUAL):
            found = encoded(student, text, merges)
            assert b"".join(tokens(merges)[i] for i in found) == text.encode(), (
                f"The tokens of {text!r} do not make it up."
            )
            assert text is UNUSUAL or len(found) < len(text.encode()), f"Nothing was merged in {text!r}."


@pytest.mark.exercise("encode", weight=0.5)
def test_no_text_has_no_tokens(student: Student) -> None:
    """The empty text gives an empty list, with merges and without."""
    assert encoded(student, "b", [(97, 98)]) == [98], "The text 'b' should have one token."  # [] for all is no merit
    for merges in ([], [(97, 98)]):
        assert encoded(student, "", merges) == [], "The empty text should have no tokens."


@pytest.mark.exercise("encode", weight=0.5)
def test_the_merges_are_left_as_they_were(student: Student) -> None:
    """The list of merges belongs to the caller, who will encode another text with it."""
    merges = merges_of(ENGLISH, 20)
    kept = student.put(merges)
    first = student.encode("the tokens of the text", kept)
    assert isinstance(first, list), f"encode should return a list of ids, not {kind(first)}."
    assert first, "There are no ids."
    assert kept.get() == merges, "After the call the list of merges is another one."
    assert student.encode("the tokens of the text", kept) == first, "The same text has other tokens the second time."


# -- decode ---------------------------------------------------------------------------------------------------------


def decoded(student: Student, ids: list[int], merges: Merges) -> str:
    found = student.decode(ids, merges)
    assert isinstance(found, str), f"decode should return a str, but it returned {kind(found)}."
    return found


@pytest.mark.exercise("decode", weight=2)
def test_decoding_undoes_encoding(student: Student) -> None:
    """The ids of a text give the text again, whatever the language."""
    for of, text in itertools.product(TEXTS.values(), [*TEXTS.values(), UNUSUAL]):
        found = decoded(student, ids_of(text, of, 60), merges_of(of, 60))
        assert found == text, "The text that comes back is not the text that was encoded."


@pytest.mark.exercise("decode")
def test_merges_are_built_from_merges(student: Student) -> None:
    """An id above 255 stands for two ids, each of which may stand for two again."""
    merges = [(97, 98), (256, 256), (257, 99), (258, 258), (33, 259)]
    for ids, text in (([260], "!ababcababc"), ([259, 97], "ababcababca"), ([258, 257, 256], "ababcababab")):
        assert decoded(student, ids, merges) == text, f"With the merges {merges}, the ids {ids} give the wrong text."


@pytest.mark.exercise("decode")
def test_a_character_may_come_from_several_tokens(student: Student) -> None:
    """Bytes are put together before they are read as UTF-8."""
    for text in ("é", "橋で箸", "a🍣b"):
        assert decoded(student, list(text.encode()), []) == text, f"The bytes of {text!r}, one a token, do not give it."
    merges = [(97, 0xC3), (0xA9, 98), (0xE6, 0xA9)]
    for ids, text in (([256, 257], "aéb"), ([258, 0x8B], "橋"), ([256, 0xA9, 258, 0x8B], "aé橋")):
        assert decoded(student, ids, merges) == text, f"With the merges {merges}, the ids {ids} do not give {text!r}."


@pytest.mark.exercise("decode", weight=2)
def test_what_is_no_utf_8_becomes_the_replacement_character(student: Student) -> None:
    """A cut character, a stray byte, bytes that UTF-8 forbids: as bytes.decode(errors="replace") does it."""
    merges = merges_of(JAPANESE, 40)
    random_ids = [random.Random(seed).choices(range(296), k=12) for seed in range(6)]
    cut = [list("橋🍣".encode())[:n] for n in (1, 2, 4, 6)]
    forbidden = [[0xFF], [0x80, 97], [0xC0, 0xAF], [0xED, 0xA0, 0x80], [97, 0xE6, 0xA9, 98]]
    for ids in (*random_ids, *cut, *forbidden):
        expected = b"".join(tokens(merges)[i] for i in ids).decode(errors="replace")
        found = decoded(student, ids, merges)
        assert found == expected, f"The ids {ids} are no valid UTF-8 throughout, and what they give is not as stated."
    assert "\ufffd" not in decoded(student, list("橋".encode()), []), "A whole character was replaced."


@pytest.mark.exercise("decode")
def test_an_id_that_does_not_exist_is_an_error(student: Student) -> None:
    """Too large or negative: a ValueError that names the id, and never another token in its place."""
    merges = [(97, 98), (256, 99)]
    assert decoded(student, [257], merges) == "abc", "The last id there is does not give its text."
    for ids, wrong in (([258], "258"), ([97, -1], "-1"), ([-256], "-256"), ([5000, 97], "5000")):
        raised: StudentError | None = None
        try:
            student.decode(ids, merges)
        except Unfinished:
            raise
        except StudentError as error:
            raised = error
        what = f"decode({ids}, ...) raises {raised.types[0] if raised else 'nothing'}"
        assert isinstance(raised, ValueError), f"{what}, and it should raise a ValueError: there is no token {wrong}."
        named = re.search(rf"(?<![\d-]){wrong}(?!\d)", str(raised).replace("−", "-"))
        assert named, f"The sentence does not name the id {wrong}: {raised}"


@pytest.mark.exercise("decode", weight=0.25)
def test_no_ids_give_the_empty_text(student: Student) -> None:
    """decode([], merges) is the empty string."""
    assert decoded(student, [120], []) == "x", "The id 120 alone should give 'x'."  # "" for all is no merit
    for merges in ([], [(97, 98)]):
        assert decoded(student, [], merges) == "", "Where there are no ids there should be no text."


@pytest.mark.exercise("decode", weight=0.25)
def test_ids_and_merges_are_left_as_they_were(student: Student) -> None:
    """Both lists belong to the caller, who goes on writing."""
    ids, merges = [257, 97, 256], [(97, 98), (256, 99)]
    kept = student.put(ids), student.put(merges)
    found = student.decode(*kept)
    assert found == "abcaab", f"The ids {ids} with the merges {merges} give the wrong text."
    assert kept[0].get() == ids, "After the call the list of ids is another one."
    assert kept[1].get() == merges, "After the call the list of merges is another one."


# -- next_token_loss ------------------------------------------------------------------------------------------------


def batch(sizes: tuple[int, ...], vocab: int, seed: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Logits and ids of sequences of these lengths, filled up with PAD."""
    n = max(sizes)
    ids = torch.randint(vocab, (len(sizes), n), generator=torch.Generator().manual_seed(seed))
    ids[torch.arange(n) >= torch.tensor(sizes)[:, None]] = PAD
    return scale * normal(len(sizes), n, vocab, seed=seed), ids


def total(logits: Tensor, ids: Tensor) -> tuple[Tensor, int]:
    """The sum of −ln p, sequence by sequence and by PyTorch, and how many tokens are predicted."""
    nats, n_predicted = logits.new_zeros(()), 0
    for row, targets in zip(logits, ids, strict=True):
        targets = targets[targets != PAD]
        if len(targets) > 1:
            nats = nats + cross_entropy(row[: len(targets) - 1], targets[1:], reduction="sum")
            n_predicted += len(targets) - 1
    return nats, n_predicted


def losses(student: Student, logits: Tensor, ids: Tensor, n_bytes: int) -> tuple[Tensor, Tensor]:
    found = student.next_token_loss(logits, ids, n_bytes)
    assert isinstance(found, tuple), f"next_token_loss should return a tuple of two tensors, not {kind(found)}."
    assert len(found) == 2, f"next_token_loss should return nats a token and bits a byte, not {len(found)} values."
    named = zip(found, ("nats a token", "bits a byte"), strict=True)
    nats, bits = (  # a float may have the right value too: that they are tensors has a test of its own
        torch.tensor(value, dtype=logits.dtype) if isinstance(value, float) else tensor(value, shape=(), name=name)
        for value, name in named
    )
    return nats, bits


@pytest.mark.exercise("next_token_loss", weight=2)
def test_position_t_predicts_the_token_at_t_plus_1(student: Student) -> None:
    """The mean of −ln p over all tokens but the first of each sequence, each judged by the logits before it."""
    for seed, (sizes, vocab) in enumerate([((4, 4), 5), ((7, 7, 7), 11), ((2,), 3), ((33,), 300)]):
        logits, ids = batch(sizes, vocab, seed)
        nats, n_predicted = total(logits, ids)
        found, _ = losses(student, logits, ids, 10)
        assert_close(found, nats / n_predicted, claim=f"logits of shape {tuple(logits.shape)}", name="nats a token")


@pytest.mark.exercise("next_token_loss", weight=2)
def test_bits_a_byte_are_all_bits_over_all_bytes(student: Student) -> None:
    """The sum of −log2 p of all predicted tokens, divided by n_bytes."""
    for seed, (sizes, n_bytes) in enumerate([((4, 4), 6), ((5, 5, 5), 100), ((9, 9), 7)]):
        logits, ids = batch(sizes, 6, seed)
        nats, _ = total(logits, ids)
        _, bits = losses(student, logits, ids, n_bytes)
        assert_close(bits, nats / math.log(2) / n_bytes, claim=f"{n_bytes} bytes", name="bits a byte")


@pytest.mark.exercise("next_token_loss")
def test_equal_logits_cost_the_logarithm_of_the_vocabulary(student: Student) -> None:
    """Where all V tokens are equally likely, each costs ln V nats, which is log2 V bits."""
    for vocab in (2, 8, 1000):
        nats, bits = losses(student, torch.full((3, 5, vocab), 2.5), batch((5, 5, 5), vocab, 1)[1], 12)
        assert_close(nats, torch.tensor(math.log(vocab)), claim=f"{vocab} equal logits", name="nats a token")
        assert_close(bits, torch.tensor(math.log2(vocab)), claim=f"{vocab} equal logits, 12 bytes", name="bits a byte")


@pytest.mark.exercise("next_token_loss")
def test_the_first_token_and_the_last_logits_are_not_judged(student: Student) -> None:
    """Nobody predicts the first token, and what the last position expects is judged by nobody; all else counts."""
    logits, ids = batch((5, 5), 4, 3)
    before = losses(student, logits, ids, 9)[0].detach()
    other, moved = logits.clone(), ids.clone()
    other[:, -1] += normal(2, 4, seed=8)
    moved[:, 0] = (moved[:, 0] + 1) % 4
    assert_close(losses(student, other, ids, 9)[0], before, claim="other logits at the last position", name="the loss")
    assert_close(losses(student, logits, moved, 9)[0], before, claim="another first token", name="the loss")
    for t in range(4):
        other = logits.clone()
        other[1, t, ids[1, t + 1]] += 1
        after = losses(student, other, ids, 9)[0]
        assert after < before, f"The right token at position {t + 1} got more probable, and the loss did not fall."


@pytest.mark.exercise("next_token_loss")
def test_padding_counts_for_nothing(student: Student) -> None:
    """PAD is not predicted, and what stands at padded positions changes neither of the two results."""
    sizes = (6, 3, 1)
    logits, ids = batch(sizes, 5, 4)
    nats, n_predicted = total(logits, ids)
    found = losses(student, logits, ids, 11)
    assert_close(found[0], nats / n_predicted, claim="with padding", name="nats a token")
    assert_close(found[1], nats / math.log(2) / 11, claim="with padding", name="bits a byte")
    other = logits.clone()
    other[1, 2:], other[2] = 7 * normal(4, 5, seed=1), -3 * normal(6, 5, seed=2)
    for name, now, before in zip(("nats", "bits"), losses(student, other, ids, 11), found, strict=True):
        assert_close(now, before.detach(), claim="other logits where nothing is predicted", name=name)


@pytest.mark.exercise("next_token_loss")
def test_every_token_counts_the_same(student: Student) -> None:
    """The mean is over tokens: a long sequence counts more than a short one."""
    ids = torch.tensor([[0, 1, 1, 1, 1], [0, 1, PAD, PAD, PAD]])
    logits = torch.zeros(2, 5, 2)
    logits[0, :, 1] = 3.0  # four good guesses in one sequence, one bad guess in the other
    logits[1, :, 0] = 3.0
    good, bad = math.log1p(math.exp(-3)), 3 + math.log1p(math.exp(-3))
    found, bits = losses(student, logits, ids, 5)
    assert_close(found, torch.tensor((4 * good + bad) / 5), name="nats a token")
    assert_close(bits, torch.tensor((4 * good + bad) / math.log(2) / 5), name="bits a byte")


@pytest.mark.exercise("next_token_loss")
def test_large_logits_give_finite_losses(student: Student) -> None:
    """Logits of ±10,000: the probability of a wrong guess is 0 in floating point, its logarithm is not −inf."""
    ids = torch.tensor([[0, 1, 2, 0]])
    logits = torch.zeros(1, 4, 3)
    logits[0, 0, 1], logits[0, 1, 2], logits[0, 2, 0] = 1e4, -1e4, 300.0
    nats, n_predicted = total(logits.double(), ids)
    found, bits = losses(student, logits, ids, 4)
    assert_close(found, (nats / n_predicted).float(), name="nats a token")
    assert_close(bits, (nats / math.log(2) / 4).float(), name="bits a byte")


@pytest.mark.exercise("next_token_loss")
def test_gradients_reach_the_logits(student: Student) -> None:
    """Both results can be differentiated, and the last position gets no gradient."""
    logits, ids = batch((5, 3), 6, 5)
    logits.requires_grad_()
    nats, n_predicted = total(logits, ids)
    upstream = torch.tensor(1.0)
    for i, expected in enumerate((nats / n_predicted, nats / math.log(2) / 7)):
        wanted = gradients(expected, upstream, logits=logits)["logits"] if i else None
        found = gradients(losses(student, logits, ids, 7)[i], upstream, logits=logits)["logits"]
        if wanted is None:
            wanted = torch.autograd.grad(expected, logits, retain_graph=True)[0]
        assert_close(found, wanted, name=f"the gradient of {('nats a token', 'bits a byte')[i]}")


@pytest.mark.exercise("next_token_loss", weight=0.5)
def test_the_losses_are_tensors_of_the_dtype_of_the_logits(student: Student) -> None:
    """float64 logits give float64 losses, bfloat16 logits bfloat16 losses; both are tensors without dimensions."""
    logits, ids = batch((6, 4), 5, 6)
    nats, n_predicted = total(logits.double(), ids)
    for dtype, atol in ((torch.float64, 1e-6), (torch.bfloat16, 5e-2)):
        found = student.next_token_loss(logits.to(dtype), ids, 8)
        assert isinstance(found, tuple), f"next_token_loss should return a tuple of two tensors, not {kind(found)}."
        assert len(found) == 2, f"next_token_loss should return nats a token and bits a byte, not {len(found)} values."
        assert_close(found[0], (nats / n_predicted).to(dtype), atol=atol, name=f"the {str(dtype)[6:]} nats a token")
        assert_close(found[1], (nats / math.log(2) / 8).to(dtype), atol=atol, name=f"the {str(dtype)[6:]} bits a byte")


@pytest.mark.exercise("next_token_loss", weight=0.5)
def test_logits_and_ids_are_left_as_they_were(student: Student) -> None:
    """Both belong to the caller: an operation that ends in _ changes them, and so does writing into them."""
    logits, ids = batch((5, 2), 4, 7)
    kept = {"logits": student.put(logits), "ids": student.put(ids)}
    found = student.next_token_loss(kept["logits"], kept["ids"], 5)
    assert isinstance(found, tuple), f"next_token_loss should return a tuple of two tensors, not {kind(found)}."
    assert found, "The tuple that was returned is empty."
    first = torch.tensor(found[0]) if isinstance(found[0], float) else found[0]
    assert_close(first, total(logits, ids)[0] / 5, name="nats a token")  # doing nothing at all is no merit
    for name, value in (("logits", logits), ("ids", ids)):
        assert_close(kept[name].get(), value, atol=0, rtol=0, claim="after the call", name=name)


# -- next_token_distribution ----------------------------------------------------------------------------------------


@functools.cache
def warped(shape: tuple[int, ...], seed: int, temperature: float, top_k: int | None, top_p: float | None) -> Tensor:
    """What transformers makes of random logits: its own three steps, in its own order."""
    from transformers.generation.logits_process import (
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    scores = spread(*shape, seed=seed).reshape(-1, shape[-1])
    nothing: Any = None
    scores = TemperatureLogitsWarper(temperature)(nothing, scores)
    if top_k is not None:
        scores = TopKLogitsWarper(top_k)(nothing, scores)
    if top_p is not None:
        scores = TopPLogitsWarper(top_p)(nothing, scores)
    return scores.softmax(-1).reshape(shape)


def spread(*shape: int, seed: int) -> Tensor:
    """Random logits that are spread out like a model's."""
    return 2 * normal(*shape, seed=seed)


def distribution(student: Student, logits: Tensor, **knobs: Any) -> Tensor:
    """The student's probabilities, once they are some: none negative or NaN, and every row sums to 1."""
    found = tensor(student.next_token_distribution(logits, **knobs), shape=logits.shape, name="the probabilities")
    p = found.detach().double()
    assert bool(p.isfinite().all()), f"With {said(knobs)} a probability is NaN or infinite."
    assert bool((p >= 0).all()), f"With {said(knobs)} a probability is below 0."
    largest = (p.sum(-1) - 1).abs().max().item()
    assert largest < (5e-2 if found.dtype == torch.bfloat16 else 1e-4), (
        f"With {said(knobs)} the probabilities of a row sum to something that is {largest:.3g} away from 1."
    )
    return found


def said(knobs: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in knobs.items()) or "no setting"


def kept(p: Tensor) -> list[int]:
    """Which tokens of a row have a chance."""
    return p.nonzero()[:, 0].tolist()


@pytest.mark.exercise("next_token_distribution")
def test_by_default_it_is_the_softmax(student: Student) -> None:
    """Temperature 1 and no limits leave the model's own probabilities."""
    for seed, shape in enumerate([(7,), (3, 5), (2, 3, 40)]):
        logits = spread(*shape, seed=seed)
        assert_close(distribution(student, logits), logits.softmax(-1), claim=f"logits of shape {shape}")


@pytest.mark.exercise("next_token_distribution")
def test_logits_are_divided_by_the_temperature(student: Student) -> None:
    """Below 1 the likely gets likelier, above 1 all get more alike: the softmax of logits / temperature."""
    for temperature, scale in ((0.5, 1.0), (2.0, 1.0), (0.1, 1.0), (1e-3, 1e-3)):
        logits = scale * torch.tensor([0.0, 1.0, -1.0])
        p = distribution(student, logits, temperature=temperature).detach().double()
        assert bool((p > 0).all()), f"At temperature {temperature} a token lost all of its probability."
        factor = (p[1] / p[0]).log().item() / scale
        assert math.isclose(factor * temperature, 1, rel_tol=1e-3), (
            f"At temperature {temperature} the logits come out as if they had been multiplied by {factor:.3g}."
        )


@pytest.mark.exercise("next_token_distribution")
def test_top_k_keeps_the_k_most_probable(student: Student) -> None:
    """The k largest logits keep their ratios and sum to 1; every other token gets 0 exactly."""
    logits = spread(3, 9, seed=1)
    for k in (1, 2, 5, 8):
        p = distribution(student, logits, top_k=k)
        counts = (p > 0).sum(-1).tolist()
        assert counts == [k] * 3, f"With top_k={k} the three rows keep {counts} tokens."
        assert_close(p, warped((3, 9), 1, 1.0, k, None), claim=f"top_k={k}")


@pytest.mark.exercise("next_token_distribution", weight=2)
def test_top_p_keeps_the_token_that_crosses(student: Student) -> None:
    """The fewest tokens, from the most probable on, that sum to at least p: the one that crosses p belongs to them."""
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()
    for p, tokens_kept in ((0.05, 1), (0.35, 1), (0.45, 2), (0.69, 2), (0.75, 3), (0.95, 4)):
        counts = len(kept(distribution(student, logits, top_p=p)))
        assert counts == tokens_kept, (
            f"Tokens of 40, 30, 20 and 10 %, top_p={p}: {counts} of them {'is' if counts == 1 else 'are'} kept."
        )
    for seed, top_p in enumerate((0.3, 0.6, 0.9)):
        found = distribution(student, spread(4, 11, seed=seed), top_p=top_p)
        assert_close(found, warped((4, 11), seed, 1.0, None, top_p), claim=f"top_p={top_p}")


@pytest.mark.exercise("next_token_distribution", weight=0.5)
def test_reaching_top_p_exactly_is_enough(student: Student) -> None:
    """The fewest tokens that sum to at least p: where some sum to p exactly, no other one is kept."""
    for vocab, p, n in ((4, 0.5, 2), (8, 0.125, 1), (2, 0.5, 1), (16, 0.75, 12)):  # all exact in floating point
        counts = len(kept(distribution(student, torch.zeros(vocab), top_p=p)))
        assert counts == n, f"Of {vocab} equally likely tokens, top_p={p} keeps {counts}."


@pytest.mark.exercise("next_token_distribution", weight=2)
def test_top_p_looks_at_what_top_k_left(student: Student) -> None:
    """After top-k the probabilities sum to 1 again, and top-p counts with these."""
    logits = torch.tensor([0.35, 0.25, 0.2, 0.1, 0.1]).log()
    for k, p, n in ((2, 0.55, 1), (3, 0.7, 2), (3, 0.76, 3), (4, 0.3, 1), (5, 0.85, 4)):
        counts = len(kept(distribution(student, logits, top_k=k, top_p=p)))
        assert counts == n, f"Tokens of 35, 25, 20, 10 and 10 %, top_k={k}, top_p={p}: {counts} are kept."


@pytest.mark.exercise("next_token_distribution", weight=2)
def test_top_p_looks_at_the_probabilities_after_temperature(student: Student) -> None:
    """Temperature comes first: it decides which tokens make up the share p."""
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    for temperature, p, n in ((0.5, 0.5, 1), (0.25, 0.9, 2), (3.0, 0.6, 3), (5.0, 0.75, 3), (0.5, 0.8, 2)):
        counts = len(kept(distribution(student, logits, temperature=temperature, top_p=p)))
        assert counts == n, f"Tokens of 40, 30, 20 and 10 %, temperature={temperature}, top_p={p}: {counts} are kept."


@pytest.mark.exercise("next_token_distribution", weight=2)
def test_all_knobs_together_do_what_transformers_does(student: Student) -> None:
    """Temperature, then top-k, then top-p, on random logits."""
    for seed, (temperature, k, p) in enumerate([(0.7, 5, 0.8), (1.5, 20, 0.9), (2.0, 3, 0.95), (0.9, 30, 0.5)]):
        knobs = {"temperature": temperature, "top_k": k, "top_p": p}
        found = distribution(student, spread(3, 33, seed=seed), **knobs)
        assert_close(found, warped((3, 33), seed, temperature, k, p), claim=said(knobs))


@pytest.mark.exercise("next_token_distribution")
def test_temperature_zero_takes_the_largest_logit(student: Student) -> None:
    """At temperature 0 one token has probability 1: the largest logit, and of equal ones the lowest id."""
    for seed, shape in enumerate([(4, 7), (9,), (2, 3, 6)]):
        logits = spread(*shape, seed=seed)
        p = distribution(student, logits, temperature=0.0)
        assert_close(p, torch.nn.functional.one_hot(logits.argmax(-1), shape[-1]).float(), claim="temperature=0")
    tied = torch.tensor([[1.0, 3, 2, 3, 3], [0, 0, 0, 0, 0]])
    for knobs in ({"temperature": 0}, {"temperature": 0, "top_k": 4, "top_p": 0.9}):
        found = [kept(row) for row in distribution(student, tied, **knobs)]
        assert all(len(row) == 1 for row in found), f"With {said(knobs)} and equal logits, more than one token is kept."
        assert found == [[1], [0]], f"With {said(knobs)} and equal logits, it is not the lowest id that is kept."


@pytest.mark.exercise("next_token_distribution")
def test_of_equal_logits_the_lower_ids_are_kept(student: Student) -> None:
    """Where the limit falls between equal logits, the lower ids stay: exactly top_k tokens, the fewest for top_p."""
    logits = torch.tensor([1.0, 2, 1, 2, 1, 2, 1, 2, 1, 2])
    order = [1, 3, 5, 7, 9, 0, 2, 4, 6, 8]
    for row, first in ((logits, order), (torch.zeros(200), range(200))):  # a short row may be sorted stably by chance
        for k in (1, 3, 6, 9):
            found = kept(distribution(student, row, top_k=k))
            assert len(found) == k, f"With equal logits and top_k={k}, {len(found)} tokens are kept."
            assert found == sorted(first[:k]), f"With equal logits and top_k={k}, the wrong ones are kept."
    for p, n in ((0.35, 5), (0.55, 8), (0.7, 10)):  # 4.55, 7.15 and 9.1 of 13 tokens
        found = kept(distribution(student, torch.zeros(13), top_p=p))
        assert len(found) == n, f"With 13 equal logits and top_p={p}, {len(found)} tokens are kept."
        assert found == list(range(n)), f"With 13 equal logits and top_p={p}, it is not the lowest ids that are kept."


@pytest.mark.exercise("next_token_distribution")
def test_limits_that_limit_nothing_change_nothing(student: Student) -> None:
    """top_k of the vocabulary or more, and top_p of 1, keep every token, however improbable."""
    for scale in (1.0, 8.0):
        logits = scale * normal(2, 50, seed=4)
        expected = logits.softmax(-1)
        for knobs in ({"top_k": 50}, {"top_k": 1000}, {"top_p": 1.0}, {"top_k": 60, "top_p": 1.0}):
            p = distribution(student, logits, **knobs)
            assert_close(p, expected, atol=1e-6, claim=said(knobs))
            lost = int(((p == 0) & (expected > 1e-30)).sum())
            assert not lost, f"With {said(knobs)} {lost} improbable tokens lost all of their chance."


@pytest.mark.exercise("next_token_distribution")
def test_every_row_is_treated_by_itself(student: Student) -> None:
    """Any number of dimensions before vocab, also none; what stands in one row changes nothing in another."""
    knobs: dict[str, Any] = {"temperature": 0.8, "top_k": 6, "top_p": 0.85}
    for seed, shape in enumerate([(9,), (2, 9), (2, 3, 9), (2, 1, 2, 9)]):
        p = distribution(student, spread(*shape, seed=seed), **knobs)
        assert_close(p, warped(shape, seed, 0.8, 6, 0.85), claim=f"logits of shape {shape}")
    flat, peaked = torch.zeros(8), torch.tensor([9.0, 0, 0, 0, 0, 0, 0, 0])
    rows = distribution(student, torch.stack([flat, peaked, flat]), top_p=0.7)
    counts = (rows > 0).sum(-1).tolist()
    assert counts == [6, 1, 6], f"An even row, a peaked one and an even one, top_p=0.7: they keep {counts} tokens."


@pytest.mark.exercise("next_token_distribution")
def test_forbidden_tokens_stay_forbidden_and_nothing_overflows(student: Student) -> None:
    """A logit of −inf always gets 0; logits of ±10,000 and a temperature of 0.001 give no NaN."""
    logits = torch.tensor([[-math.inf, 1.0, 2.0, -math.inf, 0.5], [1e4, -1e4, 9999.0, -math.inf, 0.0]])
    logits = torch.cat([logits, torch.tensor([[-math.inf, -1e4, -9999.0, -math.inf, -1e4]])])
    for knobs in (
        {},
        {"temperature": 1e-3},
        {"temperature": 1e3},
        {"temperature": 2.0, "top_k": 4},
        {"top_p": 0.999},
        {"temperature": 0},
    ):
        p = distribution(student, logits, **knobs)
        assert not p[logits == -math.inf].any(), f"With {said(knobs)} a token with a logit of −inf has a chance."
        assert bool((p.argmax(-1) == torch.tensor([2, 0, 2])).all()), (
            f"With {said(knobs)} the largest logit lost its lead."
        )
    assert_close(distribution(student, logits, temperature=2.0), (logits / 2).softmax(-1), claim="temperature=2.0")


@pytest.mark.exercise("next_token_distribution", weight=0.5)
def test_the_probabilities_have_the_dtype_of_the_logits(student: Student) -> None:
    """bfloat16 in, bfloat16 out, and likewise float64."""
    for dtype, atol in ((torch.float64, 1e-6), (torch.bfloat16, 2e-2)):
        logits = spread(2, 6, seed=9).to(dtype)
        for knobs in ({}, {"temperature": 2.0, "top_k": 3}, {"temperature": 0}):
            p = tensor(student.next_token_distribution(logits, **knobs), shape=(2, 6), dtype=dtype, name="the result")
            if "top_k" not in knobs and knobs:
                continue
            wide = logits.double() / knobs.get("temperature", 1.0)
            wide[wide < wide.topk(int(knobs.get("top_k", 6))).values[:, -1:]] = -math.inf
            assert_close(
                p, wide.softmax(-1).to(dtype), atol=atol, claim=said(knobs), name=f"the {str(dtype)[6:]} result"
            )


@pytest.mark.exercise("next_token_distribution", weight=0.5)
def test_the_logits_are_left_as_they_were(student: Student) -> None:
    """They belong to the caller, who may ask again with other settings."""
    logits = spread(2, 8, seed=5)
    there = student.put(logits)
    expected = logits.softmax(-1)  # doing nothing at all is no merit
    assert_close(student.next_token_distribution(there), expected, name="the softmax")
    for knobs in ({"temperature": 0.5, "top_k": 3, "top_p": 0.8}, {"temperature": 0}, {"top_k": 2}, {"top_p": 0.4}):
        p = tensor(student.next_token_distribution(there, **knobs), shape=(2, 8))
        assert_close(p.sum(-1), torch.ones(2), claim=said(knobs), name="the sum of a row")
        assert_close(there.get(), logits, atol=0, rtol=0, claim=f"after a call with {said(knobs)}", name="logits")
