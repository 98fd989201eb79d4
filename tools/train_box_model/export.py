"""The GGUF file of the model: metadata as a gpt-oss file has it, weights packed by quant.py."""
import json

import gguf
import numpy as np
import torch

from model import gguf_name
from quant import pack
from shape import SPECIALS

CHAT_TEMPLATE = (
    "{%- for m in messages -%}<|start|>{{ m.role }}"
    "{%- if m.role == 'assistant' -%}<|channel|>final{%- endif -%}"
    "<|message|>{{ m.content }}<|end|>{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|start|>assistant{%- endif -%}")


def write(path, model, shape, tokenizer_json):
    """Writes the file; `model` holds the unrounded weights."""
    w = gguf.GGUFWriter(path, "gpt-oss")
    w.add_name("ironwarp box model")
    w.add_description("An 11-million-parameter gpt-oss that writes simple stories; see "
                      "docs/box-model.md of ironwarp")
    w.add_license("Apache-2.0")
    w.add_languages(["en"])
    w.add_size_label("8x1.3M")
    w.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_M)
    w.add_quantization_version(gguf.GGML_QUANT_VERSION)
    w.add_block_count(shape.n_layers)
    w.add_context_length(shape.context)
    w.add_embedding_length(shape.d_model)
    w.add_feed_forward_length(shape.d_expert)
    w.add_expert_feed_forward_length(shape.d_expert)
    w.add_expert_count(shape.n_experts)
    w.add_expert_used_count(shape.n_active)
    w.add_head_count(shape.n_heads)
    w.add_head_count_kv(shape.n_kv_heads)
    w.add_key_length(shape.head_dim)
    w.add_value_length(shape.head_dim)
    w.add_sliding_window(shape.window)
    w.add_layer_norm_rms_eps(shape.rms_eps)
    w.add_vocab_size(shape.n_vocab)
    w.add_rope_freq_base(shape.rope_base)
    w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    w.add_rope_scaling_factor(shape.yarn_factor)
    w.add_rope_scaling_orig_ctx_len(shape.yarn_context)
    add_tokenizer(w, shape, tokenizer_json)
    for name, p in model.named_parameters():
        name = gguf_name(name)
        kind = shape.tensor_type(name)
        w.add_tensor(name, pack(p, kind), raw_dtype=gguf.GGMLQuantizationType[kind])
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def add_tokenizer(w, shape, path):
    with open(path, encoding="utf-8") as f:
        bpe = json.load(f)["model"]
    n_plain = shape.n_vocab - len(SPECIALS)
    tokens = [None] * n_plain + SPECIALS
    for token, i in bpe["vocab"].items():
        if i < n_plain:
            tokens[i] = token
    merges = [m if isinstance(m, str) else " ".join(m) for m in bpe["merges"]]
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-4o")
    w.add_token_list(tokens)
    w.add_token_types([int(gguf.TokenType.NORMAL)] * n_plain
                      + [int(gguf.TokenType.CONTROL)] * len(SPECIALS))
    w.add_token_merges(merges)
    w.add_bos_token_id(shape.special("<|startoftext|>"))
    w.add_eos_token_id(shape.special("<|endoftext|>"))
    w.add_eot_token_id(shape.special("<|return|>"))
    w.add_pad_token_id(shape.special("<|endoftext|>"))
    w.add_add_bos_token(True)
    w.add_chat_template(CHAT_TEMPLATE)


def read(path):
    """{GGUF name: float32 array} as gguf-py dequantises it."""
    out = {}
    for t in gguf.GGUFReader(path).tensors:
        dims = [int(n) for n in reversed(t.shape)]
        out[t.name] = gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32).reshape(dims)
    return out


def load(model, weights):
    """Puts the tensors of `read` into a BoxModel."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.from_numpy(weights[gguf_name(name)]))
