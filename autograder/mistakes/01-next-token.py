# Wrong answers that people really give. The set-up cell of the chapter runs before each of them.


# %% train_bpe: characters instead of bytes
# caught by: test_training_starts_from_bytes
# says: This merges characters (the code points of the text); the ids 0 to 255 are the bytes of its UTF-8.
def train_bpe(text, n_merges):
    words = Counter(tuple(min(ord(c), 255) for c in piece) for piece in pieces(text))
    merges = []
    while len(merges) < n_merges:
        counts = Counter()
        for word, times in words.items():
            for pair in pairwise(word):
                counts[pair] += times
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        after = Counter()
        for word, times in words.items():
            ids, i = [], 0
            while i < len(word):
                found = word[i : i + 2] == best
                ids.append(256 + len(merges) if found else word[i])
                i += 2 if found else 1
            after[tuple(ids)] += times
        words = after
        merges.append(best)
    return merges


# %% train_bpe: pairs across pieces
# caught by: test_no_merge_reaches_across_pieces
# says: The text is not cut into pieces first, so a merge may join the end of one word with what comes after it.
def train_bpe(text, n_merges):
    ids = list(text.encode())
    merges = []
    while len(merges) < n_merges and len(ids) > 1:
        counts = Counter(pairwise(ids))
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        out, i = [], 0
        while i < len(ids):
            if tuple(ids[i : i + 2]) == best:
                out.append(256 + len(merges))
                i += 2
            else:
                out.append(ids[i])
                i += 1
        ids = out
        merges.append(best)
    return merges


# %% train_bpe: each word counted once
# caught by: test_a_piece_counts_as_often_as_it_occurs
# says: Each different piece is counted once; one that occurs ten times should count ten times.
def train_bpe(text, n_merges):
    words = {tuple(piece.encode()) for piece in pieces(text)}
    merges = []
    while len(merges) < n_merges:
        counts = Counter(pair for word in words for pair in pairwise(word))
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        after = set()
        for word in words:
            ids, i = [], 0
            while i < len(word):
                found = word[i : i + 2] == best
                ids.append(256 + len(merges) if found else word[i])
                i += 2 if found else 1
            after.add(tuple(ids))
        words = after
        merges.append(best)
    return merges


# %% train_bpe: the first of equally frequent pairs
# caught by: test_of_two_pairs_with_the_same_count_the_smaller_wins
# says: Among pairs with the same count it takes the one that comes first in the text; the smaller pair should win.
def train_bpe(text, n_merges):
    words = Counter(tuple(piece.encode()) for piece in pieces(text))
    merges = []
    while len(merges) < n_merges:
        counts = Counter()
        for word, times in words.items():
            for pair in pairwise(word):
                counts[pair] += times
        if not counts:
            break
        best = counts.most_common(1)[0][0]
        after = Counter()
        for word, times in words.items():
            ids, i = [], 0
            while i < len(word):
                found = word[i : i + 2] == best
                ids.append(256 + len(merges) if found else word[i])
                i += 2 if found else 1
            after[tuple(ids)] += times
        words = after
        merges.append(best)
    return merges


# %% train_bpe: the largest of equally frequent pairs
# caught by: test_of_two_pairs_with_the_same_count_the_smaller_wins
# says: Among pairs with the same count it takes the largest; the smaller pair should win.
def train_bpe(text, n_merges):
    words = Counter(tuple(piece.encode()) for piece in pieces(text))
    merges = []
    while len(merges) < n_merges:
        counts = Counter()
        for word, times in words.items():
            for pair in pairwise(word):
                counts[pair] += times
        if not counts:
            break
        best = max(counts, key=lambda pair: (counts[pair], pair))
        after = Counter()
        for word, times in words.items():
            ids, i = [], 0
            while i < len(word):
                found = word[i : i + 2] == best
                ids.append(256 + len(merges) if found else word[i])
                i += 2 if found else 1
            after[tuple(ids)] += times
        words = after
        merges.append(best)
    return merges


# %% train_bpe: overlapping pairs merged
# caught by: test_every_place_counts_also_where_pairs_overlap, test_merging_goes_from_left_to_right
# says: Overlapping pairs are both merged, so that aaa becomes aa, aa: a byte is used twice.
def train_bpe(text, n_merges):
    words = Counter(tuple(piece.encode()) for piece in pieces(text))
    merges = []
    while len(merges) < n_merges:
        counts = Counter()
        for word, times in words.items():
            for pair in pairwise(word):
                counts[pair] += times
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        after = Counter()
        for word, times in words.items():
            ids, used = [], False
            for i in range(len(word)):
                if word[i : i + 2] == best:
                    ids.append(256 + len(merges))
                    used = True
                elif not used:
                    ids.append(word[i])
                else:
                    used = False
            after[tuple(ids)] += times
        words = after
        merges.append(best)
    return merges


# %% train_bpe: overlaps counted once
# caught by: test_every_place_counts_also_where_pairs_overlap
# says: In aaa the pair of two a is counted once; it stands in two places, and both count.
def train_bpe(text, n_merges):
    words = Counter("".join(map(chr, piece.encode())) for piece in pieces(text))
    merges = []
    while len(merges) < n_merges:
        counts = Counter()
        for word, times in words.items():
            for pair in set(pairwise(word)):
                counts[pair] += times * word.count("".join(pair))
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        after = Counter()
        for word, times in words.items():
            after[word.replace("".join(best), chr(256 + len(merges)))] += times
        words = after
        merges.append((ord(best[0]), ord(best[1])))
    return merges


# %% train_bpe: merged from the right
# caught by: test_merging_goes_from_left_to_right
# says: The pair is merged from right to left, so that aaa becomes a, aa; the first two should be merged.
def train_bpe(text, n_merges):
    words = Counter(tuple(piece.encode()) for piece in pieces(text))
    merges = []
    while len(merges) < n_merges:
        counts = Counter()
        for word, times in words.items():
            for pair in pairwise(word):
                counts[pair] += times
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        after = Counter()
        for word, times in words.items():
            ids, i = list(word), len(word) - 2
            while i >= 0:
                if tuple(ids[i : i + 2]) == best:
                    ids[i : i + 2] = [256 + len(merges)]
                    i -= 1
                i -= 1
            after[tuple(ids)] += times
        words = after
        merges.append(best)
    return merges


