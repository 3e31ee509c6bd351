"""MIB files of Quantum Detectors' Merlin: a text header before each pattern, then its pixels.

The header's fields are separated by commas: MQ1, number of the pattern, bytes of the header, chips, columns, rows, type
of the pixels, layout of the chips, ... U08, U16 and U32 are big-endian integers. R64 is the chip's own order, as it
comes in words of 64 bits, with the number of bits of the counter as the last field of the header:

     1 bit   a pixel is a bit, the first pixel of a word its lowest bit
     6 bits  a pixel is a byte, the first pixel of a word its last byte
    12 bits  a pixel is two bytes, the first pixel of a word its last two
    24 bits  two images of 12 bits one after the other, the higher bits first; the header counts both as columns

Of four chips (2x2) a raw row holds one row of each, of the lower ones turned by 180 degrees, in the order lower right,
lower left, upper right, upper left. After the description in LiberTEM's reader.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exafield.microscopy.calibration import ScanError

# Bytes that hold a pixel of a raw pattern, by the bits of its counter.
_RAW = {1: 1 / 8, 6: 1.0, 12: 2.0, 24: 4.0}
_PLAIN = {"U01": "u1", "U08": "u1", "U16": ">u2", "U32": ">u4"}


class Merlin:
    """Patterns (pattern, ky, kx) of a MIB file.

    Args:
        path: of the file.
    Raises:
        ScanError: it is no MIB file, of a form that is not read, or cut off.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with open(path, "rb") as file:
                head = file.read(2048)
                size = file.seek(0, 2)
        except OSError as error:
            raise ScanError(f"{path} cannot be read: {error.strerror}") from error
        fields = head.decode("ascii", "replace").split(",")
        try:
            if fields[0] != "MQ1":
                raise ValueError
            offset, chips, columns, rows = (int(field) for field in fields[2:6])
            kind, layout = fields[6].strip().upper(), fields[7].strip().upper().rstrip("G")
            if min(offset, chips, columns, rows) < 1:
                raise ValueError
        except (IndexError, ValueError) as error:
            raise ScanError(f"{path} is no MIB file: its first pattern has no header of Merlin (MQ1,...)") from error
        own = [
            field for field in head[:offset].partition(b"\0")[0].decode("ascii", "replace").split(",") if field.strip()
        ]
        self._raw = kind == "R64"
        if self._raw:
            self._bits = self._counter(own[-1].strip(), chips, layout)
            if self._bits == 24:
                columns //= 2
            pixels = round(rows * columns * _RAW[self._bits])
            if chips == 4:
                rows, columns = 2 * min(rows, columns), 2 * min(rows, columns)
        elif kind in _PLAIN:
            self._bits = 0
            pixels = rows * columns * np.dtype(_PLAIN[kind]).itemsize
        else:
            raise ScanError(f"{path}: pixels of type {kind} are not read; known are R64, {', '.join(_PLAIN)}")
        self._quad = self._raw and chips == 4
        whole, rest = divmod(size, offset + pixels)
        if rest or not whole:
            raise ScanError(
                f"{path} is cut off: {size} bytes are {whole} patterns of {columns} x {rows} pixels and {rest} bytes "
                "of another: copy it again, or take what is whole with --shape ROWS COLUMNS after cutting the rest off"
            )
        self._kind = kind
        self._offset = offset
        self._frames: NDArray[np.uint8] = np.memmap(path, np.uint8, "r", shape=(whole, offset + pixels))
        for number in (0, whole - 1):
            if bytes(self._frames[number, :4]) != b"MQ1,":
                raise ScanError(
                    f"{path}: pattern {number + 1} of {whole} has no header: patterns differ in size, or it is damaged"
                )
        self.shape: tuple[int, ...] = (whole, rows, columns)
        kept = {0: _PLAIN.get(kind, "u1").lstrip(">"), 1: "u1", 6: "u1", 12: "u2", 24: "u4"}
        self.dtype: np.dtype[Any] = np.dtype(kept[self._bits])

    def _counter(self, last: str, chips: int, layout: str) -> int:
        try:
            bits = int(last)
            if bits not in _RAW:
                raise ValueError
        except ValueError as error:
            raise ScanError(
                f"{self._path}: raw pixels whose header does not end with 1, 6, 12 or 24 bits, but {last!r}: save it "
                "as U08 or U16 in Merlin's software"
            ) from error
        if chips != 1 and not (chips == 4 and layout == "2X2" and bits != 24):
            raise ScanError(
                f"{self._path}: raw pixels of {chips} chips ({layout}) with {bits} bits are not read, but of one, or "
                "of 2x2 with up to 12 bits: save it as U08 or U16 in Merlin's software"
            )
        return bits

    def __getitem__(self, place: tuple[slice, ...]) -> NDArray[Any]:
        body = np.ascontiguousarray(self._frames[place[0], self._offset :])
        images = self._decoded(body)
        return images[(slice(None), *place[1:])]

    def _decoded(self, body: NDArray[np.uint8]) -> NDArray[Any]:
        count, (rows, columns) = len(body), self.shape[1:]
        if not self._raw:
            return body.view(_PLAIN[self._kind]).astype(self.dtype).reshape(count, rows, columns)
        if self._bits == 24:
            high, low = (_words(half, 12).astype(np.uint32) for half in np.split(body, 2, axis=1))
            return (high << 12 | low).reshape(count, rows, columns)
        pixels = _words(body, self._bits)
        if not self._quad:
            return pixels.reshape(count, rows, columns)
        half = rows // 2
        quarters = pixels.reshape(count, half, 4, half)
        lower_right, lower_left, upper_right, upper_left = (quarters[:, :, k] for k in range(4))
        upper = np.concatenate([upper_left, upper_right], axis=2)
        lower = np.concatenate([lower_left[:, ::-1, ::-1], lower_right[:, ::-1, ::-1]], axis=2)
        return np.concatenate([upper, lower], axis=1)


def _words(body: NDArray[np.uint8], bits: int) -> NDArray[Any]:
    """Pixels of raw images, the words of 64 bits put into their order."""
    swapped = body.reshape(len(body), -1, 8)[:, :, ::-1]
    if bits == 1:
        return np.unpackbits(swapped, axis=2, bitorder="little").reshape(len(body), -1)
    if bits == 6:
        return swapped.reshape(len(body), -1)
    # Reversed bytes of a big-endian pair are a little-endian number.
    return np.ascontiguousarray(swapped).view("<u2").reshape(len(body), -1).astype(np.uint16)
