"""Kernels: arrays in, arrays out. The only door into this package; what is not listed here is private.

Every kernel has a twin of the same meaning in plain NumPy (in `reference`; of updates and pictures beside their tests),
takes its outputs and workspace as arguments, checks them, and gives the same bits for any number of threads. Norms are
returned, one number or two for each chunk.
"""

from . import reference
from ._jit import THREADING_LAYER, cache_folder, set_threads
from ._shapes import output_size
from .adaptive import Adaptive, Blended, adaptive_moments, adaptive_step, blended_update
from .affine import COEFFICIENTS
from .arch import ARCH, CPU, DOT, product
from .batchnorm import (
    batchnorm_backward,
    batchnorm_inference,
    batchnorm_moments,
    batchnorm_normalize,
    batchnorm_sums,
)
from .batchnorm_table import batchnorm_factors, batchnorm_plan, batchnorm_statistics
from .checksum import crc32c
from .conv import (
    conv2d_backward_input,
    conv2d_backward_weight,
    conv2d_forward,
    conv2d_pack,
    conv2d_pack_transposed,
    conv2d_plan,
)
from .digest import digest
from .image import crop_normalize, mean_color, resample_normalize, transform_colors
from .lrn import lrn_backward, lrn_forward
from .maxpool import maxpool_backward, maxpool_forward
from .number import BF16, FP16, FP32, Number, number_named, number_of
from .peak import STREAM_UNIT, STREAMS, fma_peak, stream
from .pointwise import (
    accumulate,
    add_forward,
    bias_gradient,
    bias_gradient_workspace,
    convert,
    dropout_backward,
    dropout_forward,
    relu_backward,
    relu_forward,
)
from .pool import (
    avgpool_backward,
    avgpool_forward,
    global_avgpool_backward,
    global_avgpool_forward,
)
from .private import claim
from .random import sample_key, uniform
from .shared import meet_arrive, meet_wait, node_allreduce, sum_blocks, sum_scratch
from .softmax import rank_of_label, softmax_cross_entropy
from .store import aligned_zeros
from .update import CHUNK as NORM_CHUNK
from .update import combine_norms, momentum_update, squared_norm_chunks
from .window import center_window, random_box, random_colors, random_window
from .wire import (
    FP16_SCALE,
    INT8_BLOCK,
    accumulate_bf16,
    accumulate_fp16,
    accumulate_serial,
    decode_bf16,
    decode_fp16,
    decode_int8,
    encode_bf16,
    encode_fp16,
    encode_int8,
)