# %% train_bpe: ids from 257
# caught by: test_merge_i_makes_the_id_256_plus_i
# says: The first merge makes the id 257; it should be 256, the first that is no byte.
def train_bpe(text, n_merges):
    words = Counter(tuple(piece.encode()) for piece in pieces(text))
    merges = []
    while len(merges) < n_merges:
        counts = Counter()
        for word, times in words.items():
            for pair in pairwise(word):
                counts[pair] += times
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        after = Counter()
        for word, times in words.items():
            ids, i = [], 0
            while i < len(word):
                found = word[i : i + 2] == best
                ids.append(256 + len(merges) if found else word[i])
                i += 2 if found else 1
            after[tuple(ids)] += times
        words = after
    return merges


# %% train_bpe: pairs counted once and for all
# caught by: test_the_merges_are_those_of_a_tokeniser_in_use, test_merge_i_makes_the_id_256_plus_i
# says: The pairs are counted once at the start; after each merge there are new pairs, so they have to be counted again.
def train_bpe(text, n_merges):
    counts = Counter()
    for piece in pieces(text):
        counts.update(pairwise(piece.encode()))
    return sorted(counts, key=lambda pair: (-counts[pair], pair))[:n_merges]


# %% train_bpe: only pairs that occur twice
# caught by: test_training_ends_when_no_pair_is_left
# says: Training ends when no pair occurs twice; a pair that occurs once may be merged too.
def train_bpe(text, n_merges):
    words = Counter(tuple(piece.encode()) for piece in pieces(text))
    merges = []
    while len(merges) < n_merges:
        counts = Counter()
        for word, times in words.items():
            for pair in pairwise(word):
                counts[pair] += times
        best = min(counts, key=lambda pair: (-counts[pair], pair), default=None)
        if counts[best] < 2:
            break
        after = Counter()
        for word, times in words.items():
            ids, i = [], 0
            while i < len(word):
                found = word[i : i + 2] == best
                ids.append(256 + len(merges) if found else word[i])
                i += 2 if found else 1
            after[tuple(ids)] += times
        words = after
        merges.append(best)
    return merges


# %% train_bpe: strings instead of ids
# caught by: test_the_merges_are_those_of_a_tokeniser_in_use
# says: The merges hold bytes or strings; they should hold pairs of ids, which are integers.
def train_bpe(text, n_merges):
    words = Counter(tuple(bytes([byte]) for byte in piece.encode()) for piece in pieces(text))
    merges = []
    while len(merges) < n_merges:
        counts = Counter()
        for word, times in words.items():
            for pair in pairwise(word):
                counts[pair] += times
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        after = Counter()
        for word, times in words.items():
            ids, i = [], 0
            while i < len(word):
                found = word[i : i + 2] == best
                ids.append(best[0] + best[1] if found else word[i])
                i += 2 if found else 1
            after[tuple(ids)] += times
        words = after
        merges.append(best)
    return merges


# %% train_bpe: ids as words, replaced wherever their digits stand
# caught by: test_training_starts_from_bytes
# says: The digits of a pair are replaced inside longer ids too: "65 66" also stands in "165 66".
def train_bpe(text, n_merges):
    words = Counter(" ".join(map(str, piece.encode())) for piece in pieces(text))
    merges = []
    while len(merges) < n_merges:
        counts = Counter()
        for word, times in words.items():
            for pair in pairwise(map(int, word.split())):
                counts[pair] += times
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        old, new = f"{best[0]} {best[1]}", str(256 + len(merges))
        words = Counter({word.replace(old, new): times for word, times in words.items()})
        merges.append(best)
    return merges


# %% encode: the longest token that fits
# caught by: test_the_earliest_merge_comes_first
# says: At each place this takes the longest token that fits; the merges have to be replayed in their order.
def encode(text, merges):
    table = {bytes([byte]): byte for byte in range(256)}
    names = [bytes([byte]) for byte in range(256)]
    for left, right in merges:
        names.append(names[left] + names[right])
        table.setdefault(names[-1], len(names) - 1)
    ids = []
    for piece in pieces(text):
        rest = piece.encode()
        while rest:
            length = max(n for n in range(1, len(rest) + 1) if rest[:n] in table)
            ids.append(table[rest[:length]])
            rest = rest[length:]
    return ids


# %% encode: the first pair that can be merged
# caught by: test_the_earliest_merge_comes_first
# says: It merges the first pair in the text that can be merged; the pair that stands earliest in the list comes first.
def encode(text, merges):
    rank = {pair: i for i, pair in enumerate(merges)}
    tokens = []
    for piece in pieces(text):
        ids, i = list(piece.encode()), 0
        while i < len(ids) - 1:
            pair = (ids[i], ids[i + 1])
            if pair in rank:
                ids[i : i + 2] = [256 + rank[pair]]
                i = 0
            else:
                i += 1
        tokens += ids
    return tokens


# %% encode: the latest merge first
# caught by: test_the_earliest_merge_comes_first
# says: The merge learnt last is made first; it is the one that stands earliest in the list that comes first.
def encode(text, merges):
    rank = {pair: i for i, pair in enumerate(merges)}
    tokens = []
    for piece in pieces(text):
        ids = list(piece.encode())
        while True:
            found = [pair for pair in pairwise(ids) if pair in rank]
            if not found:
                break
            pair = max(found, key=rank.get)
            at = list(pairwise(ids)).index(pair)
            ids[at : at + 2] = [256 + rank[pair]]
        tokens += ids
    return tokens


