"""Every operation once more in plain NumPy: the oracle of the tests, and the page to read first.

Works in the dtype of its arguments (the tests use float64), returns new arrays, knows no tiles and no threads.
Letters: N batch; H W in, P Q out; C channels in, K out; R S kernel; layout NHWC; gradients dx dw db dy.
"""

import numpy as np

# ---- sliding windows -----------------------------------------------------------------------------------------


def _windows(x, size, stride, pad, fill=0.0):
    """View of x (N,H,W,C) as windows (N,P,Q,C,R,S); floor mode: a window that sticks out behind is not taken."""
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)), constant_values=fill)
    return np.lib.stride_tricks.sliding_window_view(padded, size, axis=(1, 2))[:, ::stride, ::stride]


def _scatter(dwindows, x_shape, stride, pad):
    """Transpose of `_windows`: add the gradients of all windows (N,P,Q,C,R,S) into dx of shape (N,H,W,C)."""
    n, h, w, c = x_shape
    _, p, q, _, r, s = dwindows.shape
    padded = np.zeros((n, h + 2 * pad, w + 2 * pad, c), dwindows.dtype)
    for i in range(r):
        for j in range(s):
            padded[:, i : i + stride * p : stride, j : j + stride * q : stride] += dwindows[..., i, j]
    return padded[:, pad : pad + h, pad : pad + w].copy()


# ---- convolution ---------------------------------------------------------------------------------------------


def _grouped(array, groups):
    """Split the last axis: (..., groups * c) to (..., groups, c)."""
    return array.reshape(*array.shape[:-1], groups, -1)


def conv2d_forward(x, w, b=None, stride=1, pad=0, groups=1):
    """y[n,p,q,k] = b[k] + sum over r,s,c of x[n, p*stride-pad+r, q*stride-pad+s, c] * w[r,s,c,k].

    x (N,H,W,C), w (R,S,C/groups,K), b (K,) or None; y (N,P,Q,K). Group g reads the g-th C/groups channels of x and
    writes the g-th K/groups channels of y.
    """
    r, s, c, _ = w.shape
    windows = _windows(x, (r, s), stride, pad)
    n, p, q = windows.shape[:3]
    windows = windows.reshape(n, p, q, groups, c, r, s)
    y = np.einsum("npqgcrs,rscgk->npqgk", windows, _grouped(w, groups), optimize=True).reshape(n, p, q, -1)
    return y if b is None else y + b


def conv2d_backward_input(dy, w, x_shape, stride=1, pad=0, groups=1):
    """dx (N,H,W,C) from dy (N,P,Q,K) and w (R,S,C/groups,K)."""
    r, s, c, _ = w.shape
    dwindows = np.einsum("npqgk,rscgk->npqgcrs", _grouped(dy, groups), _grouped(w, groups), optimize=True)
    return _scatter(dwindows.reshape(*dy.shape[:3], groups * c, r, s), x_shape, stride, pad)


def conv2d_backward_weight(x, dy, kernel, stride=1, pad=0, groups=1):
    """dw (R,S,C/groups,K) from x (N,H,W,C) and dy (N,P,Q,K); kernel = (R, S)."""
    n, p, q, k = dy.shape
    windows = _windows(x, kernel, stride, pad).reshape(n, p, q, groups, -1, *kernel)
    dw = np.einsum("npqgcrs,npqgk->rscgk", windows, _grouped(dy, groups), optimize=True)
    return dw.reshape(*kernel, -1, k)


def bias_gradient(dy):
    """db (K,): sum of dy (..., K) over all pixels."""
    return dy.reshape(-1, dy.shape[-1]).sum(axis=0)


# ---- linear --------------------------------------------------------------------------------------------------


# ---- batch normalization: statistics over all axes but the last -----------------------------------------------


def _pixels(x):
    return x.reshape(-1, x.shape[-1])


def batchnorm_statistics(x):
    """mean (C,) and biased variance (C,) of x (..., C)."""
    return _pixels(x).mean(axis=0), _pixels(x).var(axis=0)


def batchnorm_inference(x, gamma, beta, mean, var, eps, residual=None, relu=False):
    """y = gamma * (x - mean) / sqrt(var + eps) + beta (+ residual), then max(y, 0) if relu; gamma, beta None: 1, 0."""
    y = (x - mean) / np.sqrt(var + eps)
    if gamma is not None:
        y = gamma * y + beta
    if residual is not None:
        y = y + residual
    return relu_forward(y) if relu else y


def batchnorm_forward(x, gamma, beta, eps, residual=None, relu=False):
    """y as in inference, with the statistics of x itself; returns y, mean, var."""
    mean, var = batchnorm_statistics(x)
    return batchnorm_inference(x, gamma, beta, mean, var, eps, residual, relu), mean, var


