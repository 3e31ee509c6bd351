"""A mesh of squares for tests of fields, known by plain arrays."""

from typing import NamedTuple

import numpy as np


class Grid(NamedTuple):
    """What fields ask of a mesh."""

    centres: np.ndarray
    areas: np.ndarray
    neighbours: np.ndarray
    lengths: np.ndarray
    distances: np.ndarray


def grid(columns: int, rows: int, step: float = 1.0) -> Grid:
    """Squares in rows; boundary faces are there with neighbour -1, and mean nothing."""
    index = np.arange(columns * rows).reshape(columns, rows)
    x, y = np.meshgrid(np.arange(columns), np.arange(rows), indexing="ij")
    inner = np.concatenate(
        [np.c_[index[:-1].ravel(), index[1:].ravel()], np.c_[index[:, :-1].ravel(), index[:, 1:].ravel()]]
    )
    outer = np.c_[index[0], np.full(rows, -1)]
    faces = len(inner) + len(outer)
    return Grid(
        (np.stack([x.ravel(), y.ravel()], axis=1) + 0.5) * step,
        np.full(columns * rows, step**2),
        np.concatenate([inner, outer]),
        np.full(faces, step),
        np.r_[np.full(len(inner), step), np.full(len(outer), step / 2)],
    )
