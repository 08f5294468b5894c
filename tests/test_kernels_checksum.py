"""kernels/checksum.py against the definition, bit by bit."""

import numpy as np
import pytest

from knltrain.kernels import crc32c, reference
from knltrain.kernels.arch import CRC32C
from knltrain.kernels.checksum import _by_instruction, _by_tables


def test_crc32c__has_the_published_values():
    # RFC 3720, appendix B.4, and the check value of the catalogues
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E


@pytest.mark.parametrize("update", [_by_tables, _by_instruction])
@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 63, 64, 1001])
def test_crc32c__equals_its_twin_at_any_place(update, length):
    if update is _by_instruction and not CRC32C:
        pytest.skip("this processor has no such instruction")
    data = np.random.default_rng(length).integers(0, 256, length + 3, dtype=np.uint8)
    for begin in range(3):  # loads need not be aligned
        part = data[begin : begin + length]
        assert int(update(part, np.uint64(0xFFFFFFFF))) ^ 0xFFFFFFFF == reference.crc32c(part.tobytes())


def test_crc32c__continues_and_takes_any_array():
    data = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    expected = reference.crc32c(data.tobytes())
    assert crc32c(data) == crc32c(data.tobytes()) == crc32c(data[1], crc32c(data[0])) == expected
