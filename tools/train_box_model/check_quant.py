"""quant.py against gguf-py: what is trained is what a reader of the file sees, bit for bit."""
import gguf
import numpy as np
import torch

from quant import fake, pack


def main():
    for seed, size in ((0, 1.0), (1, 0.05), (2, 30.0)):
        torch.manual_seed(seed)
        x = torch.randn(64, 512) * size * torch.rand(64, 1)
        x[3], x[4, :32], x[5], x[6], x[7] = 0, 0, x[5].abs(), -x[6].abs(), 2.0
        x[8, 40] = 8.0
        for kind, most in (("Q8_0", 0.006), ("Q5_0", 0.05), ("MXFP4", 0.13), ("Q4_K", 0.1)):
            kind_id = gguf.GGMLQuantizationType[kind]
            packed = pack(x, kind)
            read = gguf.quants.dequantize(packed, kind_id).reshape(x.shape)
            assert (read == fake(x, kind).numpy()).all(), f"{kind}: trained is not what is read"
            if kind != "Q4_K":  # gguf-py does not encode it
                assert (gguf.quants.quantize(x.numpy(), kind_id) == packed).all(), kind
            error = np.linalg.norm(read - x.numpy()) / x.norm().item()
            assert error < most, f"{kind}: relative error {error:.3f}"
            print(f"{kind:5} scale {size:5}: exact, relative rounding error {error:.4f}")


if __name__ == "__main__":
    main()