# %% encode: characters instead of bytes
# caught by: test_without_merges_the_ids_are_the_bytes
# says: The ids begin as the characters' code points; they should begin as the bytes of the UTF-8.
def encode(text, merges):
    tokens = []
    for piece in pieces(text):
        ids = [ord(character) % (256 + len(merges)) for character in piece]
        for new, pair in enumerate(merges, 256):
            i = 0
            while i < len(ids) - 1:
                if (ids[i], ids[i + 1]) == pair:
                    ids[i : i + 2] = [new]
                i += 1
        tokens += ids
    return tokens


# %% encode: across pieces
# caught by: test_tokens_stay_inside_their_piece
# says: The text is not cut into pieces first, so a token may reach from one word into the next.
def encode(text, merges):
    ids = list(text.encode())
    for new, pair in enumerate(merges, 256):
        i = 0
        while i < len(ids) - 1:
            if (ids[i], ids[i + 1]) == pair:
                ids[i : i + 2] = [new]
            i += 1
    return ids


# %% encode: one merge a piece
# caught by: test_the_ids_are_those_of_a_tokeniser_in_use, test_one_merge_is_made_from_left_to_right
# says: In each piece only one merge is made: go on until no pair in the piece is in the list.
def encode(text, merges):
    rank = {pair: i for i, pair in enumerate(merges)}
    tokens = []
    for piece in pieces(text):
        ids = list(piece.encode())
        found = [pair for pair in pairwise(ids) if pair in rank]
        if found:
            pair = min(found, key=rank.get)
            at = list(pairwise(ids)).index(pair)
            ids[at : at + 2] = [256 + rank[pair]]
        tokens += ids
    return tokens


# %% encode: merged from the right
# caught by: test_one_merge_is_made_from_left_to_right
# says: Where the same pair stands twice, the right one is merged first; it should go from left to right.
def encode(text, merges):
    tokens = []
    for piece in pieces(text):
        ids = list(piece.encode())
        for new, pair in enumerate(merges, 256):
            i = len(ids) - 2
            while i >= 0:
                if tuple(ids[i : i + 2]) == pair:
                    ids[i : i + 2] = [new]
                    i -= 1
                i -= 1
        tokens += ids
    return tokens


# %% encode: ids off by 256
# caught by: test_the_ids_are_those_of_a_tokeniser_in_use
# says: A merge gives its place in the list as the id; the first 256 ids are the bytes, so 256 has to be added.
def encode(text, merges):
    rank = {pair: i for i, pair in enumerate(merges)}
    tokens = []
    for piece in pieces(text):
        ids = list(piece.encode())
        for _ in range(len(ids)):
            found = [pair for pair in pairwise(ids) if pair in rank]
            if not found:
                break
            pair = min(found, key=rank.get)
            at = list(pairwise(ids)).index(pair)
            ids[at : at + 2] = [rank[pair]]
        tokens += ids
    return tokens


# %% encode: the merges used up
# caught by: test_the_merges_are_left_as_they_were
# says: The caller's list of merges is emptied: pop takes elements out of it.
def encode(text, merges):
    words = [list(piece.encode()) for piece in pieces(text)]
    new = 256
    while merges:
        pair = merges.pop(0)
        for ids in words:
            i = 0
            while i < len(ids) - 1:
                if (ids[i], ids[i + 1]) == pair:
                    ids[i : i + 2] = [new]
                i += 1
        new += 1
    return [i for ids in words for i in ids]


# %% encode: the most frequent pair of this text first
# caught by: test_the_earliest_merge_comes_first
# says: The pair that is most frequent in this text is merged first; the order was decided in training.
def encode(text, merges):
    rank = {pair: i for i, pair in enumerate(merges)}
    words = [list(piece.encode()) for piece in pieces(text)]
    while True:
        counts = Counter(pair for word in words for pair in pairwise(word) if pair in rank)
        if not counts:
            return [i for word in words for i in word]
        pair = max(counts, key=lambda pair: (counts[pair], -rank[pair]))
        for word in words:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == pair:
                    word[i : i + 2] = [256 + rank[pair]]
                i += 1


# %% decode: token by token
# caught by: test_a_character_may_come_from_several_tokens
# says: Each token is read as UTF-8 by itself, so a character that several tokens share is lost: join the bytes first.
def decode(ids, merges):
    vocabulary = [bytes([byte]) for byte in range(256)]
    for left, right in merges:
        vocabulary.append(vocabulary[left] + vocabulary[right])
    for i in ids:
        if not 0 <= i < len(vocabulary):
            raise ValueError(f"there is no id {i}")
    return "".join(vocabulary[i].decode(errors="replace") for i in ids)


# %% decode: bytes taken for characters
# caught by: test_a_character_may_come_from_several_tokens, test_decoding_undoes_encoding
# says: Each byte is taken for a character (chr, or Latin-1); together they are UTF-8.
def decode(ids, merges):
    vocabulary = [chr(byte) for byte in range(256)]
    for left, right in merges:
        vocabulary.append(vocabulary[left] + vocabulary[right])
    for i in ids:
        if not 0 <= i < len(vocabulary):
            raise ValueError(f"there is no id {i}")
    return "".join(vocabulary[i] for i in ids)


# %% decode: what is invalid is left out
# caught by: test_what_is_no_utf_8_becomes_the_replacement_character
# says: What is no valid UTF-8 is left out; it should be replaced by U+FFFD.
def decode(ids, merges):
    vocabulary = [bytes([byte]) for byte in range(256)]
    for left, right in merges:
        vocabulary.append(vocabulary[left] + vocabulary[right])
    for i in ids:
        if not 0 <= i < len(vocabulary):
            raise ValueError(f"there is no id {i}")
    return b"".join(vocabulary[i] for i in ids).decode(errors="ignore")


