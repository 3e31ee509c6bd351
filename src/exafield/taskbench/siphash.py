"""SipHash-2-4, and the uniform numbers Task Bench draws with it.

Aumasson and Bernstein, *SipHash: a fast short-input PRF*, INDOCRYPT 2012. The numbers depend on nothing but the
integers they are drawn for, so every process and every system gets the same ones.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

KEY: Final = (np.uint64(0x0807060504030201), np.uint64(0x000F0E0D0C0B0A09))
"""The reference's key, 16 bytes: it sets 15 of them, 1 to 15, and the last stays zero."""

_CHUNK: Final = 1 << 14  # so that the few arrays of one round stay in a core's cache


def siphash(words: Any) -> Any:
    """The hash of a message of 64-bit words.

    Args:
        words: a tuple of uint64; or of arrays of them, [messages] or [1] where a word is the same in all messages.
    """
    # Compiled too, see native_kernels: hence one plain loop, and constants that are uint64 like the words. On arrays,
    # words that all messages share come first in Task Bench, and are mixed once rather than for every message.
    count = len(words)
    zero = words[0] ^ words[0]
    v0 = zero ^ (KEY[0] ^ np.uint64(0x736F6D6570736575))
    v1 = zero ^ (KEY[1] ^ np.uint64(0x646F72616E646F6D))
    v2 = zero ^ (KEY[0] ^ np.uint64(0x6C7967656E657261))
    v3 = zero ^ (KEY[1] ^ np.uint64(0x7465646279746573))
    length = zero ^ (np.uint64(8 * count) << np.uint64(56))
    for block in range(count + 2):
        word = words[block] if block < count else length
        if block == count + 1:
            v2 = v2 ^ np.uint64(0xFF)
        else:
            v3 = v3 ^ word
        for _ in range(4 if block == count + 1 else 2):
            v0 = v0 + v1
            v2 = v2 + v3
            v1 = ((v1 << np.uint64(13)) | (v1 >> np.uint64(51))) ^ v0
            v3 = ((v3 << np.uint64(16)) | (v3 >> np.uint64(48))) ^ v2
            v0 = (v0 << np.uint64(32)) | (v0 >> np.uint64(32))
            v2 = v2 + v1
            v0 = v0 + v3
            v1 = ((v1 << np.uint64(17)) | (v1 >> np.uint64(47))) ^ v2
            v3 = ((v3 << np.uint64(21)) | (v3 >> np.uint64(43))) ^ v0
            v2 = (v2 << np.uint64(32)) | (v2 >> np.uint64(32))
        if block <= count:
            v0 = v0 ^ word
    return v0 ^ v1 ^ v2 ^ v3


def uniforms(*numbers: ArrayLike) -> NDArray[np.float64]:
    """Task Bench's numbers in [0, 1] for whole numbers, or for arrays of them, which are broadcast: their hash, each
    as an int64, times 2^-64."""
    columns = [np.asarray(number, dtype=np.int64) for number in numbers]
    shape = np.broadcast_shapes(*(column.shape for column in columns))
    flat = [
        (column.reshape(1) if column.size == 1 else np.broadcast_to(column, shape).reshape(-1)).view(np.uint64)
        for column in columns
    ]
    found = np.empty(int(np.prod(shape, dtype=np.int64)), dtype=np.float64)
    for start in range(0, found.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        found[part] = siphash(tuple(word if word.size == 1 else word[part] for word in flat))
    found *= 2.0**-64
    return found.reshape(shape)
