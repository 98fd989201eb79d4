//! SentencePiece BPE (Llama 1 and 2, Mistral): no words and no merge list. Of all neighbours whose
//! joint spelling is a token, the pair with the best score is joined, the leftmost of equals.
//! The `tokenizers` crate knows ranks and no scores, hence the merging here.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use super::source::{TokenKind, Vocab};
use crate::{Error, Result};

/// What SentencePiece writes for a space.
const SPACE: char = '▁';

pub(super) struct SentencePiece {
    /// Ordinary tokens only: no text can become a control token.
    pieces: HashMap<Box<str>, Piece>,
    /// Bytes of the longest piece.
    longest: usize,
    /// [256] the tokens for single bytes
    bytes: Box<[Option<u32>; 256]>,
    unknown: Option<u32>,
    space_prefix: bool,
}

#[derive(Clone, Copy)]
struct Piece {
    id: u32,
    score: f32,
}

/// A stretch of the text that is, or may become, a token; `len` 0 once its left neighbour has it.
struct Symbol {
    start: usize,
    len: usize,
    prev: Option<usize>,
    next: Option<usize>,
}

/// Two neighbours that may be joined. It is stale when they have changed, which `len` shows: a
/// symbol only ever grows.
struct Bigram {
    score: f32,
    left: usize,
    right: usize,
    len: usize,
}

impl Ord for Bigram {
    fn cmp(&self, other: &Bigram) -> Ordering {
        self.score.total_cmp(&other.score).then_with(|| other.left.cmp(&self.left))
    }
}

impl PartialOrd for Bigram {
    fn partial_cmp(&self, other: &Bigram) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Bigram {
    fn eq(&self, other: &Bigram) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Bigram {}

impl SentencePiece {
    pub(super) fn new(vocab: &Vocab, space_prefix: bool) -> SentencePiece {
        let mut pieces: HashMap<Box<str>, Piece> = HashMap::with_capacity(vocab.tokens.len());
        for (id, (token, kind)) in vocab.tokens.iter().zip(&vocab.kinds).enumerate() {
            if *kind == TokenKind::Normal && !token.is_empty() {
                // Of tokens spelled alike the first is used.
                let piece = Piece { id: id as u32, score: vocab.scores[id] };
                pieces.entry(Box::from(*token)).or_insert(piece);
            }
        }
        let mut bytes = Box::new([None; 256]);
        for (id, byte) in vocab.bytes.iter().rev() {
            bytes[usize::from(*byte)] = Some(*id);
        }
        let longest = pieces.keys().map(|piece| piece.len()).max().unwrap_or(0);
        // A file may name any token as the unknown one; text never becomes one that steers.
        let steers = |id: &u32| {
            matches!(vocab.kinds[*id as usize], TokenKind::Control | TokenKind::UserDefined)
        };
        let unknown = vocab.unknown.filter(|id| !steers(id));
        SentencePiece { pieces, longest, bytes, unknown, space_prefix }
    }

    /// Whether a text is read as if a space stood before it.
    pub(super) fn space_prefix(&self) -> bool {
        self.space_prefix
    }

    /// Appends the tokens of a text.
    pub(super) fn encode(&self, text: &str, out: &mut Vec<u32>) -> Result<()> {
        let mut escaped = String::with_capacity(text.len() + text.len() / 2 + SPACE.len_utf8());
        if self.space_prefix && !text.is_empty() {
            escaped.push(SPACE);
        }
        escaped.extend(text.chars().map(|char| if char == ' ' { SPACE } else { char }));

        let symbols = self.merge(&escaped);
        let mut last_unknown = false;
        for symbol in symbols.iter().filter(|symbol| symbol.len > 0) {
            let spelling = &escaped[symbol.start..symbol.start + symbol.len];
            if let Some(piece) = self.pieces.get(spelling) {
                out.push(piece.id);
                last_unknown = false;
            } else if spelling.bytes().all(|byte| self.bytes[usize::from(byte)].is_some()) {
                out.extend(spelling.bytes().filter_map(|byte| self.bytes[usize::from(byte)]));
                last_unknown = false;
            } else if let Some(unknown) = self.unknown {
                // A run of what can't be spelled is one unknown.
                if !last_unknown {
                    out.push(unknown);
                }
                last_unknown = true;
            } else {
                // What is no piece was never joined, so it is a single character.
                let prefix = usize::from(self.space_prefix);
                let index = escaped[..symbol.start].chars().count().saturating_sub(prefix);
                let (at, character) = text.char_indices().nth(index).unwrap_or((0, SPACE));
                return Err(Error::Unspellable { character, at });
            }
        }
        Ok(())
    }

    fn merge(&self, text: &str) -> Vec<Symbol> {
        let mut symbols: Vec<Symbol> = text
            .char_indices()
            .enumerate()
            .map(|(index, (start, char))| Symbol {
                start,
                len: char.len_utf8(),
                prev: index.checked_sub(1),
                next: Some(index + 1),
            })
            .collect();
        if let Some(last) = symbols.last_mut() {
            last.next = None;
        }
        let mut queue: BinaryHeap<Bigram> = (1..symbols.len())
            .filter_map(|right| self.bigram(text, &symbols, right - 1, right))
            .collect();
        while let Some(Bigram { left, right, len, .. }) = queue.pop() {
            let stale = symbols[left].len == 0
                || symbols[right].len == 0
                || symbols[left].len + symbols[right].len != len;
            if stale {
                continue;
            }
            let next = symbols[right].next;
            symbols[right].len = 0;
            symbols[left].len = len;
            symbols[left].next = next;
            if let Some(next) = next {
                symbols[next].prev = Some(left);
                queue.extend(self.bigram(text, &symbols, left, next));
            }
            if let Some(prev) = symbols[left].prev {
                queue.extend(self.bigram(text, &symbols, prev, left));
            }
        }
        symbols
    }

    fn bigram(&self, text: &str, symbols: &[Symbol], left: usize, right: usize) -> Option<Bigram> {
        let len = symbols[left].len + symbols[right].len;
        if len > self.longest {
            return None;
        }
        let start = symbols[left].start;
        let piece = self.pieces.get(&text[start..start + len])?;
        Some(Bigram { score: piece.score, left, right, len })
    }
}

/// The bytes of an ordinary token.
pub(super) fn token_bytes(token: &str, out: &mut Vec<u8>) {
    for char in token.chars() {
        let char = if char == SPACE { ' ' } else { char };
        out.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
    }
}
