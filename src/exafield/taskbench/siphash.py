"""SipHash-2-4, and the uniform numbers Task Bench draws with it.

Aumasson and Bernstein, *SipHash: a fast short-input PRF*, INDOCRYPT 2012. The numbers depend on nothing but the
integers they are drawn for, so every process and every system gets the same ones.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

Words = NDArray[np.uint64]

KEY: Final = bytes([*range(1, 16), 0])
"""The reference's key: it sets 15 of the 16 bytes, and the last stays zero."""

_MASK: Final = (1 << 64) - 1
_INITIAL: Final = (0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573)
_CHUNK: Final = 1 << 14  # so that the few arrays of one round stay in a core's cache


def siphash24(message: bytes, key: bytes = KEY) -> int:
    """The 64-bit SipHash-2-4 of a message.

    Raises:
        ValueError: the key has not 16 bytes.
    """
    if len(key) != 16:
        raise ValueError(f"the key must have 16 bytes, not {len(key)}")
    state = [a ^ int.from_bytes(key[k : k + 8], "little") for a, k in zip(_INITIAL, (0, 8, 0, 8), strict=True)]
    whole = len(message) - len(message) % 8
    words = [int.from_bytes(message[k : k + 8], "little") for k in range(0, whole, 8)]
    words.append((len(message) & 0xFF) << 56 | int.from_bytes(message[whole:], "little"))
    for word in words:
        state[3] ^= word
        _mix(state, 2)
        state[0] ^= word
    state[2] ^= 0xFF
    _mix(state, 4)
    return state[0] ^ state[1] ^ state[2] ^ state[3]


def _turn(x: int, bits: int) -> int:
    return (x << bits | x >> (64 - bits)) & _MASK


def _mix(state: list[int], rounds: int) -> None:
    a, b, c, d = state
    for _ in range(rounds):
        a, c = (a + b) & _MASK, (c + d) & _MASK
        b, d = _turn(b, 13) ^ a, _turn(d, 16) ^ c
        a, c = (_turn(a, 32) + d) & _MASK, (c + b) & _MASK
        b, d, c = _turn(b, 17) ^ c, _turn(d, 21) ^ a, _turn(c, 32)
    state[:] = a, b, c, d


def _turned(x: Words, bits: int) -> Words:
    return (x << np.uint64(bits)) | (x >> np.uint64(64 - bits))


def _mixed(state: tuple[Words, Words, Words, Words], rounds: int) -> tuple[Words, Words, Words, Words]:
    a, b, c, d = state
    for _ in range(rounds):
        a, c = a + b, c + d
        b, d = _turned(b, 13) ^ a, _turned(d, 16) ^ c
        a, c = _turned(a, 32) + d, c + b
        b, d, c = _turned(b, 17) ^ c, _turned(d, 21) ^ a, _turned(c, 32)
    return a, b, c, d


def siphash24_words(words: Sequence[Words], key: bytes = KEY) -> Words:
    """The hashes of many messages of equally many 64-bit words.

    Args:
        words: word k of all messages; one-dimensional, of one length or of length 1 (the same in all messages).
        key: 16 bytes.
    """
    keys = np.frombuffer(key, dtype="<u8").astype(np.uint64)
    a, b, c, d = (np.array([start], dtype=np.uint64) ^ keys[k] for start, k in zip(_INITIAL, (0, 1, 0, 1), strict=True))
    last = np.array([(8 * len(words) & 0xFF) << 56], dtype=np.uint64)
    # Words that all messages share come first in Task Bench, and are mixed once rather than for every message.
    for word in (*words, last):
        a, b, c, d = _mixed((a, b, c, d ^ word), 2)
        a = a ^ word
    a, b, c, d = _mixed((a, b, c ^ np.uint64(0xFF), d), 4)
    found: Words = a ^ b ^ c ^ d
    return found


def uniform(*numbers: int) -> float:
    """The reference's number in [0, 1] for some integers: their hash, each as a little-endian int64, times 2^-64."""
    message = b"".join(int(number).to_bytes(8, "little", signed=True) for number in numbers)
    return float(siphash24(message)) * 2.0**-64


def uniforms(*numbers: ArrayLike) -> NDArray[np.float64]:
    """`uniform` for arrays of integers, which are broadcast against each other."""
    columns = [np.asarray(number, dtype=np.int64) for number in numbers]
    shape = np.broadcast_shapes(*(column.shape for column in columns))
    flat = [
        (column.reshape(1) if column.size == 1 else np.broadcast_to(column, shape).reshape(-1)).view(np.uint64)
        for column in columns
    ]
    found = np.empty(int(np.prod(shape, dtype=np.int64)), dtype=np.float64)
    for start in range(0, found.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        found[part] = siphash24_words([word if word.size == 1 else word[part] for word in flat])
    found *= 2.0**-64
    return found.reshape(shape)
