//! Text to tokens and back, from the vocabulary that a model file carries.
//! The one law: text that a user wrote never becomes a control token, unless the caller asks.

mod byte_level;
mod bytes;
mod sentence_piece;
mod source;
mod split;
mod stream;

use std::collections::HashMap;

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};

use byte_level::ByteLevel;
use sentence_piece::SentencePiece;
use source::{Family, Vocab, fault, quote};
use split::PreTokenizer;

pub use source::{TokenKind, VocabSource};
pub use stream::{Decoder, Utf8Stream};

use crate::{Error, Gguf, Result};

/// What to do with the spelling of a special token inside a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Specials {
    /// It is text like any other: for what users wrote.
    Plain,
    /// It is the token: for prompts that a template made.
    Parse,
}

/// Tokens that end a reply, by their spelling; the file's own end tokens come on top.
const STOPS: [&str; 9] = [
    "<|return|>",
    "<|call|>",
    "<|endoftext|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "</s>",
];
/// Ends a reply too, but not beside `<|return|>`: GPT-OSS ends each message of a reply with it.
const MESSAGE_END: &str = "<|end|>";
/// Tokens that end a turn, by their spelling, where the file names none.
const TURN_ENDS: [&str; 4] = ["<|eot_id|>", "<|im_end|>", "<end_of_turn>", MESSAGE_END];

/// A vocabulary, ready to encode and decode.
pub struct Tokenizer {
    family: Encoder,
    /// The tokens' bytes, one behind the other.
    bytes: Vec<u8>,
    /// [n_tokens] where each token's bytes end
    ends: Vec<usize>,
    /// [n_tokens]
    kinds: Vec<TokenKind>,
    specials: AhoCorasick,
    /// The tokens of `specials`' patterns.
    special_ids: Vec<u32>,
    by_spelling: HashMap<Box<str>, u32>,
    bos: Option<u32>,
    eos: Option<u32>,
    eot: Option<u32>,
    unknown: Option<u32>,
    padding: Option<u32>,
    add_bos: bool,
    /// Sorted.
    stops: Vec<u32>,
}

enum Encoder {
    ByteLevel(Box<ByteLevel>),
    SentencePiece(SentencePiece),
}

impl Tokenizer {
    /// Builds the tokenizer of a file.
    pub fn from_gguf(gguf: &Gguf) -> Result<Tokenizer> {
        Tokenizer::new(&VocabSource::from_gguf(gguf)?)
    }

    /// Builds a tokenizer from what a file says about its vocabulary.
    pub fn new(source: &VocabSource) -> Result<Tokenizer> {
        let vocab = source::check(source)?;
        let (family, bos_by_default) = match vocab.family {
            Family::ByteLevel => {
                let pre = byte_level::pre_tokenizer(source)?;
                let encoder = ByteLevel::new(source, &vocab, pre)?;
                (Encoder::ByteLevel(Box::new(encoder)), pre == PreTokenizer::Llama3)
            }
            Family::SentencePiece => {
                let space_prefix = source.add_space_prefix.unwrap_or(true);
                (Encoder::SentencePiece(SentencePiece::new(&vocab, space_prefix)), true)
            }
        };
        if source.add_bos == Some(true) && vocab.bos.is_none() {
            let expected = "an id, since add_bos_token is true";
            return Err(fault(source, source::BOS, None, "nothing".into(), expected));
        }
        let (bytes, ends) = all_bytes(&vocab);
        let (special_ids, by_spelling) = specials(&vocab);
        let patterns = special_ids.iter().map(|id| vocab.tokens[*id as usize]);
        let specials = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            // What is chosen for few patterns takes up to 1 KiB for each byte of them.
            .kind(Some(AhoCorasickKind::ContiguousNFA))
            .build(patterns)
            .map_err(|error| {
                let found = quote(&error.to_string());
                fault(source, source::TOKENS, None, found, "special tokens that can be searched")
            })?;
        Ok(Tokenizer {
            family,
            bytes,
            ends,
            specials,
            stops: stops(&vocab, &by_spelling),
            eot: vocab
                .eot
                .or_else(|| TURN_ENDS.iter().find_map(|text| by_spelling.get(*text).copied())),
            special_ids,
            by_spelling,
            bos: vocab.bos,
            eos: vocab.eos,
            unknown: vocab.unknown,
            padding: vocab.padding,
            add_bos: vocab.bos.is_some() && source.add_bos.unwrap_or(bos_by_default),
            kinds: vocab.kinds,
        })
    }

    /// The tokens of a text, without a `bos` before it. A character that the vocabulary can't
    /// spell becomes U+FFFD or the unknown token; an error is left only where there is neither.
    pub fn encode(&self, text: &str, specials: Specials) -> Result<Vec<u32>> {
        let mut ids = Vec::with_capacity(text.len() / 3 + 1);
        let mut start = 0;
        if specials == Specials::Parse {
            for special in self.specials.find_iter(text) {
                self.encode_plain(&text[start..special.start()], start, &mut ids)?;
                ids.push(self.special_ids[special.pattern().as_usize()]);
                start = special.end();
            }
        }
        self.encode_plain(&text[start..], start, &mut ids)?;
        Ok(ids)
    }

