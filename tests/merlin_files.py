"""MIB files as Quantum Detectors' Merlin writes them, from whole numbers: the reverse of what the reader does."""

from pathlib import Path

import numpy as np


def header(number: int, columns: int, rows: int, kind: str, *, chips: int = 1, bits: int = 12) -> bytes:
    """The text before a pattern."""
    offset, layout = (384, "1x1") if chips == 1 else (768, "2x2")
    fields = ["MQ1", f"{number:06d}", f"{offset:05d}", f"{chips:02d}", f"{columns:04d}", f"{rows:04d}", kind]
    fields += [f"{layout:>6s}", "0F", "2024-01-01 00:00:00.000000", "0.001000", "0", "0", "0", "1.2E+2", "5.11E+2"]
    fields += ["MQ1A", "2024-01-01T00:00:00.000000000Z", "1000000ns", str(bits), ""]
    return ",".join(fields).encode().ljust(offset, b"\0")


def _words(pixels: np.ndarray, bits: int) -> bytes:
    """Pixels in the chip's order: eight bytes back to front."""
    if bits == 1:
        data = np.packbits(pixels.reshape(-1, 64).astype(np.uint8), axis=1, bitorder="little")
    else:
        data = pixels.astype(np.uint8 if bits == 6 else "<u2").reshape(-1, 8 if bits == 6 else 4).view(np.uint8)
    return data.reshape(-1, 8)[:, ::-1].tobytes()


def raw_body(pattern: np.ndarray, bits: int, chips: int) -> bytes:
    """A pattern in the chips' own order."""
    if bits == 24:
        return _words(pattern >> 12, 12) + _words(pattern & 4095, 12)
    if chips == 1:
        return _words(pattern, bits)
    half = len(pattern) // 2
    turned = pattern[half:][::-1, ::-1]  # of the two lower chips, as they are mounted
    lower_left, lower_right = turned[:, half:], turned[:, :half]
    upper_left, upper_right = pattern[:half, :half], pattern[:half, half:]
    return _words(np.concatenate([lower_right, lower_left, upper_right, upper_left], axis=1), bits)


def write_mib(path: Path, patterns: np.ndarray, kind: str, *, bits: int = 12, chips: int = 1) -> None:
    """Writes patterns (pattern, ky, kx) as U08, U16, U32 or R64."""
    rows, columns = patterns.shape[1:]
    if kind == "R64":
        columns *= 2 if bits == 24 else 1
        if chips == 4:
            rows, columns = rows // 2, columns * 2
    with open(path, "wb") as file:
        for number, pattern in enumerate(patterns):
            file.write(header(number + 1, columns, rows, kind, chips=chips, bits=bits))
            plain = {"U08": "u1", "U16": ">u2", "U32": ">u4"}
            file.write(raw_body(pattern, bits, chips) if kind == "R64" else pattern.astype(plain[kind]).tobytes())
