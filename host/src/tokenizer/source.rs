//! What a file says about its vocabulary, and the checks that turn it into one that can be trusted:
//! after [`check`] every id that is named exists, every array has its length, every merge has two sides.

use crate::gguf::quoted;
use crate::{Error, Gguf, Result};

const MODEL: &str = "tokenizer.ggml.model";
pub(super) const PRE: &str = "tokenizer.ggml.pre";
pub(super) const TOKENS: &str = "tokenizer.ggml.tokens";
const KINDS: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
pub(super) const MERGES: &str = "tokenizer.ggml.merges";
pub(super) const BOS: &str = "tokenizer.ggml.bos_token_id";
const EOS: &str = "tokenizer.ggml.eos_token_id";
const EOT: &str = "tokenizer.ggml.eot_token_id";
const EOM: &str = "tokenizer.ggml.eom_token_id";
const UNKNOWN: &str = "tokenizer.ggml.unknown_token_id";
const PADDING: &str = "tokenizer.ggml.padding_token_id";
const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
const ADD_SPACE_PREFIX: &str = "tokenizer.ggml.add_space_prefix";

/// The metadata of a vocabulary, as a file states it and before anything is believed.
#[derive(Clone, Debug, Default)]
pub struct VocabSource<'a> {
    /// What errors call the source: usually the file's path.
    pub origin: &'a str,
    /// `tokenizer.ggml.model`: `gpt2` (byte-level BPE) or `llama` (SentencePiece).
    pub model: &'a str,
    /// `tokenizer.ggml.pre`: how byte-level BPE cuts text into words; a `llama` model has no use
    /// for it.
    pub pre: Option<&'a str>,
    /// `tokenizer.ggml.tokens`: [n_tokens], spelled as the model's family spells them.
    pub tokens: Vec<&'a str>,
    /// `tokenizer.ggml.token_type`: [n_tokens], the numbers of [`TokenKind`].
    pub kinds: Option<Vec<i32>>,
    /// `tokenizer.ggml.scores`: [n_tokens]; SentencePiece joins the best first.
    pub scores: Option<Vec<f32>>,
    /// `tokenizer.ggml.merges`: `left right`, the first to be joined first; byte-level BPE only.
    pub merges: Vec<&'a str>,
    /// `tokenizer.ggml.bos_token_id`: begins a text.
    pub bos: Option<u32>,
    /// `tokenizer.ggml.eos_token_id`: ends a text.
    pub eos: Option<u32>,
    /// `tokenizer.ggml.eot_token_id`: ends a turn.
    pub eot: Option<u32>,
    /// `tokenizer.ggml.eom_token_id`: ends a message that waits for a tool.
    pub eom: Option<u32>,
    /// `tokenizer.ggml.unknown_token_id`: stands for what can't be spelled.
    pub unknown: Option<u32>,
    /// `tokenizer.ggml.padding_token_id`: fills a batch.
    pub padding: Option<u32>,
    /// `tokenizer.ggml.add_bos_token`: whether a prompt begins with `bos`.
    pub add_bos: Option<bool>,
    /// `tokenizer.ggml.add_space_prefix`: whether SentencePiece reads a text as if a space stood
    /// before it.
    pub add_space_prefix: Option<bool>,
}

impl<'a> VocabSource<'a> {
    /// What a file says.
    pub fn from_gguf(gguf: &'a Gguf) -> Result<VocabSource<'a>> {
        Ok(VocabSource {
            origin: gguf.name(),
            model: gguf.require_str(MODEL)?,
            pre: gguf.str(PRE)?,
            tokens: gguf.require_strings(TOKENS)?.iter().collect(),
            kinds: gguf.i32s(KINDS)?.map(|kinds| kinds.iter().collect()),
            scores: gguf.f32s(SCORES)?.map(|scores| scores.iter().collect()),
            merges: gguf.strings(MERGES)?.map_or_else(Vec::new, |merges| merges.iter().collect()),
            bos: gguf.u32(BOS)?,
            eos: gguf.u32(EOS)?,
            eot: gguf.u32(EOT)?,
            eom: gguf.u32(EOM)?,
            unknown: gguf.u32(UNKNOWN)?,
            padding: gguf.u32(PADDING)?,
            add_bos: gguf.bool(ADD_BOS)?,
            add_space_prefix: gguf.bool(ADD_SPACE_PREFIX)?,
        })
    }
}

/// What a token is for; the numbers are those of `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// 1: a piece of text.
    Normal,
    /// 2: stands for what the vocabulary can't spell.
    Unknown,
    /// 3: steers the model and is no text.
    Control,
    /// 4: markup that the model's makers added; text to the reader, not to the merges.
    UserDefined,
    /// 5: a reserved place.
    Unused,
    /// 6: one byte, for characters that have no token of their own.
    Byte,
}

