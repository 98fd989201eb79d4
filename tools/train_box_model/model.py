"""gpt-oss in compact PyTorch: every expert is computed for every token and masked by the router,
which is exact and, at this size, the fastest way to train.

Parameter names are the GGUF names with `_` for the last dot (`blk.0.attn_q_weight`).
"""
import math
import torch
from torch import nn
import torch.nn.functional as F


def gguf_name(name):
    """`blk.0.attn_q_weight` -> `blk.0.attn_q.weight`"""
    stem, kind = name.rsplit("_", 1)
    return f"{stem}.{kind}"


def rms_norm(x, weight, eps):
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def rotate(x, cos, sin):
    """NeoX halves; x [batch, heads, tokens, head_dim], cos and sin [tokens, head_dim / 2]."""
    a, b = x.float().chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def plain_attention(q, k, v, sinks, window):
    """The definition. window: 0 for full attention; query i sees keys i - window < j <= i."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = (q @ k.transpose(-1, -2)).float() / math.sqrt(q.shape[-1])
    i = torch.arange(q.shape[2], device=q.device)
    hidden = i[None, :] > i[:, None]
    if window:
        hidden = hidden | (i[None, :] <= i[:, None] - window)
    scores = scores.masked_fill(hidden, float("-inf"))
    column = sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
    p = torch.cat([scores, column], -1).softmax(-1)[..., :-1]
    return p.to(v.dtype) @ v


class FlexAttention:
    """The same through torch's flex_attention: p without the sink, times
    exp(lse) / (exp(lse) + exp(sink)). Only for the GPU."""

    def __init__(self, window, n_tokens, device):
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention
        self.flex = flex_attention

        def causal(b, h, i, j):
            return j <= i

        def sliding(b, h, i, j):
            return (j <= i) & (j > i - window)

        def block_mask(f):
            return create_block_mask(f, None, None, n_tokens, n_tokens, device=device)

        self.full_mask, self.window_mask = block_mask(causal), block_mask(sliding)

    def __call__(self, q, k, v, sinks, window):
        mask = self.window_mask if window else self.full_mask
        out, lse = self.flex(q, k, v, block_mask=mask, enable_gqa=True, return_lse=True)
        return out * torch.sigmoid(lse - sinks.float().view(1, -1, 1)).unsqueeze(-1).to(out.dtype)


class Block(nn.Module):
    """One layer."""

    def __init__(self, shape, layer):
        super().__init__()
        s, self.shape = shape, shape
        self.window = s.window if layer % 2 == 0 else 0
        d, q, kv = s.d_model, s.n_heads * s.head_dim, s.n_kv_heads * s.head_dim
        behind = 1 / math.sqrt(2 * s.n_layers)

        def weight(*dims, gain=0.7):
            return nn.Parameter(torch.randn(*dims) * gain / math.sqrt(dims[-1]))

        def zeros(*dims):
            return nn.Parameter(torch.zeros(*dims))

        self.attn_norm_weight = nn.Parameter(torch.ones(d))
        self.attn_q_weight, self.attn_q_bias = weight(q, d), zeros(q)
        self.attn_k_weight, self.attn_k_bias = weight(kv, d), zeros(kv)
        self.attn_v_weight, self.attn_v_bias = weight(kv, d), zeros(kv)
        self.attn_output_weight, self.attn_output_bias = weight(d, q, gain=behind), zeros(d)
        self.attn_sinks_weight = zeros(s.n_heads)
        self.post_attention_norm_weight = nn.Parameter(torch.ones(d))
        e, ff = s.n_experts, s.d_expert
        self.ffn_gate_inp_weight, self.ffn_gate_inp_bias = weight(e, d), zeros(e)
        self.ffn_gate_exps_weight, self.ffn_gate_exps_bias = weight(e, ff, d), zeros(e, ff)
        self.ffn_up_exps_weight, self.ffn_up_exps_bias = weight(e, ff, d), zeros(e, ff)
        self.ffn_down_exps_weight = weight(e, d, ff, gain=behind)
        self.ffn_down_exps_bias = zeros(e, d)

    def attention(self, x, cos, sin, attend):
        s, (batch, n, _) = self.shape, x.shape

        def heads(weight, bias, count):
            return F.linear(x, weight, bias).view(batch, n, count, s.head_dim).transpose(1, 2)

        q = heads(self.attn_q_weight, self.attn_q_bias, s.n_heads)
        k = heads(self.attn_k_weight, self.attn_k_bias, s.n_kv_heads)
        v = heads(self.attn_v_weight, self.attn_v_bias, s.n_kv_heads)
        q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
        out = attend(q, k, v, self.attn_sinks_weight, self.window)
        out = out.transpose(1, 2).reshape(batch, n, s.n_heads * s.head_dim)
        return F.linear(out, self.attn_output_weight, self.attn_output_bias)

    def experts(self, x):
        """Returns the mixture and the load-balancing loss."""
        s = self.shape
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(x.float(), self.ffn_gate_inp_weight, self.ffn_gate_inp_bias)
        top, which = logits.topk(s.n_active, -1)
        share = torch.zeros_like(logits).scatter(-1, which, top.softmax(-1))

        def every(weight, bias):
            return F.linear(x, weight.flatten(0, 1), bias.flatten()).float()

        gate = every(self.ffn_gate_exps_weight, self.ffn_gate_exps_bias).clamp(max=7.0)
        up = every(self.ffn_up_exps_weight, self.ffn_up_exps_bias).clamp(-7.0, 7.0)
        hidden = gate * torch.sigmoid(1.702 * gate) * (up + 1.0)
        hidden = (hidden.unflatten(-1, (s.n_experts, s.d_expert)) * share.unsqueeze(-1)).flatten(-2)
        down = self.ffn_down_exps_weight.transpose(1, 2).flatten(0, 1)  # [experts * ff, d]
        out = F.linear(hidden, down.t()) + share @ self.ffn_down_exps_bias
        load = (share > 0).float().mean((0, 1)) / s.n_active
        balance = s.n_experts * (load * logits.softmax(-1).mean((0, 1))).sum()
        return out, balance

    def forward(self, x, cos, sin, attend, dropout):
        eps = self.shape.rms_eps
        a = self.attention(rms_norm(x, self.attn_norm_weight, eps), cos, sin, attend)
        x = x + F.dropout(a, dropout, self.training)
        m, balance = self.experts(rms_norm(x, self.post_attention_norm_weight, eps))
        return x + F.dropout(m, dropout, self.training), balance


class BoxModel(nn.Module):
    """tokens [batch, n] -> logits [batch, n, vocab] and the mean load-balancing loss."""

    def __init__(self, shape, dropout=0.0, attend=plain_attention):
        super().__init__()
        self.shape, self.dropout, self.attend = shape, dropout, attend
        self.token_embd_weight = nn.Parameter(torch.randn(shape.n_vocab, shape.d_model) * 0.1)
        self.blk = nn.ModuleList([Block(shape, i) for i in range(shape.n_layers)])
        self.output_norm_weight = nn.Parameter(torch.ones(shape.d_model))
        self.output_weight = nn.Parameter(
            torch.randn(shape.n_vocab, shape.d_model) * 0.5 / math.sqrt(shape.d_model))
        inverse, concentration = shape.yarn_frequencies()
        angle = torch.outer(torch.arange(shape.context).double(),
                            torch.tensor(inverse, dtype=torch.float64))
        self.register_buffer("cos", (angle.cos() * concentration).float(), persistent=False)
        self.register_buffer("sin", (angle.sin() * concentration).float(), persistent=False)

    def forward(self, tokens):
        n = tokens.shape[1]
        x = F.embedding(tokens, self.token_embd_weight)
        x = F.dropout(x, self.dropout, self.training)
        cos, sin = self.cos[:n], self.sin[:n]
        balance = 0.0
        for block in self.blk:
            x, b = block(x, cos, sin, self.attend, self.dropout)
            balance = balance + b / self.shape.n_layers
        x = rms_norm(x, self.output_norm_weight, self.shape.rms_eps)
        return F.linear(x, self.output_weight), balance
