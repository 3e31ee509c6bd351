"""TensorBoard: what a run records, as event files, while it goes on."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exafield.requirement import require

# What TensorBoard does not take in a name.
_STRANGE = re.compile(r"[^-/\w.]")


def check_tensorboard() -> None:
    """Raises ImportError that says what to install, before anything has been computed."""
    require("tensorboard", extra="tensorboard")


class TensorBoard:
    """A :class:`exafield.report.Logger` that writes event files; `tensorboard --logdir` shows them.

    Metrics are named by their kind: "train/loss", "evaluate/error". What a resumed run does again is shown once.

    Args:
        folder: of the event files, made with the first of them.
    """

    def __init__(self, folder: Path) -> None:
        check_tensorboard()
        self._folder = folder
        self._writer: Any = None

    def _open(self, resumed: int | None = None) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            self._writer = SummaryWriter(str(self._folder), purge_step=None if resumed is None else resumed + 1)
        return self._writer

    def record(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """See :class:`exafield.report.Logger`. Values that are not finite are left out."""
        if kind == "resume":  # begins new files, which take back what older ones hold of later steps
            self.close()
            self._open(step)
            return
        writer = self._open()
        for name, value in values.items():
            if math.isfinite(value):
                writer.add_scalar(f"{kind}/{_STRANGE.sub('_', name)}", value, step)
        writer.flush()

    def picture(self, step: int, path: Path) -> None:
        """See :class:`exafield.report.Logger`."""
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        self._open().add_image(path.stem, pixels, step, dataformats="HWC")

    def close(self) -> None:
        """See :class:`exafield.report.Logger`."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
