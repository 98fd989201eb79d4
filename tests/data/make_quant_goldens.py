"""Writes quant_goldens.bin: blocks of every format with what gguf-py makes of them.

    pip install gguf==0.19.0 && python make_quant_goldens.py

gguf-py's dequantisation agrees with GGML's bit for bit. All integers are little-endian u32:

    magic "QGLD"
    n_formats, then for each format:
        GGML type id, bytes of a block, weights of a block, number of blocks
        the blocks
        the weights, as the bits of f32
    n_inputs, then that many f32: whole blocks of 32 for the legacy formats
    n_encoders, then for each: GGML type id, the blocks that gguf-py makes of the inputs
"""

import pathlib
import struct

import gguf
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType as T

# Byte offsets of the f16 fields, which must be finite, for each format.
HALVES = {
    T.F32: [], T.F16: [0], T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2],
    T.Q8_0: [0], T.Q2_K: [80, 82], T.Q3_K: [108], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208],
    T.BF16: [], T.MXFP4: [],
}
# Zero, the smallest and largest subnormal, the smallest normal, one, the largest, with either sign.
EXTREMES = [0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x83FF, 0x0400, 0x8400, 0x3C00, 0xBC00,
            0x7BFF, 0xFBFF]
EXPONENTS = [0, 1, 2, 3, 126, 127, 128, 253, 254, 255]
LEGACY = [T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0]
N_INPUT_BLOCKS = 24


def finite_half(rng):
    while True:
        bits = int(rng.integers(0x10000))
        if bits & 0x7C00 != 0x7C00:
            return bits


def blocks_of(rng, kind):
    elems, size = GGML_QUANT_SIZES[kind]
    n = {1: 160, 32: 40, 256: 24}[elems]
    blocks = rng.integers(0, 256, (n, size), dtype=np.uint8)
    for row, block in enumerate(blocks):
        if row in (12, 13):
            block[:] = 0x00 if row == 12 else 0xFF  # every code at an end of its range
        for k, at in enumerate(HALVES[kind]):
            if row < len(EXTREMES):
                bits = EXTREMES[(row + 5 * k) % len(EXTREMES)]
            elif row in (12, 13):
                bits = 0x2E66 + 0x333 * k
            else:
                bits = finite_half(rng)
            block[at:at + 2] = list(struct.pack("<H", bits))
        if kind == T.MXFP4:
            block[0] = EXPONENTS[row] if row < len(EXPONENTS) else 100 + row
        if kind == T.F32 and block[3] & 0x7F == 0x7F:
            block[3] ^= 0x40  # finite
        if kind == T.BF16 and block[1] & 0x7F == 0x7F:
            block[1] ^= 0x40
    return blocks


def inputs(rng):
    x = rng.standard_normal((N_INPUT_BLOCKS, 32)).astype(np.float32)
    x *= np.exp2(rng.integers(-12, 12, (N_INPUT_BLOCKS, 1))).astype(np.float32)
    x[0] = 0.0
    x[1] = 0.75  # constant
    x[2] = -0.75
    x[3] = 0.0
    x[3, 17] = -3.0  # one spike
    x[4] = np.abs(x[4])
    x[5] = -np.abs(x[5])
    x[6] = np.arange(32) - 15.5  # ties in several formats
    x[7] = np.arange(32) - 16
    x[8] *= np.float32(1e-9)  # scales below f16's range
    return x


def u32(*values):
    return struct.pack(f"<{len(values)}I", *values)


def main():
    rng = np.random.default_rng(20)
    out = [b"QGLD", u32(len(HALVES))]
    for kind in HALVES:
        elems, size = GGML_QUANT_SIZES[kind]
        blocks = blocks_of(rng, kind)
        with np.errstate(over="ignore"):
            weights = gguf.quants.dequantize(blocks, kind).astype("<f4")
        assert weights.size == len(blocks) * elems and not np.isnan(weights).any(), kind
        out += [u32(kind, size, elems, len(blocks)), blocks.tobytes(), weights.tobytes()]
    x = inputs(rng)
    out += [u32(x.size), x.astype("<f4").tobytes(), u32(len(LEGACY))]
    for kind in LEGACY:
        out += [u32(kind), gguf.quants.quantize(x, kind).tobytes()]
    data = b"".join(out)
    assert len(data) < 300_000
    pathlib.Path(__file__).with_name("quant_goldens.bin").write_bytes(data)


main()