impl TokenKind {
    /// Whether user text must never turn into this token.
    pub fn is_special(self) -> bool {
        matches!(self, TokenKind::Control | TokenKind::UserDefined | TokenKind::Unknown)
    }

    fn from_number(number: i32) -> Option<TokenKind> {
        Some(match number {
            // Converters leave 0, "undefined", on ordinary tokens.
            0 | 1 => TokenKind::Normal,
            2 => TokenKind::Unknown,
            3 => TokenKind::Control,
            4 => TokenKind::UserDefined,
            5 => TokenKind::Unused,
            6 => TokenKind::Byte,
            _ => return None,
        })
    }
}

/// The two families of vocabularies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    ByteLevel,
    SentencePiece,
}

/// A vocabulary whose arrays and ids have been checked against each other.
pub(super) struct Vocab<'a> {
    pub family: Family,
    /// [n_tokens]
    pub tokens: Vec<&'a str>,
    /// [n_tokens]
    pub kinds: Vec<TokenKind>,
    /// [n_tokens] for SentencePiece, else empty; never NaN, never -0.
    pub scores: Vec<f32>,
    pub merges: Vec<(&'a str, &'a str)>,
    /// Byte of every token of kind `Byte`.
    pub bytes: Vec<(u32, u8)>,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub eot: Option<u32>,
    pub eom: Option<u32>,
    pub unknown: Option<u32>,
    pub padding: Option<u32>,
}

/// Checks a source; what it yields needs no further checks.
pub(super) fn check<'a>(source: &VocabSource<'a>) -> Result<Vocab<'a>> {
    let family = match source.model {
        "gpt2" => Family::ByteLevel,
        "llama" => Family::SentencePiece,
        other => {
            let expected = "\"gpt2\" or \"llama\"";
            return Err(fault(source, MODEL, None, quote(other), expected));
        }
    };
    let n_tokens = source.tokens.len();
    if n_tokens == 0 || u32::try_from(n_tokens).is_err() {
        let found = format!("{n_tokens} tokens");
        return Err(fault(source, TOKENS, None, found, "1 to 2^32 - 1"));
    }
    let ids = named_ids(source, family)?;
    let kinds = kinds(source, family, &ids)?;
    let bytes = bytes(source, &kinds)?;
    Ok(Vocab {
        family,
        scores: scores(source, family, n_tokens)?,
        merges: merges(source)?,
        tokens: source.tokens.clone(),
        kinds,
        bytes,
        bos: ids.bos,
        eos: ids.eos,
        eot: ids.eot,
        eom: ids.eom,
        unknown: ids.unknown,
        padding: ids.padding,
    })
}

struct NamedIds {
    bos: Option<u32>,
    eos: Option<u32>,
    eot: Option<u32>,
    eom: Option<u32>,
    unknown: Option<u32>,
    padding: Option<u32>,
}

fn named_ids(source: &VocabSource, family: Family) -> Result<NamedIds> {
    let n_tokens = source.tokens.len();
    let inside = |key: &'static str, id: Option<u32>| match id {
        Some(id) if id as usize >= n_tokens => {
            Err(fault(source, key, None, id.to_string(), &format!("an id below {n_tokens}")))
        }
        id => Ok(id),
    };
    // SentencePiece's own ids, where the file names none and the spelling agrees.
    let usual = |id: u32, spelling: &str| {
        let agrees = source.tokens.get(id as usize).is_some_and(|token| *token == spelling);
        (family == Family::SentencePiece && agrees).then_some(id)
    };
    Ok(NamedIds {
        bos: inside(BOS, source.bos)?.or_else(|| usual(1, "<s>")),
        eos: inside(EOS, source.eos)?.or_else(|| usual(2, "</s>")),
        eot: inside(EOT, source.eot)?,
        eom: inside(EOM, source.eom)?,
        unknown: inside(UNKNOWN, source.unknown)?.or_else(|| usual(0, "<unk>")),
        padding: inside(PADDING, source.padding)?,
    })
}