# %% decode: nothing at all for a cut character
# caught by: test_what_is_no_utf_8_becomes_the_replacement_character
# says: Where anything is no valid UTF-8, all of the text is lost: only what is invalid should be replaced.
def decode(ids, merges):
    vocabulary = [bytes([byte]) for byte in range(256)]
    for left, right in merges:
        vocabulary.append(vocabulary[left] + vocabulary[right])
    for i in ids:
        if not 0 <= i < len(vocabulary):
            raise ValueError(f"there is no id {i}")
    try:
        return b"".join(vocabulary[i] for i in ids).decode()
    except UnicodeDecodeError:
        return ""


# %% decode: negative ids count from the end
# caught by: test_an_id_that_does_not_exist_is_an_error
# says: A negative id is looked up from the end of the table, which Python lists allow; it should be an error.
def decode(ids, merges):
    vocabulary = [bytes([byte]) for byte in range(256)]
    for left, right in merges:
        vocabulary.append(vocabulary[left] + vocabulary[right])
    for i in ids:
        if i >= len(vocabulary):
            raise ValueError(f"there is no id {i}")
    return b"".join(vocabulary[i] for i in ids).decode(errors="replace")


# %% decode: unknown ids left out
# caught by: test_an_id_that_does_not_exist_is_an_error
# says: An id that does not exist is left out without a word; it should raise a ValueError.
def decode(ids, merges):
    table = {byte: bytes([byte]) for byte in range(256)}
    for new, (left, right) in enumerate(merges, 256):
        table[new] = table[left] + table[right]
    return b"".join(table.get(i, b"") for i in ids).decode(errors="replace")


# %% decode: a KeyError
# caught by: test_an_id_that_does_not_exist_is_an_error
# says: An id that does not exist raises a KeyError or an IndexError; it should be a ValueError that names the id.
def decode(ids, merges):
    table = {byte: bytes([byte]) for byte in range(256)}
    for new, (left, right) in enumerate(merges, 256):
        table[new] = table[left] + table[right]
    return b"".join(table[i] for i in ids).decode(errors="replace")


# %% decode: merges that are not unfolded
# caught by: test_merges_are_built_from_merges
# says: A merge is taken for two bytes; its parts may be merges again.
def decode(ids, merges):
    data = []
    for i in ids:
        if not 0 <= i < 256 + len(merges):
            raise ValueError(f"there is no id {i}")
        data += [i] if i < 256 else list(merges[i - 256])
    return bytes(i % 256 for i in data).decode(errors="replace")


# %% decode: the ids are used up
# caught by: test_ids_and_merges_are_left_as_they_were
# says: The caller's list is taken apart: pop and a slice that is written to change it. Work on a copy.
def decode(ids, merges):
    out = []
    while ids:
        i = ids.pop(0)
        if 0 <= i < 256:
            out.append(i)
        elif 256 <= i < 256 + len(merges):
            ids[:0] = merges[i - 256]
        else:
            raise ValueError(f"there is no id {i}")
    return bytes(out).decode(errors="replace")


# %% decode: the mark at the beginning is dropped
# caught by: test_decoding_undoes_encoding
# says: "utf-8-sig" drops U+FEFF at the beginning of a text: it is a character like any other.
def decode(ids, merges):
    vocabulary = [bytes([byte]) for byte in range(256)]
    for left, right in merges:
        vocabulary.append(vocabulary[left] + vocabulary[right])
    for i in ids:
        if not 0 <= i < len(vocabulary):
            raise ValueError(f"there is no id {i}")
    return b"".join(vocabulary[i] for i in ids).decode("utf-8-sig", errors="replace")


# %% next_token_loss: not shifted
# caught by: test_position_t_predicts_the_token_at_t_plus_1, test_the_first_token_and_the_last_logits_are_not_judged
# says: Each position is asked for the token that it has just read; position t should be asked for the token at t + 1.
def next_token_loss(logits, ids, n_bytes):
    nats = F.cross_entropy(logits.flatten(0, 1), ids.flatten(), ignore_index=PAD)
    return nats, nats * (ids != PAD).sum() / math.log(2) / n_bytes


# %% next_token_loss: shifted the wrong way
# caught by: test_position_t_predicts_the_token_at_t_plus_1, test_the_first_token_and_the_last_logits_are_not_judged
# says: It is shifted the wrong way: each position is asked for the token before it.
def next_token_loss(logits, ids, n_bytes):
    targets = ids[:, :-1].flatten()
    nats = F.cross_entropy(logits[:, 1:].flatten(0, 1), targets, ignore_index=PAD)
    return nats, nats * (targets != PAD).sum() / math.log(2) / n_bytes


# %% next_token_loss: shifted after flattening
# caught by: test_position_t_predicts_the_token_at_t_plus_1
# says: The batch is flattened before the shift, so the end of one sequence predicts the beginning of the next.
def next_token_loss(logits, ids, n_bytes):
    targets = ids.flatten()[1:]
    nats = F.cross_entropy(logits.flatten(0, 1)[:-1], targets, ignore_index=PAD)
    return nats, nats * (targets != PAD).sum() / math.log(2) / n_bytes


# %% next_token_loss: a mean of means
# caught by: test_every_token_counts_the_same
# says: This is the mean of the sequences' means, so the tokens of a short sequence count more than those of a long one.
def next_token_loss(logits, ids, n_bytes):
    targets = ids[:, 1:]
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), targets, ignore_index=PAD, reduction="none")
    counts = (targets != PAD).sum(-1)
    means = losses.sum(-1)[counts > 0] / counts[counts > 0]
    return means.mean(), losses.sum() / math.log(2) / n_bytes


# %% next_token_loss: padding in the mean
# caught by: test_padding_counts_for_nothing, test_every_token_counts_the_same
# says: The sum is divided by all positions, padded ones too: divide by the number of predicted tokens.
def next_token_loss(logits, ids, n_bytes):
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], ignore_index=PAD, reduction="none")
    return losses.mean(), losses.sum() / math.log(2) / n_bytes


# %% next_token_loss: padding predicted
# caught by: test_padding_counts_for_nothing
# says: PAD is taken for a token to be predicted: leave those positions out.
def next_token_loss(logits, ids, n_bytes):
    targets = ids[:, 1:].clamp(min=0).flatten()
    nats = F.cross_entropy(logits[:, :-1].flatten(0, 1), targets)
    return nats, nats * len(targets) / math.log(2) / n_bytes


