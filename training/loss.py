"""DenseDepth's loss on the network's own output, `1000 / depth in cm`."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

LARGEST_OUTPUT = 1000.0 / 10.0
POINT_SHARE = 0.1


def densedepth_loss(truth: Any, output: Any) -> Any:
    """0.1 of the mean difference, the difference of the gradients, and SSIM; float32 (B, h, w, 1) each."""
    output = tf.cast(output, tf.float32)
    points = tf.reduce_mean(tf.abs(output - truth))
    down_truth, right_truth = tf.image.image_gradients(truth)
    down, right = tf.image.image_gradients(output)
    edges = tf.reduce_mean(tf.abs(down - down_truth) + tf.abs(right - right_truth))
    likeness = tf.image.ssim(truth, output, LARGEST_OUTPUT)
    structure = tf.reduce_mean(tf.clip_by_value((1 - likeness) / 2, 0, 1))
    return structure + edges + POINT_SHARE * points
