"""Rounding to GGUF block formats in torch, for training (`fake`) and for the file (`pack`).

One law: `pack` and `fake` share one rounding, so what was trained is what is written. Q5_0, Q8_0
and MXFP4 round as gguf-py does; Q4_K is the plain min-max rounding (gguf-py has no encoder for it).
"""
import numpy as np
import torch

E2M1 = [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0]  # doubled magnitudes, as ggml's table
E2M1_MIDDLE = [0.5, 1.5, 2.5, 3.5, 5.0, 7.0, 10.0]


def _f16(x):
    return x.to(torch.float16).to(torch.float32)


def _inverse(d):
    return torch.where(d == 0, torch.zeros_like(d), 1.0 / d)


def _q8_0(x):
    d = x.abs().amax(-1, keepdim=True) / 127
    scaled = x * _inverse(d)
    code = torch.sign(scaled) * torch.floor(scaled.abs() + 0.5)
    return {"d": d, "code": code}, code * _f16(d)


def _q5_0(x):
    at = x.abs().argmax(-1, keepdim=True)
    d = x.gather(-1, at) / -16
    code = torch.trunc(x * _inverse(d) + 16.5).clamp(0, 31)
    return {"d": d, "code": code}, (code - 16) * _f16(d)


def _mxfp4(x):
    top = x.abs().amax(-1, keepdim=True)
    _, exponent = torch.frexp(top)  # floor(log2(top)) is exponent - 1
    e = torch.where(top > 0, (exponent - 1 - 2 + 127).clamp(2, 254), torch.zeros_like(exponent))
    # The bits of 2^(e - 128); e of 0 (a block of zeros) may use any scale.
    scale = ((e.clamp(min=2) - 1).to(torch.int32) << 23).view(torch.float32)
    middle = torch.tensor(E2M1_MIDDLE, device=x.device)
    magnitude = torch.bucketize(x.abs() / scale, middle)  # a tie goes to the smaller one
    value = torch.tensor(E2M1, device=x.device)[magnitude] * torch.sign(x)
    code = magnitude + 8 * ((x < 0) & (magnitude > 0))
    return {"e": e, "code": code}, value * scale


def _q4_k(x):
    sub = x.reshape(*x.shape[:-1], 8, 32)
    low = sub.amin(-1).clamp(max=0.0)
    high = sub.amax(-1).clamp(min=0.0)
    scale = (high - low) / 15
    d = scale.amax(-1, keepdim=True) / 63
    d_min = (-low).amax(-1, keepdim=True) / 63
    sc = torch.round(scale * _inverse(d)).clamp(0, 63)
    m = torch.round(-low * _inverse(d_min)).clamp(0, 63)
    step = (_f16(d) * sc).unsqueeze(-1)
    floor = (_f16(d_min) * m).unsqueeze(-1)
    code = torch.round((sub + floor) * _inverse(step)).clamp(0, 15)
    parts = {"d": d, "d_min": d_min, "sc": sc, "m": m, "code": code}
    return parts, (step * code - floor).reshape(x.shape)


_ROUND = {"Q8_0": (32, _q8_0), "Q5_0": (32, _q5_0), "MXFP4": (32, _mxfp4), "Q4_K": (256, _q4_k)}


def _round(x, kind):
    size, function = _ROUND[kind]
    assert x.shape[-1] % size == 0, f"{kind} needs rows of whole blocks of {size}: {x.shape}"
    return function(x.reshape(-1, size))


def fake(x, kind):
    """The float32 values that a reader of the file will see."""
    return x if kind == "F32" else _round(x, kind)[1].reshape(x.shape)


def _bytes(x, dtype):
    return x.cpu().numpy().astype(dtype).view(np.uint8).reshape(x.shape[0], -1)


def pack(x, kind):
    """The bytes of the tensor, [..., bytes of a row], or the float32 array itself for F32."""
    x = x.detach().float().cpu().contiguous()
    if kind == "F32":
        return x.numpy()
    parts, _ = _round(x, kind)
    code = parts["code"].numpy().astype(np.uint8 if kind != "Q8_0" else np.int8)
    n = code.shape[0]
    if kind == "Q8_0":
        blocks = [_bytes(parts["d"], np.float16), code.view(np.uint8)]
    elif kind == "Q5_0":
        low = (code[:, :16] & 15) | (code[:, 16:] << 4)
        high = np.packbits(code >> 4, axis=-1, bitorder="little")
        blocks = [_bytes(parts["d"], np.float16), high, low]
    elif kind == "MXFP4":
        blocks = [_bytes(parts["e"], np.uint8), code[:, :16] | (code[:, 16:] << 4)]
    else:
        sc, m = (parts[k].numpy().astype(np.uint8) for k in ("sc", "m"))
        scales = np.concatenate([(sc[:, :4] & 63) | ((sc[:, 4:] >> 4) << 6),
                                 (m[:, :4] & 63) | ((m[:, 4:] >> 4) << 6),
                                 (sc[:, 4:] & 15) | ((m[:, 4:] & 15) << 4)], axis=-1)
        pairs = code.reshape(n, 4, 2, 32)
        nibbles = (pairs[:, :, 0] | (pairs[:, :, 1] << 4)).reshape(n, 128)
        blocks = [_bytes(parts["d"], np.float16), _bytes(parts["d_min"], np.float16), scales,
                  nibbles]
    return np.concatenate(blocks, axis=-1).reshape(*x.shape[:-1], -1)