fn kinds(source: &VocabSource, family: Family, ids: &NamedIds) -> Result<Vec<TokenKind>> {
    let tokens = &source.tokens;
    let mut kinds = match &source.kinds {
        None => vec![TokenKind::Normal; tokens.len()],
        Some(numbers) => {
            same_length(source, KINDS, numbers.len(), tokens.len())?;
            let kind = |(index, number): (usize, &i32)| {
                TokenKind::from_number(*number).ok_or_else(|| {
                    fault(source, KINDS, Some(index), number.to_string(), "a number from 0 to 6")
                })
            };
            numbers.iter().enumerate().map(kind).collect::<Result<_>>()?
        }
    };
    if source.kinds.is_none() && family == Family::SentencePiece {
        for (kind, token) in kinds.iter_mut().zip(tokens) {
            if byte_of(token).is_some() {
                *kind = TokenKind::Byte;
            }
        }
        if let Some(unknown) = ids.unknown {
            kinds[unknown as usize] = TokenKind::Unknown;
        }
    }
    // Old converters left these as ordinary tokens; user text could then end a turn. Nor may one stand
    // for what can't be spelled.
    for id in [ids.bos, ids.eos, ids.eot, ids.eom].into_iter().flatten() {
        if matches!(kinds[id as usize], TokenKind::Normal | TokenKind::Unknown) {
            kinds[id as usize] = TokenKind::Control;
        }
    }
    Ok(kinds)
}

fn bytes(source: &VocabSource, kinds: &[TokenKind]) -> Result<Vec<(u32, u8)>> {
    let mut bytes = Vec::new();
    for (index, (token, kind)) in source.tokens.iter().zip(kinds).enumerate() {
        if *kind == TokenKind::Byte {
            let byte = byte_of(token).ok_or_else(|| {
                fault(source, TOKENS, Some(index), quote(token), "<0x00> to <0xFF> (a byte token)")
            })?;
            bytes.push((index as u32, byte));
        }
    }
    Ok(bytes)
}

fn scores(source: &VocabSource, family: Family, n_tokens: usize) -> Result<Vec<f32>> {
    if family == Family::ByteLevel {
        return Ok(Vec::new());
    }
    let Some(scores) = &source.scores else {
        return Err(fault(source, SCORES, None, "nothing".into(), "a score for every token"));
    };
    same_length(source, SCORES, scores.len(), n_tokens)?;
    if let Some(index) = scores.iter().position(|score| score.is_nan()) {
        return Err(fault(source, SCORES, Some(index), "NaN".into(), "a number"));
    }
    // -0 and 0 are the same score, and must compare as such.
    Ok(scores.iter().map(|score| score + 0.0).collect())
}

fn merges<'a>(source: &VocabSource<'a>) -> Result<Vec<(&'a str, &'a str)>> {
    if u32::try_from(source.merges.len()).is_err() {
        let found = format!("{} merges", source.merges.len());
        return Err(fault(source, MERGES, None, found, "fewer than 2^32"));
    }
    let pair = |(index, merge): (usize, &&'a str)| match merge.split_once(' ') {
        Some((left, right)) if !left.is_empty() && !right.is_empty() => Ok((left, right)),
        _ => Err(fault(source, MERGES, Some(index), quote(merge), "two tokens and a space")),
    };
    source.merges.iter().enumerate().map(pair).collect()
}

fn same_length(
    source: &VocabSource,
    key: &'static str,
    found: usize,
    n_tokens: usize,
) -> Result<()> {
    if found == n_tokens {
        return Ok(());
    }
    let expected = format!("{n_tokens}, one for each token");
    Err(fault(source, key, None, format!("{found} entries"), &expected))
}

/// The byte that `<0xNN>` spells.
fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let hex = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    if hex { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// An error about one key of the source, and one entry of it where there is an index.
pub(super) fn fault(
    source: &VocabSource,
    key: &'static str,
    index: Option<usize>,
    found: String,
    expected: &str,
) -> Error {
    Error::Vocabulary {
        origin: source.origin.to_owned(),
        key,
        index,
        found,
        expected: expected.to_owned(),
    }
}

/// Text from a file, for a message.
pub(super) fn quote(text: &str) -> String {
    format!("\"{}\"", quoted(text))
}
