"""The only reader of a legacy `model_config`: JSON of known layers, never executed, to a Topology."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shardgen.depth.densedepth.topology import (
    Layer,
    LayerKind,
    Topology,
    UpBlock,
    layers_of,
    wiring_problems,
)
from shardgen.storage.bounded import parse_json

# Class names after an optional "package>" of a registered custom class.
KIND_OF_CLASS = {
    "InputLayer": LayerKind.INPUT,
    "Conv2D": LayerKind.CONVOLUTION,
    "BatchNormalization": LayerKind.BATCH_NORM,
    "Activation": LayerKind.RELU,
    "ReLU": LayerKind.RELU,
    "LeakyReLU": LayerKind.LEAKY_RELU,
    "ZeroPadding2D": LayerKind.ZERO_PADDING,
    "MaxPooling2D": LayerKind.MAX_POOLING,
    "AveragePooling2D": LayerKind.AVERAGE_POOLING,
    "Concatenate": LayerKind.CONCATENATE,
    "UpSampling2D": LayerKind.UPSAMPLING,
    "BilinearUpSampling2D": LayerKind.UPSAMPLING,
}
MODEL_CLASSES = ("Model", "Functional")
MAX_LAYERS = 20_000  # the released network has 617
MAX_NAME = 200
MAX_EPSILON = 0.1


class ConfigRefused(ValueError):
    """The configuration is not a DenseDepth's; `problems` lists everything wrong with it."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundLayer:
    """A layer as the file describes it."""

    name: str
    kind: LayerKind
    inputs: tuple[str, ...]
    settings: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """What the configuration says, and how its layers are called in the file."""

    topology: Topology
    layer_names: frozenset[str]


def read_model_config(text: str) -> ModelConfig:
    """Parse the JSON, find the topology, and compare every layer with what that topology needs.

    Raises ConfigRefused with every problem. A network that differs anywhere (another activation, a stride,
    an edge) is refused, since its weights would load and its depth would be silently wrong.
    """
    found = _found_layers(text)
    try:
        topology = _topology(found)
    except (KeyError, TypeError, ValueError, IndexError, OverflowError, StopIteration) as error:
        detail = str(error).strip("'\"") or type(error).__name__
        raise ConfigRefused([f"model_config: not a DenseDepth network: {detail}"]) from error
    problems = wiring_problems(topology) or _differences(topology, found)
    if problems:
        raise ConfigRefused(problems)
    return ModelConfig(topology=topology, layer_names=frozenset(found))


