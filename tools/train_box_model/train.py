"""Trains the model in the box and writes it as GGUF. One GPU, a few minutes.

    python train.py --data DATA --out OUT --seconds 190      # --toy: a trial on a CPU

OUT/box-model.gguf, OUT/loss.csv, OUT/result.json (perplexities, samples, settings) and
OUT/masters.N.npy (the unrounded weights, in pieces).

The learning rate follows the clock, not the step count, so the run ends on time on any machine.
In the last part every weight is rounded to its GGUF format in the forward pass and the gradient
goes straight through to the unrounded one.
"""
import argparse
import dataclasses
import glob
import json
import lzma
import math
import os
import time

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

import export
from model import BoxModel, FlexAttention, gguf_name, plain_attention
from quant import fake
from shape import Shape

WARMUP_STEPS, WEIGHT_DECAY, BETAS, CLIP = 300, 0.1, (0.9, 0.98), 1.0
BALANCE, DROPOUT = 0.01, 0.1
PROMPTS = ["Once upon a time", "One day, a little fox", "The old man",
           "In a small village by the sea,", "The moon is", '"Where are you going?" asked']
CHAT = ("<|start|>user<|message|>Tell me a story about a robot.<|end|><|start|>assistant"
        "<|channel|>final<|message|>")


class Weights:
    """The model's parameters, each kind of GGUF type in one flat buffer: `master` holds what the
    optimiser moves, the model itself sees `work`, a copy or the rounded values."""

    def __init__(self, model, shape):
        kinds = {}
        for name, p in model.named_parameters():
            kinds.setdefault(shape.tensor_type(gguf_name(name)), []).append(p)
        self.master, self.work, self.grad = {}, {}, {}
        for kind, params in kinds.items():
            flat = torch.cat([p.detach().flatten() for p in params])
            self.master[kind], self.work[kind] = flat.clone(), flat
            self.grad[kind] = torch.zeros_like(flat)
            at = 0
            for p in params:
                p.data = flat[at:at + p.numel()].view(p.shape)
                p.grad = self.grad[kind][at:at + p.numel()].view(p.shape)
                at += p.numel()
            self.master[kind].grad = self.grad[kind]

    def groups(self):
        return [{"params": [m], "weight_decay": 0.0 if kind == "F32" else WEIGHT_DECAY}
                for kind, m in self.master.items()]

    @torch.no_grad()
    def refresh(self, rounded):
        for kind, m in self.master.items():
            if rounded and kind != "F32":
                width = 256 if kind == "Q4_K" else 32
                self.work[kind].copy_(fake(m.view(-1, width), kind).flatten())
            else:
                self.work[kind].copy_(m)

    def clip(self):
        grads = list(self.grad.values())
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        torch._foreach_mul_(grads, (CLIP / (norm + 1e-6)).clamp(max=1.0))

    def zero_grad(self):
        torch._foreach_zero_(list(self.grad.values()))


def repeats(ids, starts, n):
    """True where a token completes n tokens that stood earlier in the same document."""
    document = np.zeros(len(ids), np.uint64)
    document[starts] = 1
    key = np.cumsum(document, dtype=np.uint64)
    for back in range(n):
        past = np.roll(ids, back).astype(np.uint64)
        key = (key * np.uint64(0x9E3779B97F4A7C15) + past + np.uint64(1)) ^ (key >> np.uint64(29))
    _, first = np.unique(key, return_index=True)
    out = np.ones(len(ids), bool)
    out[first] = False
    return out


class Corpus:
    """Random rows; half of them begin at a document, and half of those after its first token.

    With `skip_repeats` of n, tokens that complete a repetition of n tokens are no targets: the
    model reads them but does not learn to run in circles."""

    def __init__(self, path, shape, device, skip_repeats=0):
        with lzma.open(path) as f:
            ids = np.frombuffer(f.read(), "<u2").astype(np.int64)
        end = np.flatnonzero(ids == shape.special("<|endoftext|>")) + 1
        targets = ids.copy()
        if skip_repeats:
            again = repeats(ids, np.concatenate([[0], end[:-1]]), skip_repeats)
            targets[again] = -100
            print(f"{again.mean():.3f} of the tokens are repetitions and no targets", flush=True)
        self.ids, self.targets = (torch.from_numpy(x).to(device) for x in (ids, targets))
        self.starts = torch.from_numpy(np.concatenate([[0], end[:-1]])).to(device)

    def rows(self, batch, n):
        device, last = self.ids.device, len(self.ids) - n - 2
        at = torch.randint(last, (batch,), device=device)
        document = self.starts[torch.randint(len(self.starts), (batch,), device=device)]
        document = document + torch.randint(2, (batch,), device=device)
        at = torch.where(torch.rand(batch, device=device) < 0.5, at, document).clamp(max=last)
        at = at[:, None] + torch.arange(n, device=device)
        return self.ids[at], self.targets[at + 1]


