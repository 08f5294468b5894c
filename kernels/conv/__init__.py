"""Convolution, forward and backward; a fully connected layer is the 1 x 1 case on 1 x 1 images.

Layouts: x (N, H, W, C), y (N, P, Q, K), w (R, S, C/groups, K), all C-contiguous. The functions here check their arrays
and hand them to the method that the plan has for the direction: `rows` (addresses of rows), `winograd`, `tiles` (AMX);
for dw `outer`, `winograd_weight`, `tiles_weight`. All are loop nests around the micro-kernel: a task owns a block of
pixels and a range of channels of y or dx; for dw ranges of channels, and a share of the pixels. Flops below are those
of the definition; `plan.arithmetic` has what is really made.
"""

import numpy as np

from .._shapes import NOTHING, check_array, check_columns
from ..affine import COEFFICIENTS
from ..number import FP32
from .method import NO_MOMENTS
from .plan import conv2d_plan
from .task import Behind


def conv2d_forward(plan, x, packed, bias, y, workspace, moments=None, relu=False):
    """y = convolution of x with packed weights, plus bias (K,) unless it is None, then max(y, 0) if relu.

    x, y: of the plan's shapes and Numbers; y is overwritten. packed: by `conv2d_pack`, or w itself where plan.unpacked.
    workspace: (plan.workspace_size,) float32, undefined after. moments: None, or float32 of plan.moments_shape, to be
    overwritten: mean and M2 of every channel over each block of pixels, with which a batch norm can begin: those of the
    sums as float32, before they are rounded to what y holds.
    Cost: 2*N*P*Q*K*R*S*C/groups flops; reads x, packed, writes y. Twin: reference.conv2d_forward.
    """
    check_array("conv2d: x", x, plan.x_shape, plan.shape.number.dtype)
    check_array("conv2d: y", y, plan.y_shape, plan.shape.y_number.dtype)
    _check_packed(plan, plan.forward, packed)
    check_array("conv2d: workspace", workspace, (plan.workspace_size,))
    if bias is not None:
        check_array("conv2d: bias", bias, (plan.w_shape[3],))
    if moments is not None:
        check_array("conv2d: moments", moments, plan.moments_shape)
    bias, moments = NOTHING if bias is None else bias, NO_MOMENTS if moments is None else moments
    plan.forward.run(x, packed, y, bias, workspace, moments, relu=relu)


def conv2d_backward_input(plan, dy, packed_t, dx, accumulate=False, x=None, y=None, table=None, sums=None):
    """dx[n,h,w,c] = sum over r,s,k of dy[n,(h+pad-r)/stride,(w+pad-s)/stride,k] * w[r,s,c,k], where these are whole.

    packed_t: by `conv2d_pack_transposed`, or w itself where plan.unpacked. dx is overwritten, with `accumulate` added
    to, thus read.
    Cost: 2*N*P*Q*K*R*S*C/groups flops; reads dy, packed_t, writes dx. Twin: reference.conv2d_backward_input.

    Where the input of the convolution is relu(batch norm of x (+ a residual)), it may begin that one's backward, while
    dx lies in the cache: dx is then set to 0 where that input is not positive, and `sums`, float32 of plan.sums_shape,
    is overwritten with the sums over each block of pixels of dx and of dx * (x - mean), for `batchnorm_factors`.
    x: like dx. y: the convolution's input where there is a residual, else None: it follows from x. table: float32 by
    `batchnorm_statistics`, C columns or several times these. With sums: up to 7 flops an element more; reads dy,
    packed_t, x, y, writes dx.
    """
    check_array("conv2d: dy", dy, plan.y_shape, plan.shape.number.dtype)
    check_array("conv2d: dx", dx, plan.x_shape, plan.shape.number.dtype)
    _check_packed(plan, plan.backward_input, packed_t)
    behind = None
    if x is not None:
        for name, array in (("x", x), ("y", x if y is None else y)):
            check_array(f"conv2d: {name} of the batch norm", array, plan.x_shape, plan.shape.number.dtype)
        check_columns("conv2d: table of the batch norm", table, (COEFFICIENTS,), plan.x_shape[3])
        check_array("conv2d: sums", sums, plan.sums_shape)
        behind = Behind(x.reshape(-1), np.empty(0, x.dtype) if y is None else y.reshape(-1), table)
    elif sums is not None:
        raise ValueError("conv2d: found sums and no x, expected the input of the batch norm they are of: pass it")
    sums = NO_MOMENTS if sums is None else sums
    plan.backward_input.run(dy, packed_t, dx, NOTHING, NOTHING, sums, accumulate, behind=behind)


def conv2d_backward_weight(plan, x, dy, dw, workspace):
    """dw[r,s,c,k] = sum over n,p,q of x[n, p*stride+r-pad, q*stride+s-pad, g*C/groups+c] * dy[n,p,q,k].

    dw (R, S, C/groups, K) is overwritten; workspace (plan.workspace_size,) float32 is undefined after.
    Cost: 2*N*P*Q*K*R*S*C/groups flops; reads x, dy, writes dw. Twin: reference.conv2d_backward_weight.
    """
    check_array("conv2d: x", x, plan.x_shape, plan.shape.number.dtype)
    check_array("conv2d: dy", dy, plan.y_shape, plan.shape.number.dtype)
    check_array("conv2d: dw", dw, plan.w_shape)
    check_array("conv2d: workspace", workspace, (plan.workspace_size,))
    plan.backward_weight.run(x, dy, dw, workspace)


def conv2d_pack(plan, w, packed):
    """w (R, S, C/groups, K) as forward reads it: packed, (plan.packed_size,) of plan.forward.panels.

    float32, or bf16 where pairs are multiplied: then rounded here. Not needed where plan.unpacked.
    Cost: no flops, but for Winograd's transform of the filters; reads w, writes packed.
    """
    check_array("conv2d: w", w, plan.w_shape)
    check_array("conv2d: packed", packed, (plan.packed_size,), plan.forward.panels.dtype)
    plan.forward.pack(w, packed)


def conv2d_pack_transposed(plan, w, packed_t):
    """w as backward-input reads it: packed_t, (plan.packed_t_size,) of plan.backward_input.panels; as `conv2d_pack`.

    Cost: that of `conv2d_pack`; reads w, writes packed_t.
    """
    check_array("conv2d: w", w, plan.w_shape)
    check_array("conv2d: packed_t", packed_t, (plan.packed_t_size,), plan.backward_input.panels.dtype)
    plan.backward_input.pack(w, packed_t)


def _check_packed(plan, method, packed):
    shape, number = (plan.w_shape, FP32) if plan.unpacked else ((method.packed_size,), method.panels)
    check_array("conv2d: packed weights", packed, shape, number.dtype)
