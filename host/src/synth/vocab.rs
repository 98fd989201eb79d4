//! A byte-level BPE vocabulary that is valid and has the ids of the real one where they matter:
//! the 256 bytes, a few merges, unused tokens to fill up, and the special tokens at the end.

use super::shape::{Arch, Shape};

/// What goes into `tokenizer.ggml.*`.
pub(super) struct Vocab {
    pub(super) tokens: Vec<String>,
    pub(super) types: Vec<i32>,
    pub(super) merges: Vec<String>,
}

const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const UNUSED: i32 = 5;

/// The fewest tokens that a vocabulary can have: the bytes and the special ones.
pub(super) fn least(arch: Arch) -> u32 {
    256 + named(arch).len() as u32
}

impl Vocab {
    pub(super) fn new(shape: &Shape) -> Vocab {
        let n_vocab = shape.n_vocab as usize;
        let special = special(shape);
        let n_normal = n_vocab - special.len();

        let mut tokens: Vec<String> = bytes().map(String::from).collect();
        let mut merges = Vec::new();
        for merge in MERGES.lines().take(n_normal - tokens.len()) {
            tokens.push(merge.replace(' ', ""));
            merges.push(merge.to_string());
        }
        let mut types = vec![NORMAL; tokens.len()];
        tokens.extend((tokens.len()..n_normal).map(|id| format!("[unused{id}]")));
        types.resize(n_normal, UNUSED);
        tokens.extend(special);
        types.resize(n_vocab, CONTROL);
        Vocab { tokens, types, merges }
    }

    /// The id of a special token.
    pub(super) fn id(&self, special: &str) -> Option<u32> {
        self.tokens.iter().rposition(|token| token == special).map(|id| id as u32)
    }
}

/// The 256 bytes in GPT-2's order, each as a printable character.
fn bytes() -> impl Iterator<Item = char> {
    let printable = ('!'..='~').chain('¡'..='¬').chain('®'..='ÿ');
    printable.chain('\u{100}'..='\u{143}')
}

/// The special tokens that a chat needs, for vocabularies smaller than the real one.
fn named(arch: Arch) -> &'static [&'static str] {
    match arch {
        Arch::GptOss => &[
            "<|startoftext|>",
            "<|endoftext|>",
            "<|return|>",
            "<|constrain|>",
            "<|channel|>",
            "<|start|>",
            "<|end|>",
            "<|message|>",
            "<|call|>",
        ],
        Arch::Gpt2 => &["<|endoftext|>"],
        Arch::Llama => &[
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eom_id|>",
            "<|eot_id|>",
        ],
    }
}

/// The special tokens, the last of the vocabulary: all of them where it has its real size.
fn special(shape: &Shape) -> Vec<String> {
    let real = shape.n_vocab == shape.real_vocab();
    match shape.arch {
        Arch::GptOss if real => (199_998..201_088)
            .map(|id| match id {
                199_998 => "<|startoftext|>".into(),
                199_999 => "<|endoftext|>".into(),
                200_002 => "<|return|>".into(),
                200_003 => "<|constrain|>".into(),
                200_005 => "<|channel|>".into(),
                200_006 => "<|start|>".into(),
                200_007 => "<|end|>".into(),
                200_008 => "<|message|>".into(),
                200_012 => "<|call|>".into(),
                200_018 => "<|endofprompt|>".into(),
                _ => format!("<|reserved_{id}|>"),
            })
            .collect(),
        Arch::Llama if real => {
            let mut reserved = 0..;
            (128_000..128_256)
                .map(|id| match id {
                    128_000 => "<|begin_of_text|>".into(),
                    128_001 => "<|end_of_text|>".into(),
                    128_004 => "<|finetune_right_pad_id|>".into(),
                    128_006 => "<|start_header_id|>".into(),
                    128_007 => "<|end_header_id|>".into(),
                    128_008 => "<|eom_id|>".into(),
                    128_009 => "<|eot_id|>".into(),
                    128_010 => "<|python_tag|>".into(),
                    _ => {
                        let n = reserved.next().unwrap_or(id);
                        format!("<|reserved_special_token_{n}|>")
                    }
                })
                .collect()
        }
        arch => named(arch).iter().map(|token| token.to_string()).collect(),
    }
}

/// A beginning of English: both parts of each merge are bytes or products of merges above it.
const MERGES: &str = "\
Ġ t
Ġ a
h e
i n
r e
o n
Ġt he
e r
Ġ s
a t
Ġ w
Ġ o
e n
Ġ c
i t
i s
a n
o r
e s
Ġ b
e d
Ġ f
in g
Ġ p
o u
Ġa n
a l
a r
Ġt o
Ġ m
Ġo f
Ġ in
Ġ d
Ġ h
Ġan d
i c
a s
l e
Ġt h
i on
o m
l l
en t
Ġ n
Ġ l
s t
Ġ re
v e
Ġ e
r o
l y
Ġb e
Ġ g
c t
i d
o t
u t
e t
Ġ is
Ġ on
i m
o w
a y
s e
Ġth at
Ġf or
v er
Ġ he
Ġ it
at ion
it h
Ġ y
Ġy ou
Ġw ith";
