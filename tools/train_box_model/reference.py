"""Checks a finished file against transformers' GptOssForCausalLM and writes the tests' reference.

    python reference.py --model box-model.gguf --data DATA --out box_model_reference.json

All numbers are float32 on a CPU on the weights dequantised from the file.
"""
import argparse
import json
import lzma
import math

import gguf
import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import GptOssConfig, GptOssForCausalLM

import export
from model import BoxModel
from shape import Shape

PROMPTS = {
    "story": "<|startoftext|>Once upon a time, there was a little fox named Milo who lived in a "
             "quiet forest near the sea. One day, he",
    "conversation": "<|start|>user<|message|>Tell me a story about a robot.<|end|>"
                    "<|start|>assistant<|channel|>final<|message|>",
}


def shape_of(path):
    """The shape that the file itself states."""
    fields = gguf.GGUFReader(path).fields

    def get(key):
        return fields["gpt-oss." + key].contents()

    assert fields["general.architecture"].contents() == "gpt-oss"
    assert get("rope.scaling.type") == "yarn"
    return Shape(
        n_vocab=get("vocab_size"), n_layers=get("block_count"), d_model=get("embedding_length"),
        n_heads=get("attention.head_count"), n_kv_heads=get("attention.head_count_kv"),
        head_dim=get("attention.key_length"), n_experts=get("expert_count"),
        n_active=get("expert_used_count"), d_expert=get("expert_feed_forward_length"),
        window=get("attention.sliding_window"), context=get("context_length"),
        rope_base=get("rope.freq_base"), yarn_factor=get("rope.scaling.factor"),
        yarn_context=get("rope.scaling.original_context_length"),
        rms_eps=get("attention.layer_norm_rms_epsilon"))


def transformers_model(shape, g):
    """transformers' class with the weights g {GGUF name: array}."""
    kinds = ["sliding_attention", "full_attention"]
    config = GptOssConfig(
        vocab_size=shape.n_vocab, hidden_size=shape.d_model, intermediate_size=shape.d_expert,
        num_hidden_layers=shape.n_layers, num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_kv_heads, head_dim=shape.head_dim,
        num_local_experts=shape.n_experts, num_experts_per_tok=shape.n_active,
        sliding_window=shape.window, max_position_embeddings=shape.context,
        rms_norm_eps=shape.rms_eps, tie_word_embeddings=False,
        layer_types=[kinds[i % 2] for i in range(shape.n_layers)],
        rope_parameters={"rope_type": "yarn", "rope_theta": shape.rope_base,
                         "factor": shape.yarn_factor, "beta_fast": 32.0, "beta_slow": 1.0,
                         "original_max_position_embeddings": shape.yarn_context,
                         "truncate": False},
        experts_implementation="eager")
    model = GptOssForCausalLM._from_config(config, attn_implementation="eager").eval().float()
    state = {"model.embed_tokens.weight": g["token_embd.weight"],
             "model.norm.weight": g["output_norm.weight"], "lm_head.weight": g["output.weight"]}
    for i in range(shape.n_layers):
        p, q = f"model.layers.{i}.", f"blk.{i}."
        state[p + "input_layernorm.weight"] = g[q + "attn_norm.weight"]
        state[p + "post_attention_layernorm.weight"] = g[q + "post_attention_norm.weight"]
        state[p + "self_attn.sinks"] = g[q + "attn_sinks.weight"]
        for kind in ("weight", "bias"):
            for a, b in (("q", "q"), ("k", "k"), ("v", "v"), ("o", "output")):
                state[f"{p}self_attn.{a}_proj.{kind}"] = g[f"{q}attn_{b}.{kind}"]
            state[f"{p}mlp.router.{kind}"] = g[f"{q}ffn_gate_inp.{kind}"]
        # transformers keeps the experts as [experts, in, out], gate and up interleaved.
        gate, up, down = (g[f"{q}ffn_{n}_exps.weight"].transpose(0, 2, 1)
                          for n in ("gate", "up", "down"))
        e = p + "mlp.experts."
        state[e + "gate_up_proj"] = np.stack([gate, up], -1).reshape(*gate.shape[:2], -1)
        state[e + "down_proj"] = down
        gate, up = g[q + "ffn_gate_exps.bias"], g[q + "ffn_up_exps.bias"]
        state[e + "gate_up_proj_bias"] = np.stack([gate, up], -1).reshape(len(gate), -1)
        state[e + "down_proj_bias"] = g[q + "ffn_down_exps.bias"]
    state = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in state.items()}
    found = model.load_state_dict(state, strict=False)
    assert not found.unexpected_keys and not found.missing_keys, found
    return model


