"""The shape of the model in the box: one place for every number that the other scripts need.

It is gpt-oss in small: the same block order, biases, sinks, window, YaRN, router and activation.
"""
from dataclasses import dataclass
import math

# The order is that of the real vocabulary; they stand behind the ordinary tokens.
SPECIALS = ["<|startoftext|>", "<|endoftext|>", "<|return|>", "<|constrain|>", "<|channel|>",
            "<|start|>", "<|end|>", "<|message|>", "<|call|>"]

# Split pattern of o200k ("gpt-4o" in GGUF files).
PATTERN = "|".join([
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])


@dataclass(frozen=True)
class Shape:
    """Dimensions and constants; the defaults are the shipped model."""
    n_vocab: int = 4096
    n_layers: int = 6
    d_model: int = 256
    n_heads: int = 8
    n_kv_heads: int = 2
    head_dim: int = 64  # q rows of 512 = 2 * 256: attn_output can be Q4_K, as in the real files
    n_experts: int = 8
    n_active: int = 2
    d_expert: int = 192
    window: int = 128  # on even layers
    context: int = 1024
    rope_base: float = 10000.0
    yarn_factor: float = 4.0
    yarn_context: int = 256
    rms_eps: float = 1e-5

    def special(self, name):
        """Id of a special token."""
        return self.n_vocab - len(SPECIALS) + SPECIALS.index(name)

    def yarn_frequencies(self):
        """Inverse frequencies (head_dim / 2) and the factor on cos and sin, OpenAI's definition."""
        half = self.head_dim // 2

        def bound(rotations):
            turns = self.yarn_context / (rotations * 2 * math.pi)
            return half * math.log(turns) / math.log(self.rope_base)

        low, high = bound(32.0), bound(1.0)
        inverse = []
        for i in range(half):
            frequency = self.rope_base ** (i / half)
            ramp = min(max((i - low) / (high - low), 0.0), 1.0)
            inverse.append(ramp / (self.yarn_factor * frequency) + (1.0 - ramp) / frequency)
        return inverse, 0.1 * math.log(self.yarn_factor) + 1.0

    def tensor_type(self, name):
        """GGUF type of a weight by its GGUF name, mixed as in a Q4_K_M file of gpt-oss-20b."""
        if name.endswith(".bias") or "norm" in name or "sinks" in name or "ffn_gate_inp" in name:
            return "F32"
        if "_exps" in name:
            return "MXFP4"
        if name == "output.weight":
            return "Q8_0"
        if "attn_output" in name:
            return "Q4_K"
        if "attn_v" in name:
            layer = int(name.split(".")[1])
            third = self.n_layers // 8
            more = (layer <= third or layer >= 7 * self.n_layers // 8
                    or (layer - third) % 3 == 2)
            return "Q8_0" if more else "Q5_0"
        return "Q5_0"  # token_embd, attn_q, attn_k
