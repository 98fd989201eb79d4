#!/usr/bin/env python3
"""Writes the seeds of the fuzz targets from the test data: real heads with their arrays cut short and
one small tensor of each kind, blocks of each format as models have them."""

import pathlib
import struct
import sys

ROOT = pathlib.Path(__file__).resolve().parent
TINY = ROOT / "../tests/data/tiny"
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
# GGML id: elements and bytes of a block
BLOCKS = {0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
          10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210),
          30: (1, 2), 39: (32, 17)}
MOST = 24  # elements that an array keeps


class File:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, n):
        self.at += n
        return self.data[self.at - n:self.at]

    def number(self, form):
        return struct.unpack("<" + form, self.take(struct.calcsize(form)))[0]

    def text(self):
        return self.take(self.number("Q"))

    def value(self, kind):
        """The value's bytes, an array cut short."""
        if kind == 8:
            text = self.text()
            return struct.pack("<Q", len(text)) + text
        if kind == 9:
            inner, n = self.number("I"), self.number("Q")
            values = [self.value(inner) for _ in range(n)][:MOST]
            return struct.pack("<IQ", inner, len(values)) + b"".join(values)
        return self.take(SIZES[kind])


def text(value):
    return struct.pack("<Q", len(value)) + value


def shortened(path):
    file = File(path.read_bytes())
    assert file.take(4) == b"GGUF"
    file.number("I")
    n_tensors, n_entries = file.number("Q"), file.number("Q")
    entries = []
    for _ in range(n_entries):
        key, kind = file.text(), file.number("I")
        value = file.value(kind)
        if key.endswith(b"token_id"):
            value = struct.pack("<I", 1)
        entries.append(text(key) + struct.pack("<I", kind) + value)
    kinds, tensors, blocks = set(), [], {}
    infos = []
    for _ in range(n_tensors):
        name, n_dims = file.text(), file.number("I")
        dims = [file.number("Q") for _ in range(n_dims)]
        infos.append((name, dims, file.number("I"), file.number("Q")))
    start = -(-file.at // 32) * 32
    data = b""
    for name, dims, kind, offset in infos:
        elems, size = BLOCKS[kind]
        blocks.setdefault(kind, file.data[start + offset:start + offset + max(2 * size, 64)])
        if kind in kinds and b"token_embd" not in name and b"rope" not in name:
            continue
        kinds.add(kind)
        data += bytes(-len(data) % 32)
        tensors.append(text(name) + struct.pack("<IQQIQ", 2, elems, 2, kind, len(data)))
        data += file.data[start + offset:start + offset + 2 * size]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries))
    head += b"".join(entries + tensors)
    return head + bytes(-len(head) % 32) + data, blocks


def write(target, name, data):
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "corpus") / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


TEXTS = ["Hello world, it's 2024!", "<|start|>system<|message|>x<|end|>", "a  b\n\n\t c", "e\u0301 \u4e16\u754c",
         "\U0001f3f3\ufe0f\u200d\U0001f308", " \u2581x", "</s><s>", "\x00\xff"]
for index, content in enumerate(TEXTS):
    for vocabulary in range(4):
        write("tokenizer", f"text-{vocabulary}-{index}", bytes([vocabulary]) + content.encode())
TEMPLATES = [
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}",
    "{{- bos_token }}{%- if messages[0]['role'] == 'system' %}{%- set s = messages[0]['content']|trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set s = '' %}{%- endif %}{{ s ~ eos_token }}",
    "{% macro m(x) %}{{ x.strip().split('-')[-1] | upper }}{% endmacro %}{% set ns = namespace(n=0) %}"
    "{% for m_ in messages %}{% set ns.n = ns.n + 1 %}{{ m(m_.content) }}{% if loop.last %}{% break %}"
    "{% endif %}{% endfor %}{{ ns.n }}{{ strftime_now('%Y-%m-%d') }}",
    "{{ raise_exception('no ' ~ messages | length) }}{{ {'a': 1}.items() | list | tojson }}",
    "{{ messages | map(attribute='content') | join(', ') }}{{ 'ab'.replace('a', 'b') }}",
]
for index, template in enumerate(TEMPLATES):
    messages = b"\xff\x01Be kind.\xff\x02Hi <|im_end|>\xff\x03"
    write("chat", f"template-{index}", template.encode() + messages)
# A special token as long as a file: what searches for it must not take a table for each of its bytes.
LONG = bytes(33 + (index * index * 7 + index // 3) % 94 for index in range(15000))
ENTRIES = [
    (b"tokenizer.ggml.model", struct.pack("<I", 8) + text(b"gpt2")),
    (b"tokenizer.ggml.tokens", struct.pack("<IIQ", 9, 8, 2) + text(b"a") + text(LONG)),
    (b"tokenizer.ggml.token_type", struct.pack("<IIQ", 9, 5, 2) + struct.pack("<ii", 1, 3)),
]
HEAD = b"GGUF" + struct.pack("<IQQ", 3, 0, len(ENTRIES))
write("tokenizer", "long-special", b"\x04" + HEAD + b"".join(text(key) + rest for key, rest in ENTRIES))
for path in sorted(TINY.glob("*.gguf")):
    file, blocks = shortened(path)
    write("gguf", f"seed-{path.stem}", file)
    write("tokenizer", f"seed-{path.stem}", b"\x04" + file)
    for kind, data in blocks.items():
        write("decode", f"seed-{kind}", bytes([list(BLOCKS).index(kind)]) + data)