def batchnorm_normalize(x, table, residual=None, relu=False):
    """y as in inference, from a table as `kernels.batchnorm_statistics` writes it: mean, gamma / std and beta.

    x less its mean is rounded to float32, as the kernels do: near 0 the sign of y is a matter of rounding.
    """
    mean, scale, shift = np.asarray(table, np.float64)[:, : x.shape[-1]]
    y = np.float32(x - mean) * scale + shift
    y = y if residual is None else y + residual
    return relu_forward(y) if relu else y


def batchnorm_passed(dy, x, y, table):
    """What of dy the ReLU behind a batch norm passes on; y: its output, or None: that of x."""
    return np.where((batchnorm_normalize(x, table) if y is None else y) > 0, dy, 0)


def batchnorm_backward(x, y, dy, gamma, mean, var, eps, relu=False):
    """dx, dgamma, dbeta, dresidual; without gamma the two in the middle are what a gamma of 1 would get.

    With g = dy * (y > 0) behind a ReLU (else dy), xhat = (x - mean) / sqrt(var + eps) and M pixels:
    dbeta = sum g, dgamma = sum g * xhat, dx = gamma / sqrt(var + eps) * (g - dbeta / M - xhat * dgamma / M).
    """
    g = relu_backward(y, dy) if relu else dy
    xhat = (x - mean) / np.sqrt(var + eps)
    dbeta = _pixels(g).sum(axis=0)
    dgamma = _pixels(g * xhat).sum(axis=0)
    scale = (1 if gamma is None else gamma) / np.sqrt(var + eps)
    pixels = _pixels(x).shape[0]
    return scale * (g - dbeta / pixels - xhat * dgamma / pixels), dgamma, dbeta, g


# ---- pointwise -----------------------------------------------------------------------------------------------


def relu_forward(x):
    """max(x, 0)."""
    return np.maximum(x, 0)


def relu_backward(y, dy):
    """dx = dy where the output y is positive, else 0."""
    return np.where(y > 0, dy, 0)


def add_forward(a, b, relu=False):
    """a + b, then max(., 0) if relu."""
    return relu_forward(a + b) if relu else a + b


def dropout_mask(shape, rate, keys):
    """0 or 1 / (1 - rate) per element: element j of image n is kept where hash_u32(keys[n], j) >= rate * 2**32."""
    elements = np.arange(np.prod(shape[1:]), dtype=np.int64)
    kept = np.stack([hash_u32(key, elements) >= int(rate * 2**32) for key in keys])
    return kept.reshape(shape) / (1 - rate)


def dropout_forward(x, rate, keys):
    """y = x * mask (N, ...); keys (N,) uint64."""
    return x * dropout_mask(x.shape, rate, keys)


def dropout_backward(dy, rate, keys):
    """dx = dy * the same mask."""
    return dy * dropout_mask(dy.shape, rate, keys)


# ---- pooling -------------------------------------------------------------------------------------------------


def maxpool_forward(x, size, stride, pad, rectified=False):
    """y (N,P,Q,C) and argmax (N,P,Q,C) uint8, the place r*size + s of the first maximum; padding never wins.

    rectified: 255 in place of those that are not positive.
    """
    windows = _windows(x, (size, size), stride, pad, fill=-np.inf)
    windows = windows.reshape(*windows.shape[:4], size * size)
    y, argmax = windows.max(axis=-1), windows.argmax(axis=-1).astype(np.uint8)
    return y, np.where(y > 0, argmax, 255).astype(np.uint8) if rectified else argmax


def maxpool_backward(dy, argmax, x_shape, size, stride, pad):
    """dx (N,H,W,C): every dy goes to the place of its maximum."""
    chosen = argmax[..., None] == np.arange(size * size)
    dwindows = np.where(chosen, dy[..., None], 0).reshape(*dy.shape, size, size)
    return _scatter(dwindows, x_shape, stride, pad)


def avgpool_forward(x, size, stride, pad):
    """y (N,P,Q,C): mean over size*size places, padding counted as zeros."""
    return _windows(x, (size, size), stride, pad).mean(axis=(-2, -1))


def avgpool_backward(dy, x_shape, size, stride, pad):
    """dx (N,H,W,C): dy / size**2 to each place of its window."""
    dwindows = np.broadcast_to((dy / size**2)[..., None, None], (*dy.shape, size, size))
    return _scatter(dwindows, x_shape, stride, pad)


def global_avgpool_forward(x):
    """y (N,C): mean of x (N,H,W,C) over H and W."""
    return x.mean(axis=(1, 2))


def global_avgpool_backward(dy, x_shape):
    """dx (N,H,W,C): dy (N,C) / (H*W) everywhere."""
    _, h, w, _ = x_shape
    return np.broadcast_to(dy[:, None, None, :] / (h * w), x_shape).copy()


# ---- local response normalization ----------------------------------------------------------------------------