# %% next_token_loss: nats a byte
# caught by: test_bits_a_byte_are_all_bits_over_all_bytes, test_equal_logits_cost_the_logarithm_of_the_vocabulary
# says: The second result is in nats a byte: divide by ln 2 to get bits.
def next_token_loss(logits, ids, n_bytes):
    targets = ids[:, 1:].flatten()
    nats = F.cross_entropy(logits[:, :-1].flatten(0, 1), targets, ignore_index=PAD)
    return nats, nats * (targets != PAD).sum() / n_bytes


# %% next_token_loss: multiplied by ln 2
# caught by: test_bits_a_byte_are_all_bits_over_all_bytes
# says: Nats are turned into bits by multiplying with ln 2; one nat is more than one bit, so divide.
def next_token_loss(logits, ids, n_bytes):
    targets = ids[:, 1:].flatten()
    nats = F.cross_entropy(logits[:, :-1].flatten(0, 1), targets, ignore_index=PAD)
    return nats, nats * (targets != PAD).sum() * math.log(2) / n_bytes


# %% next_token_loss: bits a token
# caught by: test_bits_a_byte_are_all_bits_over_all_bytes
# says: The second result is in bits a token: it should be the sum of all bits, divided by n_bytes.
def next_token_loss(logits, ids, n_bytes):
    nats = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), ignore_index=PAD)
    return nats, nats / math.log(2)


# %% next_token_loss: the mean over the bytes
# caught by: test_bits_a_byte_are_all_bits_over_all_bytes
# says: The mean bits a token are divided by n_bytes; it is the sum over all predicted tokens that should be.
def next_token_loss(logits, ids, n_bytes):
    nats = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), ignore_index=PAD)
    return nats, nats / math.log(2) / n_bytes


# %% next_token_loss: all ids counted
# caught by: test_bits_a_byte_are_all_bits_over_all_bytes
# says: The mean is multiplied by the number of all ids, the first ones too, which nobody predicts.
def next_token_loss(logits, ids, n_bytes):
    nats = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), ignore_index=PAD)
    return nats, nats * (ids != PAD).sum() / math.log(2) / n_bytes


# %% next_token_loss: the logarithm of the softmax
# caught by: test_large_logits_give_finite_losses
# says: The softmax is taken first and its logarithm then, so a probability that rounds to 0 costs infinitely much.
def next_token_loss(logits, ids, n_bytes):
    targets = ids[:, 1:].flatten()
    real = targets != PAD
    p = logits[:, :-1].softmax(-1).flatten(0, 1)[real]
    nats = -p.gather(-1, targets[real][:, None]).log()
    return nats.mean(), nats.sum() / math.log(2) / n_bytes


# %% next_token_loss: a little added inside the logarithm
# caught by: test_large_logits_give_finite_losses
# says: A small number is added inside the logarithm, which caps the loss of a bad guess: use log-softmax.
def next_token_loss(logits, ids, n_bytes):
    targets = ids[:, 1:].flatten()
    real = targets != PAD
    p = logits[:, :-1].softmax(-1).flatten(0, 1)[real]
    nats = -(p.gather(-1, targets[real][:, None]) + 1e-9).log()
    return nats.mean(), nats.sum() / math.log(2) / n_bytes


# %% next_token_loss: cut off from the graph
# caught by: test_gradients_reach_the_logits
# says: The second result is made from a plain number, so no gradient flows through it: item() leaves the graph.
def next_token_loss(logits, ids, n_bytes):
    targets = ids[:, 1:].flatten()
    nats = F.cross_entropy(logits[:, :-1].flatten(0, 1), targets, ignore_index=PAD)
    bits = nats.item() * int((targets != PAD).sum()) / math.log(2) / n_bytes
    return nats, torch.tensor(bits, dtype=logits.dtype)


# %% next_token_loss: always float32
# caught by: test_the_losses_are_tensors_of_the_dtype_of_the_logits
# says: The results are float32 whatever the logits are: cast them back.
def next_token_loss(logits, ids, n_bytes):
    targets = ids[:, 1:].flatten()
    nats = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets, ignore_index=PAD)
    return nats, nats * (targets != PAD).sum() / math.log(2) / n_bytes


# %% next_token_loss: the ids changed in place
# caught by: test_logits_and_ids_are_left_as_they_were
# says: The caller's ids are changed: writing into a slice writes into the tensor that came in.
def next_token_loss(logits, ids, n_bytes):
    targets = ids[:, 1:]
    n_tokens = (targets != PAD).sum()
    weights = (targets != PAD).to(logits.dtype)
    targets[targets == PAD] = 0
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), targets, reduction="none") * weights
    return losses.sum() / n_tokens, losses.sum() / math.log(2) / n_bytes


# %% next_token_distribution: multiplied by the temperature
# caught by: test_logits_are_divided_by_the_temperature
# says: The logits are multiplied by the temperature: a high temperature should make all tokens more alike.
def next_token_distribution(logits, temperature=1.0, top_k=None, top_p=None):
    if temperature == 0:
        temperature, top_k = 1.0, 1
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    p = (ordered * temperature).softmax(-1)
    if top_k is not None:
        p = p * (torch.arange(p.shape[-1]) < top_k)
        p = p / p.sum(-1, keepdim=True)
    if top_p is not None and top_p < 1:
        before = p.cumsum(-1) - p
        before[..., 0] = 0
        p = p * (before < top_p)
        p = p / p.sum(-1, keepdim=True)
    return torch.zeros_like(p).scatter(-1, order, p)