    fn encode_plain(&self, text: &str, offset: usize, ids: &mut Vec<u32>) -> Result<()> {
        let encoded = match &self.family {
            Encoder::ByteLevel(encoder) => encoder.encode(text, ids),
            Encoder::SentencePiece(encoder) => encoder.encode(text, ids),
        };
        encoded.map_err(|error| match error {
            Error::Unspellable { character, at } => {
                Error::Unspellable { character, at: at + offset }
            }
            other => other,
        })
    }

    /// The text of tokens that begin a text, special tokens as they are spelled. Bytes that are
    /// not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let (mut decoder, mut text) = (Decoder::at_start(self), String::new());
        for id in ids {
            decoder.push_to(self, *id, &mut text)?;
        }
        text.push_str(&decoder.finish());
        Ok(text)
    }

    /// The bytes of one token; part of a character, maybe.
    pub fn token_bytes(&self, id: u32) -> Result<&[u8]> {
        let index = self.index(id)?;
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        Ok(&self.bytes[start..self.ends[index]])
    }

    /// What a token is for.
    pub fn kind(&self, id: u32) -> Result<TokenKind> {
        Ok(self.kinds[self.index(id)?])
    }

    /// The special token that is spelled so.
    pub fn special(&self, spelling: &str) -> Option<u32> {
        self.by_spelling.get(spelling).copied()
    }

    /// The special tokens and how they are spelled, in order of their ids.
    pub fn specials(&self) -> impl Iterator<Item = (&str, u32)> {
        self.special_ids.iter().map(|&id| {
            let start = (id as usize).checked_sub(1).map_or(0, |before| self.ends[before]);
            // A special token's bytes are its spelling.
            (std::str::from_utf8(&self.bytes[start..self.ends[id as usize]]).unwrap_or(""), id)
        })
    }

    /// Whether a token ends a reply.
    pub fn is_stop(&self, id: u32) -> bool {
        self.stops.binary_search(&id).is_ok()
    }

    /// The tokens that end a reply, sorted.
    pub fn stops(&self) -> &[u32] {
        &self.stops
    }

    /// How many tokens there are; ids are below it.
    pub fn n_tokens(&self) -> usize {
        self.kinds.len()
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// The token that ends a turn of a conversation.
    pub fn eot(&self) -> Option<u32> {
        self.eot
    }

    /// The token that stands for what can't be spelled.
    pub fn unknown(&self) -> Option<u32> {
        self.unknown
    }

    /// The token that fills a batch.
    pub fn padding(&self) -> Option<u32> {
        self.padding
    }

    /// Whether a prompt begins with [`Tokenizer::bos`]; if so, there is one.
    pub fn add_bos(&self) -> bool {
        self.add_bos
    }

    /// Whether SentencePiece reads a text as if a space stood before it.
    fn space_prefix(&self) -> bool {
        match &self.family {
            Encoder::ByteLevel(_) => false,
            Encoder::SentencePiece(encoder) => encoder.space_prefix(),
        }
    }

    fn index(&self, id: u32) -> Result<usize> {
        let n_tokens = self.n_tokens();
        if (id as usize) < n_tokens {
            Ok(id as usize)
        } else {
            Err(Error::TokenId { id, n_tokens })
        }
    }
}

/// Every token's bytes, one behind the other, and where each ends.
fn all_bytes(vocab: &Vocab) -> (Vec<u8>, Vec<usize>) {
    let mut bytes = Vec::new();
    let mut ends = Vec::with_capacity(vocab.tokens.len());
    let mut single = vocab.bytes.iter().peekable();
    for (id, (token, kind)) in vocab.tokens.iter().zip(&vocab.kinds).enumerate() {
        if let Some((_, byte)) = single.next_if(|(byte_id, _)| *byte_id as usize == id) {
            bytes.push(*byte);
        } else if *kind == TokenKind::Normal {
            match vocab.family {
                Family::ByteLevel => byte_level::token_bytes(token, &mut bytes),
                Family::SentencePiece => sentence_piece::token_bytes(token, &mut bytes),
            }
        } else {
            bytes.extend_from_slice(token.as_bytes());
        }
        ends.push(bytes.len());
    }
    (bytes, ends)
}

/// The special tokens; of those spelled alike the first.
fn specials(vocab: &Vocab) -> (Vec<u32>, HashMap<Box<str>, u32>) {
    let (mut ids, mut by_spelling) = (Vec::new(), HashMap::new());
    for (id, (token, kind)) in vocab.tokens.iter().zip(&vocab.kinds).enumerate() {
        if kind.is_special() && !token.is_empty() && !by_spelling.contains_key(*token) {
            by_spelling.insert(Box::from(*token), id as u32);
            ids.push(id as u32);
        }
    }
    (ids, by_spelling)
}

fn stops(vocab: &Vocab, by_spelling: &HashMap<Box<str>, u32>) -> Vec<u32> {
    let id = |spelling: &str| by_spelling.get(spelling).copied();
    let mut stops: Vec<u32> = STOPS.iter().filter_map(|spelling| id(spelling)).collect();
    stops.extend([vocab.eos, vocab.eot, vocab.eom].into_iter().flatten());
    let message_end = id(MESSAGE_END);
    if id("<|return|>").is_some() {
        stops.retain(|stop| Some(*stop) != message_end);
    } else {
        stops.extend(message_end);
    }
    stops.sort_unstable();
    stops.dedup();
    stops
}
