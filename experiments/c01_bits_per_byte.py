"""Which loss may be compared when the tokens differ? Counting models of the same text under growing vocabularies.

The text is English prose from Python's documentation. A model that counts pairs of tokens (a bigram model), and one
that counts triples, predict held-out text under byte-level BPE of 256 (bytes, no merges) to 8,192 entries, by the rules
of the notebook. Each order falls back on the next lower one as Witten and Bell (1991) proposed, which leaves nothing to
tune: p(w | h) = (count(h w) + T(h) p(w | shorter h)) / (count(h) + T(h)), where T(h) is the number of different tokens
seen after h. Below the single tokens stands an even share for each entry.

A seed is a sample: half of the training texts for the tokenisers and the models, half of the test texts to judge them.
The loss is given twice: in nats a token, and in bits a byte, over the bytes that the predicted tokens stand for.

The claim was worded after a pilot run with other seeds, in which the gain in bits a byte ended at 4,096 entries.
"""

import math
import random
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from experiments.c01_bytes_per_token import Bpe
from ichimon import corpus
from ichimon.measure import Config, Experiment, Results, Verdict, estimate, main, paired

ORDERS = ("unigram", "bigram", "trigram")
LARGEST = 4096  # the claim goes up to here; a larger vocabulary is reported beside it


