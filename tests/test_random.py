import numpy as np
import pytest

from minisft import dispatch
from minisft.backend import random
from minisft.backend.random import Stream

WORD = 2**32 - 1
# Random123's kat_vectors for philox4x32-10: counter, key -> words
PUBLISHED = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((WORD,) * 4, (WORD,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
     (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]


def philox_by_ints(counter, key):
    """The published definition in Python's own integers, which cannot overflow."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (b // 2**32) ^ c1 ^ k0, b % 2**32, (a // 2**32) ^ c3 ^ k1, a % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


@pytest.mark.parametrize("counter, key, words", PUBLISHED)
def test_published_vectors(counter, key, words):
    arrays = [np.full((2, 3), c, dtype=np.uint32) for c in counter]
    for ours, word in zip(random.philox(arrays, key), words, strict=True):
        assert ours.dtype == np.uint32 and ours.shape == (2, 3) and (ours == word).all()
    assert philox_by_ints(counter, key) == words


def test_philox_matches_python_integers(rng):
    counter = rng.integers(0, 2**32, (4, 50), dtype=np.uint32)
    key = 0xDEADBEEF, 0xFFFFFFFE
    words = np.array(random.philox(counter, key))
    for i in range(50):
        assert tuple(words[:, i].tolist()) == philox_by_ints(counter[:, i].tolist(), key)


def test_words_are_what_the_counter_says():
    # The layout is a promise: the kernels draw the same words without asking NumPy.
    stream = Stream(seed=11, step=5)
    texts, positions = np.array([7, 7, 9]), np.array([0, 1, 4])
    words = stream.tokens(3, random.MLP_OUT, texts, positions, 10)
    assert words.shape == (3, 10) and words.dtype == np.uint32
    for n in range(3):
        for c in range(10):
            counter = 5, int(texts[n]), int(positions[n]), c // 4
            assert words[n, c] == philox_by_ints(counter, (11, 3 << 16 | 3))[c % 4]
    words = stream.scores(2, 7, np.array([3, 4]), n_head=3, n_keys=5)
    assert words.shape == (3, 2, 5) and words.dtype == np.uint32
    for h in range(3):
        for i in range(2):
            for j in range(5):
                counter = 5, 7, 3 + i, h << 20 | j // 4
                assert words[h, i, j] == philox_by_ints(counter, (11, 2 << 16 | 1))[j % 4]


def test_words_do_not_depend_on_company_or_order(rng):
    stream = Stream(seed=1, step=2)
    texts = np.repeat([40, 3, 17], [4, 2, 5])
    positions = np.concatenate([np.arange(n) for n in (4, 2, 5)])
    words = stream.tokens(1, random.ATTENTION_OUT, texts, positions, 6)
    alone = stream.tokens(1, random.ATTENTION_OUT, np.full(5, 17), np.arange(5), 6)
    assert np.array_equal(words[6:], alone)
    order = rng.permutation(11)
    shuffled = stream.tokens(1, random.ATTENTION_OUT, texts[order], positions[order], 6)
    assert np.array_equal(shuffled, words[order])
    # neither on how many channels or keys are drawn beside them, nor on which queries are wanted
    assert np.array_equal(
        stream.tokens(1, random.ATTENTION_OUT, texts, positions, 3), words[:, :3])
    full = stream.scores(1, 17, np.arange(5), n_head=2, n_keys=5)
    assert np.array_equal(stream.scores(1, 17, np.array([4]), 2, 5), full[:, 4:])
    assert np.array_equal(stream.scores(1, 17, np.arange(5), 2, 3), full[:, :, :3])
    assert np.array_equal(stream.scores(1, 17, np.arange(5), 1, 5), full[:1])


def test_each_thing_has_words_of_its_own():
    def tokens(seed=1, step=1, layer=1, site=random.EMBEDDING, text=1, position=1):
        return Stream(seed, step).tokens(layer, site, np.array([text]), np.array([position]), 9)

    drawn = [tokens(), tokens(seed=2), tokens(step=2), tokens(layer=2), tokens(text=2),
             tokens(site=random.ATTENTION_OUT), tokens(site=random.MLP_OUT), tokens(position=2)]
    drawn += [Stream(1, 1).scores(1, 1, np.array([1]), n_head=4, n_keys=9),
              Stream(1, 1).scores(2, 1, np.array([1]), n_head=4, n_keys=9)]
    everything = np.concatenate([words.ravel() for words in drawn])
    # 144 words: two equal ones by chance are less likely than 1 in 400,000
    assert len(np.unique(everything)) == len(everything)


def test_words_are_uniform():
    words = Stream(0, 0).tokens(0, random.EMBEDDING, np.zeros(500, int), np.arange(500), 64)
    n = words.size
    uniform = words / 2**32
    assert abs(uniform.mean() - 0.5) < 4 / np.sqrt(12 * n)
    for bit in range(32):
        ones = (words >> np.uint32(bit) & np.uint32(1)).mean()
        assert abs(ones - 0.5) < 5 / np.sqrt(4 * n)
    # neighbours, across channels and across positions, have nothing to do with each other
    for a, b in [(uniform[:, 1:], uniform[:, :-1]), (uniform[1:], uniform[:-1])]:
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / np.sqrt(n)


def test_large_numbers_are_taken():
    # a step or text beyond 2^31 is still a number of 32 bits
    words = Stream(2**32 - 1, 2**32 - 1).tokens(40, random.MLP_OUT, np.array([2**32 - 1]),
                                                np.array([1023]), 4)
    expected = philox_by_ints((WORD, WORD, 1023, 0), (WORD, 40 << 16 | random.MLP_OUT))
    assert tuple(words[0].tolist()) == expected


@pytest.mark.parametrize("n", [0, 1, 2, 97, 1000])
def test_permutation(n):
    order = random.permutation(n, seed=3, epoch=0)
    assert order.dtype == np.int64 and sorted(order.tolist()) == list(range(n))
    assert np.array_equal(order, random.permutation(n, 3, 0))
    if n > 50:
        for seed, epoch in [(3, 1), (4, 0), (0, 3)]:
            assert not np.array_equal(order, random.permutation(n, seed, epoch))
        # about one thing in n stays where it is
        assert (order == np.arange(n)).sum() < 8


def test_normal():
    x = random.normal((200, 501), seed=1, number=4)
    n = x.size
    assert x.dtype == np.float64 and x.shape == (200, 501)
    assert abs(x.mean()) < 4 / np.sqrt(n)
    assert abs(x.var() - 1) < 4 * np.sqrt(2 / n)
    assert abs((x**3).mean()) < 4 * np.sqrt(15 / n)
    assert abs((x**4).mean() - 3) < 4 * np.sqrt(96 / n)
    # both halves of Box and Muller's pairs, which must not know of each other
    pairs = x.ravel()
    assert abs(np.corrcoef(pairs[::2], pairs[1::2])[0, 1]) < 5 / np.sqrt(n / 2)
    # shares of the bell: 68.27 % within one
    assert abs((abs(x) < 1).mean() - 0.6827) < 4 * np.sqrt(0.6827 * 0.3173 / n)


def test_normal_belongs_to_seed_and_number():
    x = random.normal((3, 5), 1, 4)
    assert np.array_equal(x, random.normal((3, 5), 1, 4))
    assert np.array_equal(x.ravel(), random.normal(40, 1, 4)[:15])
    for seed, number in [(1, 5), (2, 4), (4, 1)]:
        assert not np.isin(random.normal((3, 5), seed, number), x).any()


def test_blocks_change_no_bit(monkeypatch):
    stream, texts, positions = Stream(5, 9), np.arange(40), np.arange(3, 43)
    whole = (stream.tokens(1, 2, texts, positions, 30), stream.scores(1, 7, positions, 3, 11),
             random.normal((7, 9), 1, 2))
    monkeypatch.setattr(random.row_blocks, "BLOCK", 128)
    monkeypatch.setattr(random.row_blocks, "threads", lambda: 3)
    parts = (stream.tokens(1, 2, texts, positions, 30), stream.scores(1, 7, positions, 3, 11),
             random.normal((7, 9), 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_words_of_some_keys_are_those_of_all():
    positions = np.array([9, 12])
    whole = Stream(1, 2).scores(1, 3, positions, 2, 11)
    assert np.array_equal(Stream(1, 2).scores(1, 3, positions, 2, 11, first=8), whole[..., 8:])
    with pytest.raises(ValueError, match="start at 6, expected a multiple of 4"):
        Stream(1, 2).scores(1, 3, positions, 2, 11, first=6)


@pytest.mark.parametrize("from_start", [False, True])
@pytest.mark.parametrize("draw", [random.draw_words, dispatch.dispatched(Stream(0, 0)).draw])
def test_words_of_a_batch_are_those_of_its_sequences(monkeypatch, from_start, draw):
    """Drawn together or one by one; with more queries than keys as well."""
    queries, keys = np.array([5, 1, 2, 9, 3]), np.array([4, 7, 2, 9, 11])
    edges = np.concatenate([[0], np.cumsum(queries)])
    given = (Stream(3, 11, draw), 2, np.array([7, 2**31, 5, 9, 1]), edges, 3, np,
             from_start)
    alone, together = random.Scores(*given), random.Scores(*given, key_lengths=keys)
    for b, n in enumerate(keys):
        np.testing.assert_array_equal(together(b, n), alone(b, n))
        np.testing.assert_array_equal(together(b, n, slice(0, n)), alone(b, n))
    monkeypatch.setattr(random, "TOGETHER", 3 * queries.sum() * keys.max() - 1)
    assert random.Scores(*given, key_lengths=keys)._together is None is not together._together
