"""The inference network as an ONNX graph: one rule for each kernel that a layer may name in its program.

Images come in as (N, 3, H, W), N of any size, logits go out as (N, classes). Weights have the names and layouts of
`names`; running statistics are inside the batch norms, and dropout is gone.
"""

import math
from pathlib import Path

import numpy as np

from .. import __version__
from ..arena import Parameters
from ..claims.whole import write_whole
from ..layers import Op, Program, Sequential, Tensor
from ..layers.program import PACKING
from .files import extra
from .names import Entry, give

OPSET, IR_VERSION = 17, 8  # of 2022: old enough for runtimes in use, new enough for all we need


def write_onnx(
    path: Path, layers: Sequential, input_shape, table: list[Entry], arrays: dict[str, np.ndarray], about: dict
) -> None:
    """Write a network, its weights `arrays` (as `models.state` names them) and texts about it as one ONNX file.

    Raises ValueError for a layer of a kind that has no rule here, ImportError, OSError.
    """
    onnx = extra("onnx")
    images = Tensor("images", (1, *input_shape))
    program = Program(images, Parameters(), False, np.zeros(1, np.uint64))
    logits = layers.forward(program, images)
    graph = _Graph(onnx.helper, {entry.ours.partition("/")[2]: entry.theirs for entry in table})
    for op in program.forward:
        if op.kind != PACKING:  # of weights, for our own kernels
            graph.add(op)
    weights = give(table, arrays) | graph.constants
    height, width, channels = input_shape
    inputs, outputs = ("N", channels, height, width), ("N", math.prod(logits.shape))
    graph.node("Flatten", [logits.root.name], "logits", axis=1)
    kind = onnx.TensorProto.FLOAT
    made = onnx.helper.make_graph(
        graph.nodes,
        layers.name,
        [onnx.helper.make_tensor_value_info("images", kind, inputs)],
        [onnx.helper.make_tensor_value_info("logits", kind, outputs)],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opset = [onnx.helper.make_opsetid("", OPSET)]
    whole = onnx.helper.make_model(made, opset_imports=opset, ir_version=IR_VERSION)
    whole.producer_name, whole.producer_version = "knltrain", __version__
    onnx.helper.set_model_props(whole, about)
    onnx.checker.check_model(whole, full_check=True)
    write_whole(path, lambda temporary: onnx.save_model(whole, str(temporary)))


class _Graph:
    """Nodes, one or two for each op; a tensor is called as the program calls it, a weight as in other files."""

    def __init__(self, helper, names):
        self.helper, self.names = helper, names
        self.nodes, self.constants = [], {}

    def node(self, kind: str, inputs: list[str], output: str, **attributes) -> str:
        self.nodes.append(self.helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def add(self, op: Op) -> None:
        if op.name not in RULES:
            raise ValueError(f"layer {op.owner.name!r} runs {op.name}, which has no form in ONNX")
        RULES[op.name](self, op, op.reads["x"].root.name, op.writes["y"].root.name)

    def weights(self, *fields) -> list[str]:
        return [self.names[field.name] for field in fields if field]


def _convolution(graph, op, x, y):
    layer = op.owner
    weights = graph.weights(*op.uses)
    if hasattr(layer, "image_shape"):  # fully connected
        graph.node("Gemm", [graph.node("Flatten", [x], f"{layer.name}.x", axis=1), *weights], y, transB=1)
        return
    size, stride, pad = ([n] * 2 for n in (layer.size, layer.stride, layer.pad))
    graph.node("Conv", [x, *weights], y, kernel_shape=size, strides=stride, pads=pad * 2, group=layer.groups)


def _batch_norm(graph, op, x, y):
    layer, learned = op.owner, graph.weights(*op.uses)
    if not learned:
        learned = [f"{layer.name}.ones", f"{layer.name}.zeros"]
        for name, value in zip(learned, (1, 0), strict=True):
            graph.constants[name] = np.full(layer.mean.shape, value, np.float32)
    residual = [op.reads["residual"].root.name] if "residual" in op.reads else []
    steps = [("Add", residual)] * len(residual) + [("Relu", [])] * layer.relu
    names = [f"{y}.normal", f"{y}.sum"][: len(steps)] + [y]
    inputs = [x, *learned, *graph.weights(layer.mean, layer.var)]
    last = graph.node("BatchNormalization", inputs, names[0], epsilon=layer.eps)
    for (kind, more), name in zip(steps, names[1:], strict=True):
        last = graph.node(kind, [last, *more], name)


def _lrn(graph, op, x, y):
    o = op.others
    graph.node("LRN", [x], y, size=o["size"], alpha=o["alpha"], beta=o["beta"], bias=o["k"])


def _pool(kind, **more):
    def rule(graph, op, x, y):
        size, stride, pad = ([op.others[name]] * 2 for name in ("size", "stride", "pad"))
        graph.node(kind, [x], y, kernel_shape=size, strides=stride, pads=pad * 2, **more)

    return rule


RULES = {
    "conv2d_forward": _convolution,
    "batchnorm_inference": _batch_norm,
    "lrn_forward": _lrn,
    "maxpool_forward": _pool("MaxPool"),
    "avgpool_forward": _pool("AveragePool", count_include_pad=1),
    "global_avgpool_forward": lambda graph, op, x, y: graph.node("GlobalAveragePool", [x], y),
    "relu_forward": lambda graph, op, x, y: graph.node("Relu", [x], y),
}
