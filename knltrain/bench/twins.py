"""Is the result right? An op beside its twin in NumPy, in float64, on the step's own numbers."""

import inspect

import numpy as np

from knltrain.kernels import FP16, FP32, batchnorm_plan, number_of, reference

from ..layers import Op

ROWS = "moments", "sums", "table", "factors"  # of batch norm: (…, rows, columns)
TOLERANCE = 2e-5  # of the largest element: float32 sums of up to some ten thousand products
SHORT = (np.uint16, np.int16)  # what numbers of 16 bits lie in


def snapshot(op: Op) -> dict:
    """The arguments as they are before the op runs: floats in float64, so that a twin can work with them."""
    with np.errstate(invalid="ignore"):  # memory that the kernel will fill may hold anything, signalling NaNs too
        copies = {
            name: _wide(array) if array.dtype in (np.float32, *SHORT) else array.copy()
            for name, array in op.arguments.items()
            if isinstance(array, np.ndarray) and name not in ("workspace", "packed", "packed_t")
        }
    bound = inspect.signature(op.kernel).bind(**op.arguments)
    bound.apply_defaults()
    return bound.arguments | copies


def _wide(array) -> np.ndarray:
    """What an array of a Number holds, in float64."""
    return number_of(array.dtype).widen(array).astype(np.float64)


def _geometry(a):
    shape = a["plan"].shape
    return shape.stride, shape.pad, shape.groups


def _weights(op, method):
    """As the method multiplies them: rounded where it packs pairs."""
    return method.panels.widen(method.panels.narrow(op.uses[0].w)).astype(np.float64)


def _conv2d_forward(a, op):
    y = reference.conv2d_forward(a["x"], _weights(op, a["plan"].forward), a["bias"], *_geometry(a))
    return {"y": np.maximum(y, 0) if a["relu"] else y}


def _conv2d_backward_input(a, op):
    w = _weights(op, a["plan"].backward_input)
    dx = reference.conv2d_backward_input(a["dy"], w, a["plan"].x_shape, *_geometry(a))
    dx = dx + a["dx"] if a["accumulate"] else dx
    return {"dx": dx if a["x"] is None else reference.batchnorm_passed(dx, a["x"], a["y"], a["table"])}


def _conv2d_backward_weight(a, op):
    return {"dw": reference.conv2d_backward_weight(a["x"], a["dy"], a["plan"].w_shape[:2], *_geometry(a))}


def _batchnorm_moments(a, op):
    return {"moments": [(rows.mean(0), ((rows - rows.mean(0)) ** 2).sum(0)) for rows in _chunks(a["x"])]}


def _chunks(x):
    """The rows of each chunk of batch norm's x."""
    plan = batchnorm_plan(len(x), x.shape[1])
    return np.split(x.reshape(-1, plan.table_shape[1]), np.cumsum(plan.moments_counts)[:-1])


def _batchnorm_statistics(a, op):
    channels = a["var"].size
    mean, m2 = a["moments"].reshape(len(a["moments"]), 2, -1, channels).transpose(1, 0, 2, 3)
    share = (a["counts"] / a["counts"].sum() / mean.shape[1])[:, None, None]  # of the pixels
    total = (share * mean).sum((0, 1))
    var = m2.sum((0, 1)) / a["counts"].sum() / mean.shape[1] + (share * (mean - total) ** 2).sum((0, 1))
    gamma, beta = (1.0, np.zeros(channels)) if a["gamma"] is None else (a["gamma"], a["beta"])
    rows = total, gamma / np.sqrt(var + a["eps"]), beta
    return {"mean": total, "var": var, "table": _folded(rows, a["table"])}


