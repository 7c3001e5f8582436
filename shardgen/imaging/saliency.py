"""U²-Net: how much each pixel of a photograph belongs to what stands out, run by OpenCV from an ONNX file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np
from numpy.typing import NDArray

from shardgen.errors import WeightsRefused
from shardgen.imaging.opencv import opencv_errors, resize

_SIDE = 320  # pixels; the square that the network was trained with, whatever the photograph's shape
# Of ImageNet, as the network was trained: RGB, after the brightest value has become 1.
_MEAN = np.array((0.485, 0.456, 0.406), np.float32)
_DEVIATION = np.array((0.229, 0.224, 0.225), np.float32)
_MAPS = 7  # outputs: the fused map, then the six that it is made of
# The key of a tensor in another file; OpenCV would open whatever file the model names.
_EXTERNAL = b"location"
_HINT = "use u2netp.onnx or u2net.onnx"


class SaliencyNetwork:
    """A network of U²-Net's family, to be called from one thread; OpenCV computes with `threads`.

    Raises WeightsRefused for bytes that OpenCV cannot read as ONNX; `where` names them.
    """

    sha256: str
    """Of the ONNX file."""

    def __init__(self, data: bytes, *, where: str, threads: int) -> None:
        self._where = where
        self.sha256 = hashlib.sha256(data).hexdigest()
        if _EXTERNAL in data:
            raise WeightsRefused(f"{where}: its tensors lie in other files, which are not opened", hint=_HINT)
        cv2.setNumThreads(threads)
        with self._refusing("OpenCV cannot read it"):
            self._net = cv2.dnn.readNetFromONNX(np.frombuffer(data, np.uint8))
            self._outputs = self._net.getUnconnectedOutLayersNames()

    def check(self) -> None:
        """Run it once; raises WeightsRefused unless the network's outputs are those of the family."""
        maps = self._run(np.zeros((_SIDE, _SIDE, 3), np.uint8))
        shapes = [tuple(one.shape) for one in maps]
        if shapes != [(1, 1, _SIDE, _SIDE)] * _MAPS:
            shown = ", ".join("x".join(map(str, shape)) for shape in shapes[:3])
            raise WeightsRefused(
                f"{self._where}: not a U²-Net: {len(shapes)} outputs, the first of {shown} "
                f"(expected {_MAPS} of 1x1x{_SIDE}x{_SIDE})",
                hint=_HINT,
            )
        if not all(np.isfinite(one).all() and one.min() >= 0 and one.max() <= 1 for one in maps):
            raise WeightsRefused(f"{self._where}: not a U²-Net: levels are not from 0 to 1", hint=_HINT)

    def levels(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """How much each pixel of RGB uint8 (H, W, 3) stands out, uint8 (H, W): 0 not at all, 255 surely.

        The same pixels give the same levels on the same kind of CPU, with any number of threads.
        """
        height, width = pixels.shape[:2]
        found = np.nan_to_num(self._run(pixels)[0][0, 0])
        small = np.rint(np.clip(found, 0, 1) * 255).astype(np.uint8)
        return resize(small, (width, height))

    def _run(self, pixels: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        square = resize(pixels, (_SIDE, _SIDE)).astype(np.float32)
        square = (square / max(float(square.max()), 1e-6) - _MEAN) / _DEVIATION
        blob = np.ascontiguousarray(square.transpose(2, 0, 1)[np.newaxis], np.float32)
        with self._refusing("OpenCV cannot run it"):
            self._net.setInput(blob)
            return list(self._net.forward(self._outputs))  # type: ignore[arg-type]

    @contextmanager
    def _refusing(self, what: str) -> Iterator[None]:
        def refused(said: str) -> WeightsRefused:
            return WeightsRefused(f"{self._where}: {what}: {' '.join(said.split())[:200]}", hint=_HINT)

        before = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        try:
            with opencv_errors(refused):
                yield
        finally:
            cv2.utils.logging.setLogLevel(before)
