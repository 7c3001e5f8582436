"""Small ONNX files for tests, written field by field; what OpenCV reads of them is real."""

from __future__ import annotations

from collections.abc import Sequence

_FLOAT = 1
_EXTERNAL = 1


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes | str) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def _value(name: str, shape: Sequence[int]) -> bytes:
    dimensions = b"".join(_bytes(1, _number(1, size)) for size in shape)
    return _bytes(1, name) + _bytes(2, _bytes(1, _number(1, _FLOAT) + _bytes(2, dimensions)))


def _node(kind: str, inputs: Sequence[str], output: str) -> bytes:
    return b"".join(_bytes(1, name) for name in inputs) + _bytes(2, output) + _bytes(4, kind)


def _model(nodes: Sequence[bytes], outputs: Sequence[str], *, constants: Sequence[bytes] = ()) -> bytes:
    shape = (1, 3, 320, 320)
    graph = b"".join(_bytes(1, node) for node in nodes) + _bytes(2, "graph")
    graph += b"".join(_bytes(5, constant) for constant in constants) + _bytes(11, _value("input", shape))
    graph += b"".join(_bytes(12, _value(name, shape)) for name in outputs)
    return _number(1, 7) + _bytes(7, graph) + _bytes(8, _bytes(1, "") + _number(2, 11))


def another_network(outputs: int = 1) -> bytes:
    """A sound network that is no U²-Net: so many times the sigmoid of its input."""
    names = [f"out{number}" for number in range(outputs)]
    return _model([_node("Sigmoid", ["input"], name) for name in names], names)


def network_with_external_data(location: str) -> bytes:
    """A network one of whose tensors lies in another file, 3 floats."""
    entry = _bytes(1, "location") + _bytes(2, location)
    tensor = _number(1, 1) + _number(1, 3) + _number(1, 1) + _number(1, 1) + _number(2, _FLOAT)
    tensor += _bytes(8, "weight") + _bytes(13, entry) + _number(14, _EXTERNAL)
    return _model([_node("Add", ["input", "weight"], "out")], ["out"], constants=[tensor])
