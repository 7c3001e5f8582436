"""What `precision = "fast"` costs a network, in grey levels of stored depth, on sample photographs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shardgen.depth.densedepth.precisions import by_both_precisions
from shardgen.depth.densedepth.weights_file import WeightsFile
from shardgen.imaging.opencv import resize
from shardgen.imaging.options import DepthEncoding
from shardgen.imaging.outputs import depth_image
from shardgen.operations.demo import sample_photographs

INPUT_SIZE, STORED_SIZE = (640, 480), (320, 240)


def fast_beside_float32(file: WeightsFile) -> str:
    """The difference of stored 8-bit depth, over the demo's backgrounds.

    Raises InputMissing without the demo's photographs, and as `by_both_precisions`.
    """
    photographs = sample_photographs()["backgrounds"].values()
    images = np.stack([resize(photograph, INPUT_SIZE) for photograph in photographs])
    both = by_both_precisions(file, images)
    error = np.abs(_grey_levels(both.float32) - _grey_levels(both.fast))
    how = "; emulated, as this CPU has no bfloat16" if both.is_emulated else ""
    return (
        f"{error.mean():.2f} grey levels off on average, 99 % by at most {np.percentile(error, 99):.0f}, "
        f"all by at most {error.max()} ({len(images)} photographs{how})"
    )


def _grey_levels(relative: NDArray[np.float32]) -> NDArray[np.int64]:
    """As they are stored."""
    stored = [depth_image(depth, STORED_SIZE, DepthEncoding.INVERSE_MINMAX) for depth in relative]
    return np.stack(stored).astype(np.int64)