def _found_layers(text: str) -> dict[str, FoundLayer]:
    try:
        document: Any = parse_json(text)
        model_class, entries = document["class_name"], document["config"]["layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigRefused([f"model_config: not a Keras model as JSON ({type(error).__name__})"]) from error
    if model_class not in MODEL_CLASSES:
        raise ConfigRefused([f"model_config: class {_shown(model_class)} (expected Model or Functional)"])
    if not isinstance(entries, list) or len(entries) > MAX_LAYERS:
        raise ConfigRefused([f"model_config: layers is not a list of at most {MAX_LAYERS}"])
    layers: dict[str, FoundLayer] = {}
    problems = []
    for entry in entries:
        try:
            layer = _found_layer(entry)
        except ConfigRefused as error:
            problems += error.problems
            continue
        except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
            problems.append(f"model_config: a layer that cannot be read ({type(error).__name__})")
            continue
        if layer.name in layers:
            problems.append(f"{layer.name}: defined twice")
        layers[layer.name] = layer
    if problems:
        raise ConfigRefused(problems)
    return layers


def _found_layer(entry: Mapping[str, Any]) -> FoundLayer:
    settings = entry["config"]
    name, class_name = entry.get("name") or settings["name"], entry["class_name"]
    if not (isinstance(settings, dict) and isinstance(name, str) and isinstance(class_name, str)):
        raise TypeError(f"{_shown(name)}: not a layer")
    if len(name) > MAX_NAME:
        raise ConfigRefused([f"{name[:40]}…: a layer's name of more than {MAX_NAME} characters"])
    kind = KIND_OF_CLASS.get(class_name.rpartition(">")[2])
    if kind is None:
        raise ConfigRefused([f"{name}: unknown layer class {class_name[:100]} (never executed)"])
    if class_name == "UpSampling2D" and settings.get("interpolation") != "bilinear":
        raise ConfigRefused(
            [f"{name}: upsamples by {_shown(settings.get('interpolation'))} (expected 'bilinear')"]
        )
    if class_name == "Activation" and settings["activation"] != "relu":
        raise ConfigRefused([f"{name}: activation {_shown(settings['activation'])} (expected 'relu')"])
    nodes = entry["inbound_nodes"]
    if len(nodes) > 1:
        raise ConfigRefused([f"{name}: used more than once"])
    inputs = tuple(edge[0] for edge in nodes[0]) if nodes else ()
    if not all(isinstance(source, str) and len(source) <= MAX_NAME for source in inputs):
        raise TypeError(f"{name}: its inputs are not names")
    return FoundLayer(name=name, kind=kind, inputs=inputs, settings=settings)


def _topology(found: Mapping[str, FoundLayer]) -> Topology:
    users: dict[str, list[FoundLayer]] = {}
    for layer in found.values():
        for source in layer.inputs:
            users.setdefault(source, []).append(layer)
    blocks = _block_sizes(found)
    matches = (re.fullmatch(r"up([0-9]{1,3})_convA", name) for name in found)
    up_names = [f"up{match[1]}" for match in sorted(filter(None, matches), key=lambda match: int(match[1]))]
    if not blocks or not up_names:
        raise ValueError("no dense blocks (conv2_block1_concat, ...) or no up blocks (up1_convA, ...)")
    transitions = [f"pool{number}_conv" for number in range(2, 1 + len(blocks))]
    return Topology(
        stem=_filters(found, "conv1/conv"),
        blocks=blocks,
        bottleneck=_filters(found, "conv2_block1_1_conv"),
        growth=_filters(found, "conv2_block1_2_conv"),
        transitions=tuple(_filters(found, name) for name in transitions),
        final_relu="relu" in found,
        epsilon=_epsilon(found),
        decoder_width=_filters(found, "conv2"),
        ups=tuple(_up_block(name, found, users) for name in up_names),
    )


def _block_sizes(found: Mapping[str, FoundLayer]) -> tuple[int, ...]:
    numbers: dict[int, set[int]] = {}
    for name in found:
        match = re.fullmatch(r"conv([0-9]{1,3})_block([0-9]{1,4})_concat", name)
        if match:
            numbers.setdefault(int(match[1]), set()).add(int(match[2]))
    sizes = {block: len(inside) for block, inside in numbers.items()}
    for block, inside in numbers.items():
        # Two names are enough to claim ten million layers.
        if inside != set(range(1, sizes[block] + 1)):
            raise ValueError(f"block {block} holds dense layers up to {max(inside)}, but not all of them")
    if sorted(sizes) != list(range(2, 2 + len(sizes))):
        raise ValueError(f"dense blocks {_shown(sorted(sizes))} (expected 2, 3, ...)")
    return tuple(sizes[block] for block in sorted(sizes))


def _up_block(name: str, found: Mapping[str, FoundLayer], users: Mapping[str, list[FoundLayer]]) -> UpBlock:
    joined = _layer(found, _layer(found, f"{name}_convA").inputs[0])
    if len(joined.inputs) != 2:
        raise ValueError(f"{name}_convA: does not follow a concatenation of two layers")

    def slope_after(layer: str) -> float | None:
        following = users.get(layer, [])
        if len(following) == 1 and following[0].kind is LayerKind.LEAKY_RELU:
            return _slope(following[0].settings)
        return None

    return UpBlock(
        name=name,
        filters=_filters(found, f"{name}_convA"),
        skip=joined.inputs[1],
        slope_a=slope_after(f"{name}_convA"),
        slope_b=slope_after(f"{name}_convB"),
    )


def _layer(found: Mapping[str, FoundLayer], name: str) -> FoundLayer:
    try:
        return found[name]
    except KeyError:
        raise ValueError(f"layer {name} is missing") from None


def _filters(found: Mapping[str, FoundLayer], name: str) -> int:
    filters = _layer(found, name).settings["filters"]
    if type(filters) is not int or not 1 <= filters <= 65_536:
        raise ValueError(f"{name}: {_shown(filters)} filters")
    return filters


def _epsilon(found: Mapping[str, FoundLayer]) -> float:
    epsilon = float(_layer(found, "bn").settings["epsilon"])
    if not 0 < epsilon <= MAX_EPSILON:
        raise ValueError(f"batch norms' epsilon is {epsilon:g} (expected 0 to {MAX_EPSILON})")
    return epsilon


def _shown(value: object) -> str:
    """A value as one short text, whatever it is."""
    try:
        return reprlib.repr(value)
    except (ValueError, RecursionError):  # thousands of digits
        return "an absurd value"


def _slope(settings: Mapping[str, Any]) -> float:
    slope = float(settings["alpha"] if "alpha" in settings else settings["negative_slope"])
    if not 0 <= slope <= 1:
        raise ValueError(f"LeakyReLU slope {slope} (expected 0 to 1)")
    return slope


def _differences(topology: Topology, found: Mapping[str, FoundLayer]) -> list[str]:
    """Compare every layer; anonymous ones are matched by kind and inputs."""
    problems: list[str] = []
    name_in_file: dict[str, str] = {}
    taken: set[str] = set()
    by_wiring: dict[tuple[LayerKind, tuple[str, ...]], str] = {
        (layer.kind, layer.inputs): layer.name for layer in found.values()
    }
    for layer in layers_of(topology):
        inputs = tuple(name_in_file.get(source, source) for source in layer.inputs)
        name = by_wiring.get((layer.kind, inputs), "") if layer.is_anonymous else layer.name
        name_in_file[layer.name] = name or layer.name
        if name not in found:
            what = f"{layer.kind} after {', '.join(inputs)}" if layer.is_anonymous else f"layer {layer.name}"
            problems.append(f"{what} is missing")
            continue
        taken.add(name)
        problems += _layer_differences(layer, found[name], inputs, topology.epsilon)
    problems += [f"{name}: unexpected layer ({found[name].kind})" for name in found if name not in taken]
    return problems


def _layer_differences(layer: Layer, found: FoundLayer, inputs: tuple[str, ...], epsilon: float) -> list[str]:
    if found.kind is not layer.kind:
        return [f"{found.name}: is {found.kind} (expected {layer.kind})"]
    problems = []
    if found.inputs != inputs:
        problems.append(f"{found.name}: takes {', '.join(found.inputs)} (expected {', '.join(inputs)})")
    for setting, accepted in _accepted_settings(layer, epsilon).items():
        # A setting that a Keras version does not write is at its default, which is the first one accepted.
        value = _plain(found.settings.get(setting, accepted[0]))
        if value not in accepted:
            problems.append(f"{found.name}: {setting} is {_shown(value)} (expected {accepted[0]!r})")
    return problems


def _accepted_settings(layer: Layer, epsilon: float) -> dict[str, tuple[object, ...]]:
    """The values each setting may have, the default first; a setting that is not listed does not matter."""
    size, stride = (layer.size, layer.size), (layer.stride, layer.stride)
    accepted: dict[str, tuple[object, ...]] = {}
    match layer.kind:
        case LayerKind.CONVOLUTION:
            # A 1x1 kernel pads nothing either way.
            padding = ("valid", "same") if layer.size == 1 else ("valid" if layer.stride > 1 else "same",)
            accepted = {
                "filters": (layer.filters,),
                "kernel_size": (size,),
                "strides": (stride,),
                "padding": padding,
                "dilation_rate": ((1, 1),),
                "groups": (1,),
                "activation": ("linear", None),
                "use_bias": (layer.has_bias,),
            }
        case LayerKind.BATCH_NORM:
            accepted = {"axis": (3, -1, (3,)), "epsilon": (epsilon,), "scale": (True,), "center": (True,)}
        case LayerKind.ZERO_PADDING:
            accepted = {"padding": ((size, size),)}
        case LayerKind.MAX_POOLING | LayerKind.AVERAGE_POOLING:
            padding = ("valid", "same") if layer.size == layer.stride else ("valid",)
            accepted = {"pool_size": (size,), "strides": (stride,), "padding": padding}
        case LayerKind.UPSAMPLING:
            accepted = {"size": (size,), "interpolation": ("bilinear",)}
        case LayerKind.CONCATENATE:
            accepted = {"axis": (3, -1)}
        case LayerKind.RELU:
            accepted = {"max_value": (None,), "negative_slope": (0, 0.0), "threshold": (0, 0.0)}
        case LayerKind.INPUT | LayerKind.LEAKY_RELU:
            pass
    return accepted | {"data_format": ("channels_last", None)}


def _plain(value: object, depth: int = 2) -> object:
    """Lists as tuples, as deep as any setting is."""
    if isinstance(value, list) and depth:
        return tuple(_plain(item, depth - 1) for item in value)
    return value
