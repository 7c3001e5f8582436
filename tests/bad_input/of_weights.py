"""Rows of weights files: none, none at all, cut, of another network, or another than the plan's."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from shardgen.depth.densedepth.family import SHIPPED
from tests.bad_input.case import RUN, Case, Outcome
from tests.photographs import colours, write_rgb


def _named(weights: str) -> Callable[[Path], object]:
    """Settings that name these weights."""

    def arrange(box: Path) -> None:
        path = box / RUN / "shardgen.toml"
        text = path.read_text(encoding="utf-8").replace('weights = "small"', f'weights = "{weights}"')
        path.write_text(text, encoding="utf-8")

    return arrange


def _own(make: Callable[[Path], object]) -> Callable[[Path], object]:
    """Settings that name `own.h5`, and that file."""

    def arrange(box: Path) -> None:
        _named("../own.h5")(box)
        make(box / "own.h5")

    return arrange


def _other_network(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = '{"class_name": "Sequential", "config": {"layers": []}}'
        file.create_group("model_weights").attrs["layer_names"] = []


def _no_topology(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = []


def _refused(
    label: str, make: Callable[[Path], object], *says: str, code: int = 17, hint: str = "fetch nyu"
) -> Case:
    return Case(
        name=label,
        arguments=("plan", RUN),
        code=code,
        arrange=_own(make),
        says=("own.h5", *says),
        hints=(hint,),
    )


def _shows_the_plan(outcome: Outcome) -> None:
    lines = [line.split() for line in outcome.stdout.splitlines()]
    shown = {words[0]: words[1:] for words in lines}
    assert shown["plan"] == ["NOT", "WRITTEN"]
    assert shown["samples"] == ["48"]
    assert shown["foregrounds"][:1] == ["cover"]
    assert shown["network"] == ["densedepth", "nyu,", "aligned", "upsampling,", "float32"]
    assert shown["fingerprint"][:3] == ["not", "known", "yet:"]


def _ordinary_photograph(box: Path) -> None:
    (box / "portraits").mkdir()
    write_rgb(box / "portraits" / "anna.jpg", colours(np.random.default_rng(1), 90, 80))


CASES = [
    _refused("weights that are not there", lambda _path: None, code=11),
    _refused("weights that are a folder", lambda path: path.mkdir(), code=11),
    _refused("weights that are empty", lambda path: path.touch(), "empty"),
    _refused("weights that are a web page", lambda path: path.write_bytes(b"<!DOCTYPE html>"), "web page"),
    _refused(
        "weights that are a photograph", lambda path: path.write_bytes(b"\xff\xd8\xff\xe0" * 100), "not HDF5"
    ),
    _refused(
        "weights cut short",
        lambda path: path.write_bytes(SHIPPED["small"].read_bytes()[:50_000]),
        "truncated",
    ),
    _refused("weights of another network", _other_network, hint="DenseDepth"),
    _refused("weights without a topology", _no_topology, "model_config", hint="model.save"),
    Case(
        name="weights of a name mistyped",
        arguments=("plan", RUN),
        code=11,
        arrange=_named("nyuu"),
        says=("people/nyuu: no such weights file",),
        hints=('did you mean "nyu"? weights is nyu, kitti, small, random:N or a file\'s path',),
    ),
    Case(
        name="weights of a name that is like none",
        arguments=("plan", RUN),
        code=11,
        arrange=_named("resnet"),
        says=("people/resnet: no such weights file",),
        hints=("hint: weights is nyu, kitti, small, random:N or a file's path",),
    ),
    Case(
        name="a look at weights that are none",
        arguments=("weights", "check", "people/shardgen.toml"),
        code=17,
        says=("shardgen.toml", "not HDF5"),
        hints=("fetch nyu",),
    ),
    Case(
        name="other weights than the plan's",
        arguments=("plan", RUN),
        code=10,
        start="finished",
        arrange=_own(lambda path: shutil.copy(SHIPPED["small"], path)),
        says=("small -> file",),
        hints=("undo",),
    ),
    Case(
        name="a plan whose weights cannot be fetched",
        arguments=("plan", RUN),
        code=33,
        arrange=_named("nyu"),
        environment={"https_proxy": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"},
        prints=True,
        says=("no connection to s3-eu-west-1.amazonaws.com for the nyu weights (Connection refused)",),
        hints=("run it again", "and put it at", "nyu.h5", '[depth] weights = "small"'),
        allowed=("cache",),
        check=_shows_the_plan,
    ),
    Case(
        name="weights from a network that is not there",
        arguments=("weights", "fetch", "nyu"),
        code=33,
        environment={"https_proxy": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"},
        says=("nyu",),
        hints=("nyu.h5",),
        allowed=("cache",),
    ),
    Case(
        name="a cut-out whose network can be fetched from nowhere",
        arguments=("cut-out", "portraits"),
        code=33,
        arrange=_ordinary_photograph,
        environment={"https_proxy": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"},
        says=("no connection to", "u2netp"),
        hints=("elsewhere and put it at", "--model u2netp.onnx"),
        allowed=("cache",),
    ),
    Case(
        name="a cut-out by a file that is no network",
        arguments=("cut-out", "portraits", "--model", "people/shardgen.toml"),
        code=17,
        arrange=_ordinary_photograph,
        says=("shardgen.toml", "cannot read it"),
        hints=("u2netp.onnx",),
    ),
    Case(
        name="a cut-out by a network that is not there",
        arguments=("cut-out", "portraits", "--model", "u2netp.onnx"),
        code=11,
        arrange=_ordinary_photograph,
        says=("u2netp.onnx: No such file",),
        hints=("shardgen weights fetch u2netp",),
    ),
    Case(
        name="a cut-out of a run directory",
        arguments=("cut-out", RUN),
        code=11,
        says=("people: a run directory",),
        hints=("shardgen.toml",),
    ),
]