class Counts:
    """How often each context of `order - 1` tokens was followed by each token."""

    def __init__(self, ids: np.ndarray, order: int, vocabulary: int) -> None:
        self._order, self._vocabulary = order, vocabulary
        grams, self._times = np.unique(self._keys(ids), return_counts=True)
        self._grams = grams
        self._contexts, first = np.unique(grams // vocabulary, return_index=True)
        self._total = np.add.reduceat(self._times, first)
        self._different = np.diff(np.append(first, len(grams)))

    def _keys(self, ids: np.ndarray) -> np.ndarray:
        """Each run of `order` tokens as one number, the last token in its lowest place."""
        n = len(ids) - self._order + 1
        return sum(ids[i : i + n] * self._vocabulary ** (self._order - 1 - i) for i in range(self._order))

    def interpolate(self, ids: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """p of each token of `ids` but the first `order - 1`, given `lower`, its p under the shorter context."""
        keys = self._keys(ids)
        times = _looked_up(keys, self._grams, self._times)
        total = _looked_up(keys // self._vocabulary, self._contexts, self._total)
        different = _looked_up(keys // self._vocabulary, self._contexts, self._different)
        lower = lower[len(lower) - len(keys) :]
        seen = total > 0
        return np.where(seen, (times + different * lower) / np.where(seen, total + different, 1), lower)


def _looked_up(keys: np.ndarray, table: np.ndarray, values: np.ndarray) -> np.ndarray:
    at = np.searchsorted(table, keys).clip(max=len(table) - 1)
    return np.where(table[at] == keys, values[at], 0)


def losses(train: np.ndarray, test: np.ndarray, sizes: np.ndarray) -> dict[str, tuple[float, float]]:
    """Nats a token and bits a byte of each order; `sizes` holds the bytes of every entry of the vocabulary."""
    p, found = np.full(len(test), 1 / len(sizes)), {}
    for order, name in enumerate(ORDERS, start=1):
        p = Counts(train, order, len(sizes)).interpolate(test, p)
        nats = float(-np.log(p).sum())
        found[name] = (nats / len(p), nats / math.log(2) / int(sizes[test[order - 1 :]].sum()))
    return found


def next_tokens(train: np.ndarray, context: Sequence[int], vocabulary: int) -> np.ndarray:
    """p of every token after a context, by the trigram model, [vocabulary]."""
    models = [Counts(train, order, vocabulary) for order in range(1, len(ORDERS) + 1)]
    found = []
    for token in range(vocabulary):
        ids = np.array([*context[-2:], token])
        p = np.full(len(ids), 1 / vocabulary)
        for model in models:
            p = model.interpolate(ids, p)
        found.append(p[-1])
    return np.array(found)


def example(texts: list[str], config: Config) -> dict[str, Any]:
    """What the page shows: a sentence cut by growing vocabularies, the first merges, and one prediction."""
    sizes = config["vocabularies"]
    bpe = Bpe.trained(texts, sizes[-1])
    named = [entry.decode(errors="replace") for entry in bpe.entries]
    shown = bpe.first(config["shown"])
    ids = np.array([i for text in texts for i in shown.encode(text)], dtype=np.int64)
    p = next_tokens(ids, shown.encode(config["context"]), len(shown.entries))
    return {
        "cut": {str(size): [named[i] for i in bpe.first(size).encode(config["sentence"])] for size in sizes},
        "first": named[256:276],
        "longest": sorted(named[256:], key=lambda name: (-len(name), name))[:8],
        "next": [{"token": named[i], "p": float(p[i])} for i in np.argsort(-p, kind="stable")[:9]],
    }


def half(split: corpus.Split, seed: int, limit: int) -> list[str]:
    """A random half of the texts of a split, at most `limit` bytes of them."""
    texts = [text.text for text in corpus.texts(corpus.PROSE, split)]
    random.Random(seed).shuffle(texts)
    chosen: list[str] = []
    for text in texts[: len(texts) // 2]:
        if limit <= 0:
            break
        chosen.append(text[:limit])
        limit -= len(chosen[-1].encode())
    return chosen


def run(config: Config, seeds: Sequence[int]) -> Results:
    vocabularies = config["vocabularies"]
    nats: dict[str, list[list[float]]] = {name: [[] for _ in vocabularies] for name in ORDERS}
    bits: dict[str, list[list[float]]] = {name: [[] for _ in vocabularies] for name in ORDERS}
    bytes_per_token: list[list[float]] = [[] for _ in vocabularies]
    for seed in seeds:
        train, test = (half(split, seed, config["bytes"]) for split in ("train", "test"))
        largest = Bpe.trained(train, vocabularies[-1])
        for i, vocabulary in enumerate(vocabularies):
            bpe = largest.first(vocabulary)
            sizes = np.array([len(entry) for entry in bpe.entries])
            known, new_text = (
                np.array([i for text in texts for i in bpe.encode(text)], dtype=np.int64) for texts in (train, test)
            )
            bytes_per_token[i].append(float(sizes[new_text].mean()))
            for name, (a_token, a_byte) in losses(known, new_text, sizes).items():
                nats[name][i].append(a_token)
                bits[name][i].append(a_byte)
    return {
        "vocabularies": vocabularies,
        "example": example(half("train", seeds[0], config["bytes"]), config),
        "bytes_per_token": [estimate(values) for values in bytes_per_token],
        "nats_per_token": {name: [estimate(values) for values in rows] for name, rows in nats.items()},
        "bits_per_byte": {name: [estimate(values) for values in rows] for name, rows in bits.items()},
        "step": {  # from each vocabulary to the next larger one
            "nats_per_token": {name: _steps(rows) for name, rows in nats.items()},
            "bits_per_byte": {name: _steps(rows) for name, rows in bits.items()},
        },
    }


def _steps(rows: list[list[float]]) -> list[dict[str, object]]:
    return [paired(after, before) for before, after in pairwise(rows)]


def verdict(found: Results) -> Verdict:
    n = sum(vocabulary <= LARGEST for vocabulary in found["vocabularies"]) - 1
    up, down = (found["step"][measure]["bigram"][:n] for measure in ("nats_per_token", "bits_per_byte"))
    if all(step["low"] > 0 for step in up) and all(step["high"] < 0 for step in down):
        return "strong"
    nats, bits = found["nats_per_token"]["bigram"], found["bits_per_byte"]["bigram"]
    return "weak" if nats[n]["mean"] > nats[0]["mean"] and bits[n]["mean"] < bits[0]["mean"] else "null"


EXPERIMENT = Experiment(
    name="c01_bits_per_byte",
    claim=(
        "From 256 to 4,096 entries, each doubling of the vocabulary makes a bigram model worse in nats a token and "
        "better in bits a byte: the two measures put these five vocabularies in opposite orders."
    ),
    run=run,
    verdict=verdict,
    config={
        "vocabularies": [256, 512, 1024, 2048, 4096, 8192],
        "bytes": 1_500_000,
        "sentence": "The interpreter looks up the name of an object.",
        "shown": 1024,
        "context": "This is the value of the",
    },
    reduced={"vocabularies": [256, 1024], "bytes": 100_000},
)

if __name__ == "__main__":
    main(EXPERIMENT)