@torch.no_grad()
def prompt_reference(model, tok, text, n_greedy=32):
    ids = tok.encode(text, add_special_tokens=False).ids
    logits = model(torch.tensor([ids])).logits[0]
    top, which = logits.topk(10)
    greedy, margins, all_ids = [], [], list(ids)
    for _ in range(n_greedy):
        best, at = model(torch.tensor([all_ids])).logits[0, -1].topk(2)
        all_ids.append(int(at[0]))
        greedy.append(int(at[0]))
        margins.append(float(best[0] - best[1]))
    return {"text": text, "tokens": ids, "top_ids": which.tolist(), "top_logits": top.tolist(),
            "logsumexp": logits.logsumexp(-1).tolist(),
            "logit_rms": logits.square().mean(-1).sqrt().tolist(),
            "greedy": greedy, "greedy_margin": margins,
            "greedy_text": tok.decode(greedy, skip_special_tokens=False)}


@torch.no_grad()
def heldout_reference(model, data, n, limit):
    """Mean negative log likelihood over whole windows of n held-out tokens."""
    with lzma.open(f"{data}/heldout.xz") as f:
        ids = torch.from_numpy(np.frombuffer(f.read(), "<u2").astype(np.int64))
    rows = ids[:len(ids) // n * n].view(-1, n)[:limit]
    losses = []
    for row in rows:
        logp = model(row[None, :]).logits[0, :-1].log_softmax(-1)
        losses.append(-logp.gather(-1, row[1:, None])[:, 0])
    return rows, torch.stack(losses)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--model", required=True)
    p.add_argument("--data", required=True)
    p.add_argument("--out", required=True)
    p.add_argument("--windows", type=int, default=0, help="held-out windows (0: all)")
    a = p.parse_args()
    shape, weights = shape_of(a.model), export.read(a.model)
    tok = Tokenizer.from_file(f"{a.data}/tokenizer.json")
    model = transformers_model(shape, weights)
    ours = BoxModel(shape).eval()
    export.load(ours, weights)

    rows, losses = heldout_reference(model, a.data, shape.context, a.windows or None)
    with torch.no_grad():
        x, y = model(rows[:1]).logits, ours(rows[:1])[0]
    error = ((x - y).norm() / x.norm()).item()
    print(f"our model against transformers, {shape.context} tokens: relative RMS {error:.1e}")
    assert error < 1e-5

    out = {"what": "float32 logits of transformers' GptOssForCausalLM on the weights dequantised "
                   "from assets/box-model.gguf (tools/train_box_model/reference.py)",
           "prompts": {k: prompt_reference(model, tok, t) for k, t in PROMPTS.items()}}
    passage = rows[0, :512]
    out["passage"] = {"tokens": passage.tolist(), "text": tok.decode(passage.tolist(), False),
                      "mean_nll": losses[0, :511].double().mean().item()}
    mean = losses.double().mean().item()
    out["heldout"] = {"windows": len(rows), "window_tokens": shape.context, "mean_nll": mean,
                      "perplexity": math.exp(mean)}
    with open(a.out, "w", encoding="utf-8") as f:
        json.dump(out, f, ensure_ascii=False)
        f.write("\n")
    print(json.dumps(out["heldout"]))
    for v in out["prompts"].values():
        print(v["text"], "=>", v["greedy_text"], f"(smallest margin {min(v['greedy_margin']):.3f})")


if __name__ == "__main__":
    main()