def _folded(rows, like):
    """Rows of C columns over and over, as many as `like` has."""
    return np.tile(rows, like.shape[1] // len(rows[0]))


def _batchnorm_normalize(a, op):
    residual, of_residual = a["residual"], a["residual_table"]
    if of_residual is not None:
        residual = reference.batchnorm_normalize(residual, of_residual)
    return {"y": reference.batchnorm_normalize(a["x"], a["table"], residual, a["relu"])}


def _batchnorm_sums(a, op):
    g = reference.batchnorm_passed(a["dy"], a["x"], a["y"], a["table"]) if a["relu"] else a["dy"]
    centred = a["x"] - a["table"][0, : a["x"].shape[1]]
    sums = [(rows.sum(0), more.sum(0)) for rows, more in zip(_chunks(g), _chunks(g * centred), strict=True)]
    return {"sums": sums, "dresidual": g}


def _batchnorm_factors(a, op):
    channels, pixels, inverse = a["var"].size, a["pixels"], 1 / np.sqrt(a["var"] + a["eps"])
    of_g, of_gx = a["sums"].reshape(len(a["sums"]), 2, -1, channels).sum((0, 2))
    scale = inverse if a["gamma"] is None else a["gamma"] * inverse
    rows = scale, -scale * inverse**2 * of_gx / pixels, -scale * of_g / pixels
    return {"dgamma": of_gx * inverse, "dbeta": of_g, "factors": _folded(rows, a["factors"])}


def _batchnorm_backward(a, op):
    columns, (of_g, of_x, rest) = a["x"].shape[1], a["factors"][:, : a["x"].shape[1]]
    g = reference.batchnorm_passed(a["dy"], a["x"], None, a["table"]) if a["relu"] else a["dy"]
    return {"dx": g * of_g + (a["x"] - a["table"][0, :columns]) * of_x + rest}


def _maxpool_forward(a, op):
    x = a["x"]
    if a["table"] is not None:  # in the kernel's own float32: which of two near ones is larger is a matter of rounding
        x = np.float32(reference.batchnorm_normalize(x, a["table"], None, a["relu"])).astype(np.float64)
    y, argmax = reference.maxpool_forward(x, *(a[name] for name in ("size", "stride", "pad", "rectified")))
    return {"y": y, "argmax": argmax}


def _softmax(a, op):
    loss, dlogits = reference.softmax_cross_entropy(a["logits"], a["labels"], a["smoothing"], a["scale"])
    return {"loss": loss, "dlogits": dlogits}


def _momentum_update(a, op):
    d = a["gradient_scale"] * (a["g"] + a["weight_decay"] * a["w"])
    v = a["momentum"] * a["v"] + d
    return {"v": v, "w": a["w"] - a["step_scale"] * (a["momentum"] * v + d if a["nesterov"] else v)}


def _dropout(output, source):
    """The mask is the same forward and backward."""
    return lambda a, op: {output: reference.dropout_forward(a[source], a["rate"], a["keys"] ^ a["purpose"])}


def _plain(kernel, output, *names, shape_of=None):
    """The twin of the same name, from arguments in its order (and the shape of one that it cannot know)."""

    def twin(a, op):
        arguments = [a[name].shape if name == shape_of else a[name] for name in names]
        return {output: getattr(reference, kernel)(*arguments)}

    return twin


_TWINS = {
    "conv2d_forward": _conv2d_forward,
    "conv2d_backward_input": _conv2d_backward_input,
    "conv2d_backward_weight": _conv2d_backward_weight,
    "batchnorm_moments": _batchnorm_moments,
    "batchnorm_statistics": _batchnorm_statistics,
    "batchnorm_normalize": _batchnorm_normalize,
    "batchnorm_sums": _batchnorm_sums,
    "batchnorm_factors": _batchnorm_factors,
    "batchnorm_backward": _batchnorm_backward,
    "maxpool_forward": _maxpool_forward,
    "softmax_cross_entropy": _softmax,
    "momentum_update": _momentum_update,
    "lrn_forward": _plain("lrn_forward", "y", "x", "size", "alpha", "beta", "k"),
    "lrn_backward": _plain("lrn_backward", "dx", "x", "dy", "size", "alpha", "beta", "k", "rectified"),
    "maxpool_backward": _plain("maxpool_backward", "dx", "dy", "argmax", "dx", "size", "stride", "pad", shape_of="dx"),
    "avgpool_forward": _plain("avgpool_forward", "y", "x", "size", "stride", "pad"),
    "avgpool_backward": _plain("avgpool_backward", "dx", "dy", "dx", "size", "stride", "pad", shape_of="dx"),
    "global_avgpool_forward": _plain("global_avgpool_forward", "y", "x"),
    "global_avgpool_backward": _plain("global_avgpool_backward", "dx", "dy", "dx", shape_of="dx"),
    "relu_forward": _plain("relu_forward", "y", "x"),
    "relu_backward": _plain("relu_backward", "dx", "y", "dy"),
    "add_forward": _plain("add_forward", "y", "a", "b", "relu"),
    "dropout_forward": _dropout("y", "x"),
    "dropout_backward": _dropout("dx", "dy"),
    "bias_gradient": _plain("bias_gradient", "db", "dy"),
    "rank_of_label": _plain("rank_of_label", "ranks", "logits", "labels"),
    # checked with the convolutions that read what they write: nothing of their own
    "conv2d_pack": lambda a, op: {},
    "conv2d_pack_transposed": lambda a, op: {},
}


def _random_sums(before: dict, name: str) -> dict:
    """Outputs that are sums over pixels and may cancel (to nothing, before a batch norm) → how large such sums are."""

    def size(x):
        return np.sqrt((x.reshape(-1, x.shape[-1]) ** 2).sum(axis=0)).max()

    if name == "batchnorm_moments":
        return {"moments 0": size(before["x"]) / np.sqrt(len(before["x"]))}
    if name == "batchnorm_sums":
        centred = before["x"] - before["table"][0, : before["x"].shape[1]]
        return {"sums 0": size(before["dy"]), "sums 1": size(before["dy"] * centred)}
    return {"db": size(before["dy"])} if "db" in before else {}


def _results(name, found, expected):
    """Output by output; rows of different meaning each by itself: (their name, found, expected)."""
    if name not in ROWS:
        return [(name, found, np.reshape(expected, found.shape))]
    pairs = zip(np.moveaxis(found, -2, 0), np.moveaxis(np.asarray(expected), -2, 0), strict=True)
    return [(f"{name} {row}", *pair) for row, pair in enumerate(pairs)]


def error(op: Op, before: dict) -> float:
    """Largest difference from the twin as a share of its largest element, over all outputs of an op that has just run.

    before: `snapshot(op)` from before it ran. Raises RuntimeError where it is more than TOLERANCE, and what one or two
    roundings to 16 bits cost: a defect; ValueError for a kernel without a twin in the table above.
    """
    if op.name not in _TWINS:
        raise ValueError(f"kernel {op.name} has no entry in knltrain/bench/twins.py; expected its twin")
    worst, sums, twins = 0.0, _random_sums(before, op.name), _TWINS[op.name](before, op)
    given = [(name, op.arguments.get(name), expected) for name, expected in twins.items()]
    for name, found, expected in (one for each in given if each[1] is not None for one in _results(*each)):
        largest = max(np.abs(expected).max(), sums.get(name, 0), np.finfo(np.float32).tiny)
        number = number_of(found.dtype) if found.dtype in SHORT else FP32
        found = _wide(found) if found.dtype in SHORT else found.astype(np.float64)
        limit = TOLERANCE + (2 * number.round_off if number is not FP32 else 0)
        limit += 2.0**-24 / largest if number is FP16 else 0  # below 6e-5 steps are as wide as this
        share = float(np.abs(found - expected).max() / largest)
        if not share <= limit:  # also where it is a NaN
            raise RuntimeError(
                f"kernel {op.name} of layer {op.owner.name}: {name} differs from its twin by {share:.1e} of the "
                f"largest element, expected at most {limit:.0e}"
            )
        worst = max(worst, share)
    return worst
