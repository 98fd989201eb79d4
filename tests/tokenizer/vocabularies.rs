//! The vocabularies of the tests: those of the test data, and small ones made by hand.

use std::io::Read;
use std::path::Path;

use ironwarp::Gguf;
use ironwarp::tokenizer::{Specials, Tokenizer, VocabSource};

/// An unpacked test file.
pub fn unpack(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/tokenizers");
    let path = folder.join(format!("{name}.gz"));
    let packed = std::fs::File::open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut text = String::new();
    flate2::read::GzDecoder::new(packed).read_to_string(&mut text).unwrap();
    text
}

/// A model file of the test data.
pub fn tiny(name: &str) -> Gguf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/tiny");
    Gguf::open(folder.join(format!("{name}.gguf"))).unwrap()
}

/// A vocabulary of byte-level BPE that the tests own: one token a line, a tab before a control token,
/// `left right` the token that the next merge makes, else a single byte.
#[derive(Clone, Default)]
pub struct Words {
    pub pre: &'static str,
    pub tokens: Vec<String>,
    pub kinds: Vec<i32>,
    pub merges: Vec<String>,
}

impl Words {
    pub fn unpack(name: &str, pre: &'static str) -> Words {
        let mut words = Words { pre, ..Words::default() };
        for line in unpack(&format!("{name}.vocab")).lines() {
            match line.strip_prefix('\t') {
                Some(control) => words.token(control, 3),
                None if line.contains(' ') => words.merge(line),
                None => words.token(line, 1),
            }
        }
        words
    }

    pub fn token(&mut self, spelling: &str, kind: i32) {
        self.tokens.push(spelling.to_owned());
        self.kinds.push(kind);
    }

    pub fn merge(&mut self, pair: &str) {
        self.token(&pair.replacen(' ', "", 1), 1);
        self.merges.push(pair.to_owned());
    }

    /// The printable ASCII bytes, for vocabularies made by hand.
    pub fn ascii(pre: &'static str) -> Words {
        let mut words = Words { pre, ..Words::default() };
        for byte in b'!'..=b'~' {
            words.token(&char::from(byte).to_string(), 1);
        }
        words.token("Ġ", 1);
        words
    }

    pub fn id(&self, spelling: &str) -> u32 {
        self.tokens.iter().position(|token| token == spelling).unwrap() as u32
    }

    pub fn source(&self) -> VocabSource<'_> {
        VocabSource {
            origin: "test.gguf",
            model: "gpt2",
            pre: Some(self.pre),
            tokens: self.tokens.iter().map(String::as_str).collect(),
            kinds: Some(self.kinds.clone()),
            merges: self.merges.iter().map(String::as_str).collect(),
            ..VocabSource::default()
        }
    }

    pub fn build(&self) -> Tokenizer {
        Tokenizer::new(&self.source()).unwrap()
    }
}

/// A SentencePiece vocabulary that the tests own.
#[derive(Clone)]
pub struct Pieces {
    pub tokens: Vec<String>,
    pub kinds: Vec<i32>,
    pub scores: Vec<f32>,
}

impl Pieces {
    /// The vocabulary of a file in the test data.
    pub fn open() -> Pieces {
        let gguf = tiny("llama-256-q2_k");
        let source = VocabSource::from_gguf(&gguf).unwrap();
        Pieces {
            tokens: source.tokens.iter().map(|&token| token.to_owned()).collect(),
            kinds: source.kinds.unwrap(),
            scores: source.scores.unwrap(),
        }
    }

    /// `<unk>`, `<s>`, `</s>` and the pieces given.
    pub fn by_hand(pieces: &[(&str, f32)]) -> Pieces {
        let mut made = Pieces { tokens: Vec::new(), kinds: Vec::new(), scores: Vec::new() };
        for (token, kind) in [("<unk>", 2), ("<s>", 3), ("</s>", 3)] {
            made.push(token, kind, 0.0);
        }
        for (token, score) in pieces {
            made.push(token, 1, *score);
        }
        made
    }

    pub fn push(&mut self, token: &str, kind: i32, score: f32) {
        self.tokens.push(token.to_owned());
        self.kinds.push(kind);
        self.scores.push(score);
    }

    pub fn source(&self) -> VocabSource<'_> {
        VocabSource {
            origin: "test.gguf",
            model: "llama",
            pre: Some("default"),
            tokens: self.tokens.iter().map(String::as_str).collect(),
            kinds: Some(self.kinds.clone()),
            scores: Some(self.scores.clone()),
            ..VocabSource::default()
        }
    }

    pub fn build(&self) -> Tokenizer {
        Tokenizer::new(&self.source()).unwrap()
    }

    pub fn spellings(&self, text: &str, specials: Specials) -> Vec<&str> {
        let ids = self.build().encode(text, specials).unwrap();
        ids.iter().map(|id| self.tokens[*id as usize].as_str()).collect()
    }
}