@torch.no_grad()
def heldout_loss(model, ids, n, batch, limit=None):
    """Mean negative log likelihood over windows of n tokens, in the model's own float32."""
    model.eval()
    rows = ids[:len(ids) // n * n].view(-1, n)[:limit]
    total = count = 0
    for part in rows.split(batch):
        logits, _ = model(part)
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), part[:, 1:].flatten(),
                               reduction="sum")
        total, count = total + loss.double().item(), count + part[:, 1:].numel()
    model.train()
    return total / count


@torch.no_grad()
def write_samples(model, tok, shape, device, n_new, temperature=0.7, top_k=40):
    """A text for each prompt; a plain prompt stands behind <|startoftext|>."""
    model.eval()
    out = []
    stops = {shape.special(s) for s in ("<|endoftext|>", "<|return|>", "<|call|>")}
    for prompt in ["<|startoftext|>" + p for p in PROMPTS] + [CHAT]:
        ids = tok.encode(prompt, add_special_tokens=False).ids
        for _ in range(n_new):
            logits, _ = model(torch.tensor([ids], device=device))
            top, which = logits[0, -1].float().topk(top_k)
            pick = torch.multinomial((top / temperature).softmax(-1), 1)
            ids.append(which[pick].item())
            if ids[-1] in stops:
                break
        out.append(tok.decode(ids, skip_special_tokens=False))
    model.train()
    return out


def choose_attention(shape, n, device, check):
    """flex_attention where it works and agrees with the definition, else the definition."""
    if device == "cpu":
        return plain_attention
    try:
        flex = FlexAttention(shape.window, n, device)
        if not check:
            return flex
        run = torch.compile(flex.__call__)
        for window in (0, shape.window):
            def args():
                torch.manual_seed(1)
                dims = [(2, h, n, shape.head_dim)
                        for h in (shape.n_heads, shape.n_kv_heads, shape.n_kv_heads)]
                made = [torch.randn(d, device=device, dtype=torch.bfloat16) for d in dims]
                made.append(torch.randn(shape.n_heads, device=device))
                return [x.requires_grad_() for x in made]

            a, b = args(), args()
            x, y = run(*a, window), plain_attention(*b, window)
            up = torch.randn_like(x)
            x.backward(up)
            y.backward(up)
            for p, q in [(x, y)] + [(i.grad, j.grad) for i, j in zip(a, b)]:
                error = (p.float() - q.float()).norm() / q.float().norm()
                assert error < 2e-2, f"relative error {error:.2e}"
        print("attention: flex", flush=True)
        return flex
    except Exception as e:
        print(f"attention: plain, since flex failed: {e}", flush=True)
        return plain_attention


def save_masters(weights, model, out):
    """The unrounded weights in the order of named_parameters, in pieces of 15 MB."""
    weights.refresh(rounded=False)
    flat = torch.cat([p.detach().flatten() for p in model.parameters()]).cpu().numpy()
    for i in range(0, len(flat), 3_750_000):
        np.save(f"{out}/masters.{i // 3_750_000}.npy", flat[i:i + 3_750_000])


def load_masters(model, folder):
    """The reverse of save_masters."""
    parts = sorted(glob.glob(f"{folder}/masters.*.npy"))
    flat = torch.from_numpy(np.concatenate([np.load(p) for p in parts]))
    parameters = list(model.parameters())
    with torch.no_grad():
        for p, x in zip(parameters, flat.split([p.numel() for p in parameters])):
            p.copy_(x.view(p.shape))


