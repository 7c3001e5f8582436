"""DenseDepth's loss, on the logarithm of the network's output `1000 / depth in cm`.

On the output itself, which runs from 1 to 100, a step from 6 m to 3 m is 1.7 of 100: SSIM, whose constants
are scaled by the range, hardly sees it, and the few pixels right before the camera outweigh everything else.
In logarithms the same ratio of depths counts the same everywhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

LARGEST = float(np.log(1000.0 / 10.0))
POINT_SHARE = 0.1


def densedepth_loss(truth: Any, output: Any) -> Any:
    """0.1 of the mean difference, the difference of the gradients, and SSIM; float32 (B, h, w, 1) each."""
    truth, output = logarithm(truth), logarithm(tf.cast(output, tf.float32))
    points = tf.reduce_mean(tf.abs(output - truth))
    down_truth, right_truth = tf.image.image_gradients(truth)
    down, right = tf.image.image_gradients(output)
    edges = tf.reduce_mean(tf.abs(down - down_truth) + tf.abs(right - right_truth))
    likeness = tf.image.ssim(truth, output, LARGEST)
    structure = tf.reduce_mean(tf.clip_by_value((1 - likeness) / 2, 0, 1))
    return structure + edges + POINT_SHARE * points


def logarithm(output: Any) -> Any:
    """Of outputs from 1 up; below, where it would fall steeply, its tangent."""
    return tf.where(output > 1, tf.math.log(tf.maximum(output, 1.0)), output - 1)
