from __future__ import annotations

import numpy as np
import pytest

from shardgen.depth.densedepth.random_weights import random_weights
from shardgen.errors import InvalidSettings


def test_random_weights_are_the_same_on_every_machine() -> None:
    # The digest goes into the plan: if this changes, plans made by earlier versions no longer match.
    weights = random_weights("random:64")
    assert weights.sha256 == "886cc8a9d9bbd41a8e661ad4b420eeeb1dab3050eaf693ae69e5db73884355eb"
    assert (weights.topology.decoder_width, weights.topology.activations) == (64, 1)
    assert weights.topology.blocks == (6, 12, 32, 32)


def test_another_width_is_another_digest() -> None:
    assert random_weights("random:16").sha256 != random_weights("random:32").sha256


def test_random_tensors_are_finite_and_their_variances_positive() -> None:
    tensors = random_weights("random:16").tensors
    assert all(np.isfinite(tensor).all() for tensor in tensors.values())
    assert all(tensor.min() > 0.5 for key, tensor in tensors.items() if key[1] == "moving_variance")


@pytest.mark.parametrize(
    "name", ["random:", "random:0", "random:x", "random:-3", "random:99999", "nyu", "random:²"]
)
def test_a_name_without_a_usable_width_is_refused(name: str) -> None:
    with pytest.raises(InvalidSettings, match="expected random:WIDTH"):
        random_weights(name)