def _window_sums(a, size):
    """Sums over `size` neighbouring channels, centred, zeros beyond the ends: (..., C) to (..., C)."""
    edges = [(0, 0)] * (a.ndim - 1) + [(size // 2, size // 2)]
    return np.lib.stride_tricks.sliding_window_view(np.pad(a, edges), size, axis=-1).sum(axis=-1)


def _lrn_scale(x, size, alpha, k):
    return k + alpha / size * _window_sums(x**2, size)


def lrn_forward(x, size, alpha, beta, k):
    """y = x * scale**-beta with scale = k + alpha / size * sum of x**2 over `size` channels."""
    return x * _lrn_scale(x, size, alpha, k) ** -beta


def lrn_backward(x, dy, size, alpha, beta, k, rectified=False):
    """dx = dy * scale**-beta - 2*alpha*beta/size * x * (sum of dy*y/scale over `size` channels).

    rectified: 0 where x is not positive.
    """
    scale = _lrn_scale(x, size, alpha, k)
    y = x * scale**-beta
    dx = dy * scale**-beta - 2 * alpha * beta / size * x * _window_sums(dy * y / scale, size)
    return np.where(x > 0, dx, 0) if rectified else dx


# ---- loss ----------------------------------------------------------------------------------------------------


def softmax_cross_entropy(logits, labels, smoothing=0.0, scale=1.0, others=None, shares=1.0):
    """loss (N,) and dlogits (N,K) = (softmax - target) * scale; loss = -sum_k target_k * log softmax_k.

    target = (1 - smoothing) * onehot(label) + smoothing / K; scale is 1 / global_batch and does not touch the loss.
    With others (N,) and shares (N,) onehot is share * onehot(label) + (1 - share) * onehot(other).
    """
    classes = logits.shape[1]
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_softmax = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    onehot, share = np.eye(classes, dtype=logits.dtype), np.reshape(shares, (-1, 1))
    mixed = onehot[labels] if others is None else share * onehot[labels] + (1 - share) * onehot[others]
    target = mixed * (1 - smoothing) + smoothing / classes
    return -(target * log_softmax).sum(axis=1), (np.exp(log_softmax) - target) * scale


def rank_of_label(logits, labels):
    """Classes placed before the label (N,): larger logit, or equal logit and lower index. Top-5 is rank < 5."""
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    earlier = np.arange(logits.shape[1]) < labels[:, None]
    return ((logits > own) | ((logits == own) & earlier)).sum(axis=1)


# ---- random numbers ------------------------------------------------------------------------------------------

MASK64 = (1 << 64) - 1


def mix64(h):
    """The finalizer of splitmix64 on a Python int below 2**64 (Steele et al. 2014, constants by Stafford)."""
    h = ((h ^ (h >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    h = ((h ^ (h >> 27)) * 0x94D049BB133111EB) & MASK64
    return h ^ (h >> 31)


def sample_key(seed, epoch, row, purpose):
    """One key per (seed, epoch, row, purpose): each is added to the state with the golden-ratio step, then mixed."""
    h = 0
    for part in (seed, epoch, row, purpose):
        h = mix64((h + part + 0x9E3779B97F4A7C15) & MASK64)
    return h


def _mix32(h):
    """Wellons' lowbias32 on a uint32 array."""
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x7FEB352D)
    h = (h ^ (h >> np.uint32(15))) * np.uint32(0x846CA68B)
    return h ^ (h >> np.uint32(16))


def hash_u32(key, j):
    """uint32 for each counter in the array j < 2**32: lowbias32 twice, with one half of the key before each."""
    low, high = np.uint32(int(key) & 0xFFFFFFFF), np.uint32(int(key) >> 32)
    return _mix32(_mix32(np.asarray(j).astype(np.uint32) + low) ^ high)


def uniform(key, j):
    """hash_u32 / 2**32: float64 in [0, 1)."""
    return hash_u32(key, j) / 2.0**32


# ---- checksum --------------------------------------------------------------------------------------------------


def crc32c(data, value=0):
    """CRC-32C of bytes, bit by bit: polynomial 0x1EDC6F41, bits reversed in and out, all ones before and after."""
    state = value ^ 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = (state >> 1) ^ (0x82F63B78 if state & 1 else 0)
    return state ^ 0xFFFFFFFF


# ---- wire ------------------------------------------------------------------------------------------------------


def int8_round(x, residual, edges):
    """(what arrives of x + residual, what is lost): -128 to 127 times a power of two that reaches a block's numbers."""
    arrived, lost = np.empty_like(x), residual.copy()
    for start, stop in zip(edges[:-1] - edges[0], edges[1:] - edges[0], strict=True):
        total = x[start:stop] + residual[start:stop]
        if not np.isfinite(total).all():
            arrived[start:stop] = np.nan
            continue
        exponent = np.frexp(np.abs(total).max(initial=0))[1] - 7
        scale = np.float32(2.0**exponent if exponent >= -126 else 0)
        codes = np.minimum(np.rint(total / scale), 127) if scale else np.zeros_like(total)
        arrived[start:stop] = codes * scale
        lost[start:stop] = total - codes * scale
    return arrived, lost
