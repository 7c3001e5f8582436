"""The shape of a DenseDepth network: its layers, their wiring and the tensors each must have."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

TensorKey = tuple[str, str]
"""(layer, last part of the weight's name without `:0`), as in `("conv1/conv", "kernel")`."""
BATCH_NORM_TENSORS = ("gamma", "beta", "moving_mean", "moving_variance")
RELEASED_BLOCKS = (6, 12, 32, 32)  # DenseNet-169
RELEASED_SKIPS = ("pool3_pool", "pool2_pool", "pool1", "conv1/relu")
RELEASED_EPSILON = 1.001e-5  # keras_applications' DenseNet
RELEASED_SLOPE = 0.2


class LayerKind(StrEnum):
    """What a layer does; the value names it in messages."""

    INPUT = "input"
    CONVOLUTION = "convolution"
    BATCH_NORM = "batch normalization"
    RELU = "ReLU"
    LEAKY_RELU = "LeakyReLU"
    ZERO_PADDING = "zero padding"
    MAX_POOLING = "max pooling"
    AVERAGE_POOLING = "average pooling"
    CONCATENATE = "concatenation"
    UPSAMPLING = "bilinear upsampling"


@dataclass(frozen=True, slots=True, kw_only=True)
class UpBlock:
    """One step of the decoder: upsample, concatenate `skip`, convA, convB. A slope of None: no activation."""

    name: str
    filters: int
    skip: str
    slope_a: float | None
    slope_b: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """All that differs between two DenseDepth networks; channel counts are those of the file."""

    stem: int
    blocks: tuple[int, ...]
    bottleneck: int
    growth: int
    transitions: tuple[int, ...]
    final_relu: bool
    epsilon: float
    decoder_width: int
    ups: tuple[UpBlock, ...]

    @property
    def activations(self) -> int:
        """LeakyReLUs per up block: 1 in the released weights, 2 in today's published code."""
        return sum(slope is not None for slope in (self.ups[0].slope_a, self.ups[0].slope_b))

    @property
    def stride(self) -> int:
        """What both sides of an input must be a multiple of: the encoder halves them this often."""
        return 1 << (len(self.blocks) + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer as it must be in the file; `is_anonymous` ones (Keras numbers them) are found by wiring."""

    name: str
    kind: LayerKind
    inputs: tuple[str, ...]
    filters: int = 0
    size: int = 1
    stride: int = 1
    has_bias: bool = False
    slope: float | None = None
    is_anonymous: bool = False


def released_topology(decoder_width: int) -> Topology:
    """DenseNet-169 with the decoder of the released weights, whose width there is 1664."""
    ups = tuple(
        UpBlock(
            name=f"up{number}",
            filters=max(1, decoder_width // 2**number),
            skip=skip,
            slope_a=None,
            slope_b=RELEASED_SLOPE,
        )
        for number, skip in enumerate(RELEASED_SKIPS, start=1)
    )
    return Topology(
        stem=64,
        blocks=RELEASED_BLOCKS,
        bottleneck=128,
        growth=32,
        transitions=(128, 256, 640),
        final_relu=True,
        epsilon=RELEASED_EPSILON,
        decoder_width=decoder_width,
        ups=ups,
    )


def layers_of(topology: Topology) -> list[Layer]:
    """Every layer, inputs before their users. Names are DenseNet's and DenseDepth's own."""
    return [*_stem(topology), *_encoder(topology), *_decoder(topology)]


def _stem(topology: Topology) -> list[Layer]:
    return [
        Layer(name="input", kind=LayerKind.INPUT, inputs=(), is_anonymous=True),
        Layer(name="pad1", kind=LayerKind.ZERO_PADDING, inputs=("input",), size=3, is_anonymous=True),
        Layer(
            name="conv1/conv",
            kind=LayerKind.CONVOLUTION,
            inputs=("pad1",),
            filters=topology.stem,
            size=7,
            stride=2,
        ),
        *_batch_norm_and_relu("conv1/bn", "conv1/relu", "conv1/conv"),
        Layer(name="pad2", kind=LayerKind.ZERO_PADDING, inputs=("conv1/relu",), size=1, is_anonymous=True),
        Layer(name="pool1", kind=LayerKind.MAX_POOLING, inputs=("pad2",), size=3, stride=2),
    ]


def _encoder(topology: Topology) -> list[Layer]:
    layers: list[Layer] = []
    features = "pool1"
    for block, count in enumerate(topology.blocks, start=2):
        for number in range(1, count + 1):
            dense = f"conv{block}_block{number}"
            layers += _batch_norm_and_relu(f"{dense}_0_bn", f"{dense}_0_relu", features)
            layers.append(_convolution(f"{dense}_1_conv", f"{dense}_0_relu", topology.bottleneck))
            layers += _batch_norm_and_relu(f"{dense}_1_bn", f"{dense}_1_relu", f"{dense}_1_conv")
            layers.append(_convolution(f"{dense}_2_conv", f"{dense}_1_relu", topology.growth, size=3))
            layers.append(
                Layer(
                    name=f"{dense}_concat", kind=LayerKind.CONCATENATE, inputs=(features, f"{dense}_2_conv")
                )
            )
            features = f"{dense}_concat"
        if block - 2 < len(topology.transitions):
            pool = f"pool{block}"
            layers += _batch_norm_and_relu(f"{pool}_bn", f"{pool}_relu", features)
            layers.append(_convolution(f"{pool}_conv", f"{pool}_relu", topology.transitions[block - 2]))
            layers.append(
                Layer(
                    name=f"{pool}_pool",
                    kind=LayerKind.AVERAGE_POOLING,
                    inputs=(f"{pool}_conv",),
                    size=2,
                    stride=2,
                )
            )
            features = f"{pool}_pool"
    layers.append(Layer(name="bn", kind=LayerKind.BATCH_NORM, inputs=(features,)))
    if topology.final_relu:
        layers.append(Layer(name="relu", kind=LayerKind.RELU, inputs=("bn",)))
    return layers


def _decoder(topology: Topology) -> list[Layer]:
    encoded = "relu" if topology.final_relu else "bn"
    layers = [_convolution("conv2", encoded, topology.decoder_width, has_bias=True)]
    features = "conv2"
    for up in topology.ups:
        upsampled, joined = f"{up.name}_upsampling2d", f"{up.name}_concat"
        layers += [
            Layer(name=upsampled, kind=LayerKind.UPSAMPLING, inputs=(features,), size=2, is_anonymous=True),
            Layer(name=joined, kind=LayerKind.CONCATENATE, inputs=(upsampled, up.skip), is_anonymous=True),
        ]
        features = joined
        for part, slope in (("A", up.slope_a), ("B", up.slope_b)):
            name = f"{up.name}_conv{part}"
            layers.append(_convolution(name, features, up.filters, size=3, has_bias=True))
            features = name
            if slope is not None:
                features = f"{name}_activation"
                layers.append(
                    Layer(
                        name=features,
                        kind=LayerKind.LEAKY_RELU,
                        inputs=(name,),
                        slope=slope,
                        is_anonymous=True,
                    )
                )
    layers.append(_convolution("conv3", features, 1, size=3, has_bias=True))
    return layers


def _convolution(name: str, source: str, filters: int, *, size: int = 1, has_bias: bool = False) -> Layer:
    return Layer(
        name=name,
        kind=LayerKind.CONVOLUTION,
        inputs=(source,),
        filters=filters,
        size=size,
        has_bias=has_bias,
    )


def _batch_norm_and_relu(batch_norm: str, relu: str, source: str) -> list[Layer]:
    return [
        Layer(name=batch_norm, kind=LayerKind.BATCH_NORM, inputs=(source,)),
        Layer(name=relu, kind=LayerKind.RELU, inputs=(batch_norm,)),
    ]


def channels_of(topology: Topology) -> dict[str, int]:
    """Channels that each layer puts out."""
    channels: dict[str, int] = {}
    for layer in layers_of(topology):
        match layer.kind:
            case LayerKind.INPUT:
                channels[layer.name] = 3
            case LayerKind.CONVOLUTION:
                channels[layer.name] = layer.filters
            case _:
                channels[layer.name] = sum(channels[source] for source in layer.inputs)
    return channels


def tensor_shapes(topology: Topology) -> dict[TensorKey, tuple[int, ...]]:
    """Every tensor the network needs, with its shape; kernels are (height, width, in, out)."""
    channels = channels_of(topology)
    shapes: dict[TensorKey, tuple[int, ...]] = {}
    for layer in layers_of(topology):
        if layer.kind is LayerKind.CONVOLUTION:
            incoming = channels[layer.inputs[0]]
            shapes[layer.name, "kernel"] = (layer.size, layer.size, incoming, layer.filters)
            if layer.has_bias:
                shapes[layer.name, "bias"] = (layer.filters,)
        elif layer.kind is LayerKind.BATCH_NORM:
            for part in BATCH_NORM_TENSORS:
                shapes[layer.name, part] = (channels[layer.name],)
    return shapes


def scale_of_skips(topology: Topology) -> dict[str, int]:
    """The layers that a decoder may take up again, with how often each was halved."""
    scales = {"conv1/relu": 1, "pool1": 2}
    scales |= {f"pool{number}_pool": number + 1 for number in range(2, 2 + len(topology.transitions))}
    return scales


def wiring_problems(topology: Topology) -> list[str]:
    """Why these counts do not make a network whose output is half the input's size; empty if they do."""
    if len(topology.ups) != len(topology.blocks):
        return [f"{len(topology.ups)} up blocks for {len(topology.blocks)} dense blocks"]
    if len(topology.transitions) != len(topology.blocks) - 1:
        return [f"{len(topology.transitions)} transitions between {len(topology.blocks)} blocks"]
    problems = []
    scales = scale_of_skips(topology)
    for index, up in enumerate(topology.ups):
        scale = len(topology.blocks) - index
        if scales.get(up.skip) != scale:
            wanted = next(name for name, found in scales.items() if found == scale)
            problems.append(f"{up.name}: concatenates {up.skip} (expected {wanted})")
    if len({(up.slope_a is None, up.slope_b is None) for up in topology.ups}) > 1:
        problems.append("the up blocks differ in their activations")
    return problems
