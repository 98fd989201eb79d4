//! Byte-level BPE (GPT-2, GPT-4o, Llama 3): words are spelled in the byte alphabet, and the
//! `tokenizers` crate merges them. Only ordinary tokens are known here, so no user text, and no
//! merge that a file claims, can become a control token.

use std::borrow::Cow;
use std::collections::HashSet;

use tokenizers::Model;
use tokenizers::models::bpe::{BPE, Vocab as Ids};

use super::bytes;
use super::source::{MERGES, PRE, TokenKind, Vocab, VocabSource, fault, quote};
use super::split::{PreTokenizer, Splitter};
use crate::{Error, Result};

pub(super) struct ByteLevel {
    splitter: Splitter,
    merges: BPE,
    /// Which bytes have a token of their own; without one a word that holds the byte can't be
    /// spelled.
    spelled: [bool; 256],
}

/// The cut that a source asks for.
pub(super) fn pre_tokenizer(source: &VocabSource) -> Result<PreTokenizer> {
    let name = source.pre.unwrap_or("default");
    PreTokenizer::named(name)
        .ok_or_else(|| fault(source, PRE, None, quote(name), &PreTokenizer::known()))
}

impl ByteLevel {
    pub(super) fn new(source: &VocabSource, vocab: &Vocab, pre: PreTokenizer) -> Result<ByteLevel> {
        let mut ids = Ids::with_capacity(vocab.tokens.len());
        for (id, (token, kind)) in vocab.tokens.iter().zip(&vocab.kinds).enumerate() {
            // Of tokens spelled alike the first is used.
            if *kind == TokenKind::Normal && !token.is_empty() && !ids.contains_key(*token) {
                ids.insert((*token).to_owned(), id as u32);
            }
        }
        let spelled = std::array::from_fn(|byte| {
            ids.contains_key(bytes::CHARS[byte].encode_utf8(&mut [0; 4]) as &str)
        });
        let merges = usable(&ids, &vocab.merges);
        let merges = BPE::builder()
            .vocab_and_merges(ids, merges)
            // Llama 3's merges don't lead to every token; a word that is a token is taken whole.
            .ignore_merges(pre == PreTokenizer::Llama3)
            // The crate's cache is filled once per thread and never freed.
            .cache_capacity(0)
            .build()
            .map_err(|error| {
                let found = quote(&error.to_string());
                fault(source, MERGES, None, found, "merges that can be carried out")
            })?;
        Ok(ByteLevel { splitter: Splitter::new(pre), merges, spelled })
    }

    /// Appends the tokens of a text.
    pub(super) fn encode(&self, text: &str, out: &mut Vec<u32>) -> Result<()> {
        let text = self.spellable(text)?;
        let mut spelled = String::new();
        self.splitter.split(&text, |word| {
            spelled.clear();
            spelled.extend(word.bytes().map(|byte| bytes::CHARS[usize::from(byte)]));
            // Merging fails only for want of an unknown token that was named, and none was.
            let tokens = self.merges.tokenize(&spelled).expect("no unknown token is named");
            out.extend(tokens.iter().map(|token| token.id));
        });
        Ok(())
    }

    /// The text with U+FFFD for every character that has a byte without a token.
    fn spellable<'t>(&self, text: &'t str) -> Result<Cow<'t, str>> {
        let has_tokens = |text: &str| text.bytes().all(|byte| self.spelled[usize::from(byte)]);
        if has_tokens(text) {
            return Ok(Cow::Borrowed(text));
        }
        let mut spellable = String::with_capacity(text.len());
        for (at, character) in text.char_indices() {
            let end = at + character.len_utf8();
            spellable.push_str(match &text[at..end] {
                whole if has_tokens(whole) => whole,
                _ if has_tokens("\u{fffd}") => "\u{fffd}",
                _ => return Err(Error::Unspellable { character, at }),
            });
        }
        Ok(Cow::Owned(spellable))
    }
}

/// The merges that the vocabulary can carry out, each once: a merge with a token that doesn't
/// exist can't happen, and of two for the same pair the first comes first.
fn usable(ids: &Ids, merges: &[(&str, &str)]) -> Vec<(String, String)> {
    let mut seen = HashSet::with_capacity(merges.len());
    let mut joined = String::new();
    let mut usable = Vec::with_capacity(merges.len());
    for (left, right) in merges {
        joined.clear();
        joined.push_str(left);
        joined.push_str(right);
        let (Some(left_id), Some(right_id)) = (ids.get(*left), ids.get(*right)) else { continue };
        if ids.contains_key(joined.as_str()) && seen.insert((*left_id, *right_id)) {
            usable.push(((*left).to_owned(), (*right).to_owned()));
        }
    }
    usable
}

/// The bytes of an ordinary token: each character is a byte; one from outside the alphabet stands
/// for itself.
pub(super) fn token_bytes(token: &str, out: &mut Vec<u8>) {
    for char in token.chars() {
        match bytes::byte(char) {
            Some(byte) => out.push(byte),
            None => out.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}