def train(a, shape, device):
    torch.manual_seed(a.seed)
    n, batch = a.tokens, a.batch
    corpus = Corpus(f"{a.data}/corpus.xz", shape, device, a.skip_repeats)
    with lzma.open(f"{a.data}/heldout.xz") as f:
        heldout = torch.from_numpy(np.frombuffer(f.read(), "<u2").astype(np.int64)).to(device)
    model = BoxModel(shape, DROPOUT, choose_attention(shape, n, device, a.check))
    if a.start:
        load_masters(model, a.start)
    model.to(device).train()
    n_params = sum(p.numel() for p in model.parameters())
    weights = Weights(model, shape)
    optimiser = torch.optim.AdamW(weights.groups(), lr=a.lr, betas=BETAS, eps=1e-8,
                                  fused=device != "cpu")
    attend, run = model.attend, torch.compile(model) if a.compile else model

    def step():
        x, y = corpus.rows(batch, n)
        with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
            logits, balance = run(x)
            loss = F.cross_entropy(logits.flatten(0, 1).float(), y.flatten())
        (loss + BALANCE * balance).backward()
        return loss.detach(), balance.detach()

    def quick():  # the definition of attention, so that no second program is compiled
        model.attend = plain_attention
        with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
            value = heldout_loss(model, heldout, n, 16, a.quick_rows)
        model.attend = attend
        return value

    print(f"{n_params / 1e6:.2f} M parameters; first steps", flush=True)
    t0 = time.time()
    try:
        step()
    except Exception as e:
        print(f"not compiled, since: {e}", flush=True)
        run = model
        model.attend = attend = plain_attention
    step()
    weights.zero_grad()
    quick()
    print(f"compiled in {time.time() - t0:.0f} s", flush=True)

    log = open(f"{a.out}/loss.csv", "w", encoding="utf-8")
    print("step,seconds,tokens,lr,train_loss,heldout_loss,rounded", file=log)
    t0 = time.time()
    done, i, rounded, saved, checked, losses = 0.0, 0, False, 0.0, 0.0, []
    while done < 1.0:
        lr = a.lr * min(1.0, (i + 1) / WARMUP_STEPS) * (1.0 - done)
        for g in optimiser.param_groups:
            g["lr"] = lr
        loss, balance = step()
        weights.clip()
        optimiser.step()
        weights.refresh(rounded)
        weights.zero_grad()
        losses.append(loss)
        i += 1
        if i % a.log_every:
            continue
        mean = torch.stack(losses).mean().item()  # waits for the device
        losses.clear()
        if not math.isfinite(mean):
            raise SystemExit(f"the loss is {mean} at step {i}")
        seconds = time.time() - t0
        done = seconds / a.seconds
        if not rounded and done >= 1.0 - a.rounded_part:
            rounded = True
            weights.refresh(rounded)
        held = ""
        if seconds - checked >= a.seconds / 24 or done >= 1.0:
            checked, held = seconds, f"{quick():.4f}"
            print(f"{seconds:6.1f} s  step {i}  {i * batch * n / 1e6:.1f} M tokens  lr {lr:.1e}  "
                  f"train {mean:.4f}  held out {held}  balance {balance.item():.3f}"
                  f"{'  rounded' if rounded else ''}", flush=True)
        print(f"{i},{seconds:.2f},{i * batch * n},{lr:.3e},{mean:.4f},{held},{int(rounded)}",
              file=log, flush=True)
        if seconds - saved > 60:
            saved = seconds
            save_masters(weights, model, a.out)
            weights.refresh(rounded)
    log.close()
    model.attend = plain_attention
    return model, weights, heldout, {"parameters": n_params, "steps": i, "tokens": i * batch * n,
                                     "seconds": time.time() - t0}


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--data", required=True)
    p.add_argument("--out", required=True)
    p.add_argument("--seconds", type=float, default=190)
    p.add_argument("--lr", type=float, default=3e-3, help="at the peak")
    p.add_argument("--start", help="go on from the masters.N.npy in this folder")
    p.add_argument("--skip-repeats", type=int, default=0, metavar="N",
                   help="do not train on tokens that repeat N tokens of their document")
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--tokens", type=int, default=1024)
    p.add_argument("--rounded-part", type=float, default=0.3)
    p.add_argument("--log-every", type=int, default=20)
    p.add_argument("--quick-rows", type=int, default=48)
    p.add_argument("--seed", type=int, default=7)
    p.add_argument("--no-compile", dest="compile", action="store_false")
    p.add_argument("--sample-tokens", type=int, default=200)
    p.add_argument("--no-check", dest="check", action="store_false",
                   help="trust flex_attention without comparing it with the definition")
    p.add_argument("--toy", action="store_true", help="two small layers, to try the script")
    a = p.parse_args()
    os.makedirs(a.out, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = dataclasses.replace(Shape(), n_layers=2) if a.toy else Shape()
    model, weights, heldout, result = train(a, shape, device)

    save_masters(weights, model, a.out)  # leaves the unrounded weights in the model
    torch.set_float32_matmul_precision("highest")
    rows = a.quick_rows if a.toy else None
    result["heldout_float"] = heldout_loss(model, heldout, shape.context, 8, rows)
    export.write(f"{a.out}/box-model.gguf", model.cpu(), shape, f"{a.data}/tokenizer.json")
    model.to(device)
    weights = export.read(f"{a.out}/box-model.gguf")
    export.load(model, weights)
    result["heldout_rounded"] = heldout_loss(model, heldout, shape.context, 8, rows)
    for k in ("float", "rounded"):
        result[f"perplexity_{k}"] = math.exp(result[f"heldout_{k}"])
    tok = Tokenizer.from_file(f"{a.data}/tokenizer.json")
    result["samples"] = write_samples(model, tok, shape, device, a.sample_tokens)
    result["settings"] = {**vars(a), "warmup_steps": WARMUP_STEPS,
                          "weight_decay": WEIGHT_DECAY, "betas": BETAS, "clip": CLIP,
                          "balance": BALANCE, "dropout": DROPOUT, "torch": torch.__version__,
                          "device": torch.cuda.get_device_name() if device == "cuda" else "cpu"}
    result["shape"] = dataclasses.asdict(shape)
    with open(f"{a.out}/result.json", "w", encoding="utf-8") as f:
        json.dump(result, f, indent=1)
    for s in result.pop("samples"):
        print("---\n" + s)
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
