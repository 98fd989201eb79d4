"""Stories and tokeniser: reads the texts, trains the byte-level BPE, writes what train.py needs.

    python prepare.py --stories simple-stories.txt.xz --alice alice29.txt --out DATA

DATA/tokenizer.json   the tokeniser (Hugging Face format)
DATA/corpus.xz        uint16 token ids of the training text, xz-compressed
DATA/heldout.xz       the same for the held-out 1 % of the stories
DATA/heldout.txt      that text (its length in bytes gives bits per byte)
DATA/info.json        counts
"""
import argparse
import json
import lzma
import os
import random
import re

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from shape import PATTERN, SPECIALS, Shape

NOUNS = ("cat dog puppy girl boy man rabbit robot bird farmer fisherman queen king baker bear "
         "mouse fox teacher sailor inventor grandmother turtle horse doctor painter duck wizard "
         "shepherd dragon squirrel musician gardener frog elephant knight student "
         "clockmaker").split()
THINGS = ("the sun,rain,a volcano,bread,a bicycle,the heart,a river,money,the moon,a bee,"
          "friendship,a library,sleep,a tree,a computer,wind,honesty,ice,a map,music,a school,"
          "a bridge,salt,light,a clock,fire,a seed,the ocean,a horse,kindness,a letter,gravity,"
          "milk,a family,glass,a shadow,iron,an island,history").split(",")
ASK_STORY = ["Tell me a story about {}.", "Write a short story about {}.",
             "Can you tell me a story about {}?", "A story about {}, please."]
ASK_THING = ["What is {}?", "Explain what {} is.", "Tell me about {}."]
# The fixed first message of the harmony format.
SYSTEM = ("You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\n"
          "Current date: {}\n\nReasoning: {}\n\n# Valid channels: analysis, commentary, final. "
          "Channel must be included for every message.")


def plain(text):
    """Typographic quotes and dashes to ASCII: the small vocabulary is not spent on them."""
    for a, b in (("’", "'"), ("‘", "'"), ("“", '"'), ("”", '"'), ("–", "-"), ("—", " - "),
                 ("…", "..."), ("\xa0", " "), ("\x0b", " ")):
        text = text.replace(a, b)
    return re.sub(r"[ \t]+\n", "\n", text).strip()


def distinct(words, n):
    """Share of the n-grams that are not repetitions."""
    grams = [tuple(words[i:i + n]) for i in range(len(words) - n + 1)]
    return len(set(grams)) / max(len(grams), 1)


def is_good(story):
    """Drops the stories in which the teacher model ran in circles, and the ones not in English."""
    words = re.findall(r"\w+", story.lower())
    if len(words) < 20 or sum(ord(c) > 127 for c in story) > 0.01 * len(story):
        return False
    return distinct(words, 6) >= 0.88 and distinct(words, 3) >= 0.72


def read_stories(path):
    with lzma.open(path, "rt", encoding="utf-8") as f:
        every = [plain(s) for s in f.read().split("<|endoftext|>")]
    every = [s for s in every if s]
    return every, [s for s in every if is_good(s)]


def read_alice(path, size=1500):
    """Alice in Wonderland, lines joined, `quotes' made "quotes", in pieces of about `size`."""
    with open(path, encoding="utf-8") as f:
        text = f.read().replace("\r", "").replace("_", "")
    paragraphs = [" ".join(p.split()) for p in re.split(r"\n\s*\n", text)]
    paragraphs = [re.sub(r"`([^`]*?)'(?=[\s,.;:!?)\-]|$)", r'"\1"', p).replace("`", '"')
                  for p in paragraphs if p and not p.startswith("*")]
    pieces, piece = [], ""
    for p in paragraphs:
        piece = f"{piece}\n\n{p}" if piece else p
        if len(piece) >= size:
            pieces.append(piece)
            piece = ""
    return pieces + [piece] * bool(piece)


def conversation(story, rng):
    """The story as the answer of a harmony conversation, or None where no request fits."""
    start = story[:160].lower()
    thing = next((t for t in THINGS if start.startswith(t + " is ")), None)
    noun = next((n for n in NOUNS if re.search(rf"\b{n}\b", start)), None)
    if thing:
        ask = rng.choice(ASK_THING).format(thing)
    elif noun:
        ask = rng.choice(ASK_STORY).format(("an " if noun[0] in "aeiou" else "a ") + noun)
    else:
        return None
    head = ""
    if rng.random() < 0.3:
        date = f"{rng.randint(2025, 2027)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
        system = SYSTEM.format(date, rng.choice(["low", "medium", "high"]))
        head = f"<|start|>system<|message|>{system}<|end|>"
    return (f"{head}<|start|>user<|message|>{ask}<|end|><|start|>assistant<|channel|>final"
            f"<|message|>{story}<|return|>")


def train_tokenizer(texts, shape):
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=shape.n_vocab - len(SPECIALS), show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tok.train_from_iterator(texts, trainer)
    tok.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIALS])
    assert tok.get_vocab_size() == shape.n_vocab
    assert all(tok.token_to_id(s) == shape.special(s) for s in SPECIALS)
    return tok


def encode(tok, texts):
    ids = [np.array(e.ids, np.uint16) for e in tok.encode_batch(texts, add_special_tokens=False)]
    return np.concatenate(ids)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--stories", required=True)
    p.add_argument("--alice", required=True)
    p.add_argument("--out", required=True)
    p.add_argument("--limit", type=int, default=0, help="use only so many stories (for a trial)")
    a = p.parse_args()
    os.makedirs(a.out, exist_ok=True)
    shape, rng = Shape(), random.Random(2026)

    every, stories = read_stories(a.stories)
    rng.shuffle(stories)
    stories = stories[:a.limit] if a.limit else stories
    n_held = len(stories) // 100
    held, stories = stories[:n_held], stories[n_held:]
    alice = read_alice(a.alice)

    sample = [s for s in stories[::3]][:20000] + alice + [SYSTEM.format("2026-01-01", "low")] * 50
    tok = train_tokenizer(sample, shape)
    tok.save(f"{a.out}/tokenizer.json")

    begin, end = SPECIALS[0], SPECIALS[1]
    documents, n_chat = [], 0
    for s in stories:
        chat = conversation(s, rng) if rng.random() < 0.2 else None
        n_chat += chat is not None
        if chat is None:
            documents.append(f"{begin}{s}{end}")
        else:
            documents.append((begin if rng.random() < 0.5 else "") + chat + end)
    documents += [f"{begin}{x}{end}" for x in alice] * 2
    rng.shuffle(documents)
    corpus = encode(tok, documents)
    heldout = encode(tok, [f"{begin}{s}{end}" for s in held])
    for name, ids in (("corpus", corpus), ("heldout", heldout)):
        with lzma.open(f"{a.out}/{name}.xz", "wb", preset=4) as f:
            f.write(ids.astype("<u2").tobytes())
    with open(f"{a.out}/heldout.txt", "w", encoding="utf-8") as f:
        f.write("\n<|endoftext|>\n".join(held))
    info = {"stories_in_source": len(every), "stories_kept": len(stories) + n_held,
            "stories_held_out": n_held, "characters": sum(map(len, stories)),
            "conversations": n_chat, "alice_pieces_twice": len(alice),
            "training_tokens": int(corpus.size), "heldout_tokens": int(heldout.size),
            "heldout_bytes": sum(len(s.encode()) for s in held)}
    with open(f"{a.out}/info.json", "w", encoding="utf-8") as f:
        json.dump(info, f, indent=1)
    print(json.dumps(info, indent=1))


if __name__ == "__main__":
    main()