# %% next_token_distribution: probabilities divided by the temperature
# caught by: test_logits_are_divided_by_the_temperature
# says: The probabilities are divided by the temperature and renormalised, which changes nothing: divide the logits.
def next_token_distribution(logits, temperature=1.0, top_k=None, top_p=None):
    if temperature == 0:
        temperature, top_k = 1.0, 1
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    p = ordered.softmax(-1) / temperature
    p = p / p.sum(-1, keepdim=True)
    if top_k is not None:
        p = p * (torch.arange(p.shape[-1]) < top_k)
        p = p / p.sum(-1, keepdim=True)
    if top_p is not None and top_p < 1:
        before = p.cumsum(-1) - p
        before[..., 0] = 0
        p = p * (before < top_p)
        p = p / p.sum(-1, keepdim=True)
    return torch.zeros_like(p).scatter(-1, order, p)


# %% next_token_distribution: the crossing token dropped
# caught by: test_top_p_keeps_the_token_that_crosses
# says: The token that crosses the threshold is dropped, so what is kept sums to less than top_p: it belongs to it.
def next_token_distribution(logits, temperature=1.0, top_k=None, top_p=None):
    if temperature == 0:
        temperature, top_k = 1.0, 1
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    p = (ordered / temperature).softmax(-1)
    if top_k is not None:
        p = p * (torch.arange(p.shape[-1]) < top_k)
        p = p / p.sum(-1, keepdim=True)
    if top_p is not None and top_p < 1:
        keep = p.cumsum(-1) <= top_p
        keep[..., 0] = True
        p = p * keep
        p = p / p.sum(-1, keepdim=True)
    return torch.zeros_like(p).scatter(-1, order, p)


# %% next_token_distribution: top-p before top-k
# caught by: test_top_p_looks_at_what_top_k_left
# says: Top-p counts with the probabilities before top-k: first top-k, then make what is left sum to 1, then top-p.
def next_token_distribution(logits, temperature=1.0, top_k=None, top_p=None):
    if temperature == 0:
        temperature, top_k = 1.0, 1
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    p = (ordered / temperature).softmax(-1)
    if top_p is not None and top_p < 1:
        before = p.cumsum(-1) - p
        before[..., 0] = 0
        p = p * (before < top_p)
    if top_k is not None:
        p = p * (torch.arange(p.shape[-1]) < top_k)
    p = p / p.sum(-1, keepdim=True)
    return torch.zeros_like(p).scatter(-1, order, p)


# %% next_token_distribution: temperature last
# caught by: test_top_p_looks_at_the_probabilities_after_temperature
# says: Temperature is applied after top-p, which then looks at other probabilities: temperature comes first.
def next_token_distribution(logits, temperature=1.0, top_k=None, top_p=None):
    if temperature == 0:
        temperature, top_k = 1.0, 1
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    keep = torch.ones_like(ordered, dtype=torch.bool)
    if top_k is not None:
        keep &= torch.arange(ordered.shape[-1]) < top_k
    if top_p is not None and top_p < 1:
        p = ordered.masked_fill(~keep, -torch.inf).softmax(-1)
        before = p.cumsum(-1) - p
        before[..., 0] = 0
        keep &= before < top_p
    p = (ordered / temperature).masked_fill(~keep, -torch.inf).softmax(-1)
    return torch.zeros_like(p).scatter(-1, order, p)


# %% next_token_distribution: not renormalised
# caught by: test_top_k_keeps_the_k_most_probable, test_top_p_keeps_the_token_that_crosses
# says: What is kept no longer sums to 1: divide by the sum.
def next_token_distribution(logits, temperature=1.0, top_k=None, top_p=None):
    if temperature == 0:
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    p = (ordered / temperature).softmax(-1)
    if top_k is not None:
        p = p * (torch.arange(p.shape[-1]) < top_k)
    if top_p is not None and top_p < 1:
        before = p.cumsum(-1) / p.sum(-1, keepdim=True) - p / p.sum(-1, keepdim=True)
        before[..., 0] = 0
        p = p * (before < top_p)
    return torch.zeros_like(p).scatter(-1, order, p)


# %% next_token_distribution: left in sorted order
# caught by: test_by_default_it_is_the_softmax
# says: The probabilities come back sorted: put each of them back at the place of its token.
def next_token_distribution(logits, temperature=1.0, top_k=None, top_p=None):
    if temperature == 0:
        temperature, top_k = 1.0, 1
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    p = (ordered / temperature).softmax(-1)
    if top_k is not None:
        p = p * (torch.arange(p.shape[-1]) < top_k)
        p = p / p.sum(-1, keepdim=True)
    if top_p is not None and top_p < 1:
        before = p.cumsum(-1) - p
        before[..., 0] = 0
        p = p * (before < top_p)
        p = p / p.sum(-1, keepdim=True)
    return p


# %% next_token_distribution: put back with the wrong index
# caught by: test_by_default_it_is_the_softmax
# says: gather with the sorting order sorts once more: it takes scatter, or the inverse order, to put tokens back.
def next_token_distribution(logits, temperature=1.0, top_k=None, top_p=None):
    if temperature == 0:
        temperature, top_k = 1.0, 1
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    p = (ordered / temperature).softmax(-1)
    if top_k is not None:
        p = p * (torch.arange(p.shape[-1]) < top_k)
        p = p / p.sum(-1, keepdim=True)
    if top_p is not None and top_p < 1:
        before = p.cumsum(-1) - p
        before[..., 0] = 0
        p = p * (before < top_p)
        p = p / p.sum(-1, keepdim=True)
    return p.gather(-1, order)


# %% next_token_distribution: all that tie are kept
# caught by: test_of_equal_logits_the_lower_ids_are_kept
# says: All tokens that tie with the last one are kept, so there are more than top_k: the lower ids come first.
def next_token_distribution(logits, temperature=1.0, top_k=None, top_p=None):
    if temperature == 0:
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
    scores = logits / temperature
    if top_k is not None:
        least = scores.topk(min(top_k, scores.shape[-1])).values[..., -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    if top_p is not None and top_p < 1:
        ordered, order = scores.sort(dim=-1, descending=True, stable=True)
        p = ordered.softmax(-1)
        before = p.cumsum(-1) - p
        before[..., 0] = 0
        ordered = ordered.masked_fill(before >= top_p, -torch.inf)
        scores = torch.zeros_like(scores).scatter(-1, order, ordered)
    return scores.softmax(-1)


# %% next_token_distribution: the higher of two equal ids
# caught by: test_of_equal_logits_the_lower_ids_are_kept, test_temperature_zero_takes_the_largest_logit
# says: Of equal logits the higher id comes first: an ascending sort turned round turns ties round too.
def next_token_distribution(logits, temperature=1.0, top_k=None, top_p=None):
    if temperature == 0:
        temperature, top_k = 1.0, 1
    ordered, order = logits.sort(dim=-1, stable=True)
    ordered, order = ordered.flip(-1), order.flip(-1)
    p = (ordered / temperature).softmax(-1)
    if top_k is not None:
        p = p * (torch.arange(p.shape[-1]) < top_k)
        p = p / p.sum(-1, keepdim=True)
    if top_p is not None and top_p < 1:
        before = p.cumsum(-1) - p
        before[..., 0] = 0
        p = p * (before < top_p)
        p = p / p.sum(-1, keepdim=True)
    return torch.zeros_like(p).scatter(-1, order, p)


# %% next_token_distribution: NaN at temperature 0
# caught by: test_temperature_zero_takes_the_largest_logit
# says: At temperature 0 the logits are divided by 0, which gives NaN: take the largest logit instead.
def next_token_distribution(logits, temperature=1.0, top_k=None, top_p=None):
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    p = (ordered / temperature).softmax(-1)
    if top_k is not None:
        p = p * (torch.arange(p.shape[-1]) < top_k)
        p = p / p.sum(-1, keepdim=True)
    if top_p is not None and top_p < 1:
        before = p.cumsum(-1) - p
        before[..., 0] = 0
        p = p * (before < top_p)
        p = p / p.sum(-1, keepdim=True)
    return torch.zeros_like(p).scatter(-1, order, p)


# %% next_token_distribution: temperature 0 shared among ties
# caught by: test_temperature_zero_takes_the_largest_logit
# says: At temperature 0 equal logits share the probability: the lowest id should get all of it.
def next_token_distribution(logits, temperature=1.0, top_k=None, top_p=None):
    if temperature == 0:
        best = (logits == logits.amax(-1, keepdim=True)).to(logits.dtype)
        return best / best.sum(-1, keepdim=True)
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    p = (ordered / temperature).softmax(-1)
    if top_k is not None:
        p = p * (torch.arange(p.shape[-1]) < top_k)
        p = p / p.sum(-1, keepdim=True)
    if top_p is not None and top_p < 1:
        before = p.cumsum(-1) - p
        before[..., 0] = 0
        p = p * (before < top_p)
        p = p / p.sum(-1, keepdim=True)
    return torch.zeros_like(p).scatter(-1, order, p)


# %% next_token_distribution: only one row
# caught by: test_every_row_is_treated_by_itself
# says: The order of the first row is used for all of them: every row has its own.
def next_token_distribution(logits, temperature=1.0, top_k=None, top_p=None):
    if temperature == 0:
        temperature, top_k = 1.0, 1
    order = logits.reshape(-1, logits.shape[-1])[0].argsort(descending=True, stable=True)
    ordered = logits[..., order]
    p = (ordered / temperature).softmax(-1)
    if top_k is not None:
        p = p * (torch.arange(p.shape[-1]) < top_k)
        p = p / p.sum(-1, keepdim=True)
    if top_p is not None and top_p < 1:
        before = p.cumsum(-1) - p
        before[..., 0] = 0
        p = p * (before < top_p)
        p = p / p.sum(-1, keepdim=True)
    out = torch.zeros_like(p)
    out[..., order] = p
    return out


# %% next_token_distribution: the tail lost at top_p = 1
# caught by: test_limits_that_limit_nothing_change_nothing
# says: At top_p = 1 rounding lets the sum reach 1 before the last tokens, and they are lost: 1 should keep all.
def next_token_distribution(logits, temperature=1.0, top_k=None, top_p=None):
    if temperature == 0:
        temperature, top_k = 1.0, 1
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    p = (ordered / temperature).softmax(-1)
    if top_k is not None:
        p = p * (torch.arange(p.shape[-1]) < top_k)
        p = p / p.sum(-1, keepdim=True)
    if top_p is not None:
        keep = p.cumsum(-1) - p < top_p - 1e-6
        keep[..., 0] = True
        p = p * keep
        p = p / p.sum(-1, keepdim=True)
    return torch.zeros_like(p).scatter(-1, order, p)


# %% next_token_distribution: probabilities of the kept ones set to almost 0
# caught by: test_top_k_keeps_the_k_most_probable
# says: What is not kept gets a large negative number for a logit, not −inf, or a small probability: it should be 0 exactly.
def next_token_distribution(logits, temperature=1.0, top_k=None, top_p=None):
    if temperature == 0:
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
    ordered, order = (logits / temperature).sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        ordered = torch.where(torch.arange(ordered.shape[-1]) < top_k, ordered, ordered[..., :1] - 20)
    if top_p is not None and top_p < 1:
        p = ordered.softmax(-1)
        before = p.cumsum(-1) - p
        before[..., 0] = 0
        ordered = torch.where(before < top_p, ordered, ordered[..., :1] - 20)
    p = ordered.softmax(-1)
    return torch.zeros_like(p).scatter(-1, order, p)


# %% next_token_distribution: the logits changed in place
# caught by: test_the_logits_are_left_as_they_were
# says: The caller's logits are changed: writing −inf into them, or an operation that ends in _, works in place.
def next_token_distribution(logits, temperature=1.0, top_k=None, top_p=None):
    if temperature == 0:
        temperature, top_k = 1.0, 1
    order = logits.argsort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        logits.scatter_(-1, order[..., top_k:], -torch.inf)
    p = (logits / temperature).softmax(-1).gather(-1, order)
    if top_p is not None and top_p < 1:
        before = p.cumsum(-1) - p
        before[..., 0] = 0
        p = p * (before < top_p)
        p = p / p.sum(-1, keepdim=True)
    return torch.zeros_like(p).scatter(-1, order, p)


# %% next_token_distribution: always float32
# caught by: test_the_probabilities_have_the_dtype_of_the_logits
# says: The result is float32 whatever the logits are: cast it back.
def next_token_distribution(logits, temperature=1.0, top_k=None, top_p=None):
    if temperature == 0:
        temperature, top_k = 1.0, 1
    ordered, order = logits.float().sort(dim=-1, descending=True, stable=True)
    p = (ordered / temperature).softmax(-1)
    if top_k is not None:
        p = p * (torch.arange(p.shape[-1]) < top_k)
        p = p / p.sum(-1, keepdim=True)
    if top_p is not None and top_p < 1:
        before = p.cumsum(-1) - p
        before[..., 0] = 0
        p = p * (before < top_p)
        p = p / p.sum(-1, keepdim=True)
    return torch.zeros_like(p).scatter(-1, order, p)


# %% next_token_distribution: a draw instead of the distribution
# caught by: test_by_default_it_is_the_softmax
# says: This draws a token; the probabilities themselves are asked for.
def next_token_distribution(logits, temperature=1.0, top_k=None, top_p=None):
    if temperature == 0:
        return logits.argmax(-1)
    return torch.distributions.Categorical(logits=logits / temperature).sample()


# %% next_token_distribution: a sort that is not stable
# caught by: test_of_equal_logits_the_lower_ids_are_kept
# says: Without stable=True a sort leaves equal logits in any order: the lower ids should come first.
def next_token_distribution(logits, temperature=1.0, top_k=None, top_p=None):
    if temperature == 0:
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
    ordered, order = logits.sort(dim=-1, descending=True)
    p = (ordered / temperature).softmax(-1)
    if top_k is not None:
        p = p * (torch.arange(p.shape[-1]) < top_k)
        p = p / p.sum(-1, keepdim=True)
    if top_p is not None and top_p < 1:
        before = p.cumsum(-1) - p
        p = p * (before < top_p)
        p = p / p.sum(-1, keepdim=True)
    return torch.zeros_like(p).scatter(-1, order, p)


# %% next_token_distribution: one token too many
# caught by: test_reaching_top_p_exactly_is_enough
# says: Where the kept tokens sum to top_p exactly, one more is kept: at least top_p is asked for, not more than it.
def next_token_distribution(logits, temperature=1.0, top_k=None, top_p=None):
    if temperature == 0:
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    p = (ordered / temperature).softmax(-1)
    if top_k is not None:
        p = p * (torch.arange(p.shape[-1]) < top_k)
        p = p / p.sum(-1, keepdim=True)
    if top_p is not None and top_p < 1:
        before = p.cumsum(-1) - p
        p = p * (before <= top_p)
        p = p / p.sum(-1, keepdim=True)
    return torch.zeros_like(p).scatter(-1, order, p)


# %% train_bpe: lists instead of tuples
# caught by: test_a_merge_is_a_tuple_of_two_integers
# says: The merges are lists of two ids; they should be tuples, which a dictionary can hold as keys.
def train_bpe(text, n_merges):
    words = Counter(tuple(piece.encode()) for piece in pieces(text))
    merges = []
    while len(merges) < n_merges:
        counts = Counter()
        for word, times in words.items():
            for pair in pairwise(word):
                counts[pair] += times
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        after = Counter()
        for word, times in words.items():
            ids, i = [], 0
            while i < len(word):
                found = word[i : i + 2] == best
                ids.append(256 + len(merges) if found else word[i])
                i += 2 if found else 1
            after[tuple(ids)] += times
        words = after
        merges.append(list(best))
    return merges


# %% next_token_loss: plain numbers
# caught by: test_the_losses_are_tensors_of_the_dtype_of_the_logits, test_gradients_reach_the_logits
# says: The results are plain numbers; they should be tensors, through which gradients flow.
def next_token_loss(logits, ids, n_bytes):
    targets = ids[:, 1:].flatten()
    nats = F.cross_entropy(logits[:, :-1].flatten(0, 1), targets, ignore_index=PAD)
    return nats.item(), nats.item() * int((targets != PAD).sum()) / math.log(2) / n_bytes


# %% next_token_distribution: a temperature that is never small
# caught by: test_logits_are_divided_by_the_temperature
# says: A small temperature is replaced by a larger one: any above 0 is divided by as it is.
def next_token_distribution(logits, temperature=1.0, top_k=None, top_p=None):
    if temperature == 0:
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
    ordered, order = logits.sort(descending=True, stable=True)
    p = (ordered / max(temperature, 0.01)).softmax(-1)
    if top_k is not None:
        p = p * (torch.arange(p.shape[-1]) < top_k)
        p = p / p.sum(-1, keepdim=True)
    if top_p is not None and top_p < 1:
        p = p * (p.cumsum(-1) - p < top_p)
        p = p / p.sum(-1, keepdim=True)
    return p.scatter(-1, order, p)


# %% next_token_distribution: −∞ as the lowest logit there may be
# caught by: test_forbidden_tokens_stay_forbidden_and_nothing_overflows
# says: −10,000 is a logit that a token may have, and −∞ is none: what is forbidden then gets a share.
def next_token_distribution(logits, temperature=1.0, top_k=None, top_p=None):
    if temperature == 0:
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
    ordered, order = logits.clamp(min=-1e4).sort(descending=True, stable=True)
    p = (ordered / temperature).softmax(-1)
    if top_k is not None:
        p = p * (torch.arange(p.shape[-1]) < top_k)
        p = p / p.sum(-1, keepdim=True)
    if top_p is not None and top_p < 1:
        p = p * (p.cumsum(-1) - p < top_p)
        p = p / p.sum(-1, keepdim=True)
    return p.scatter(-1, order, p)
