//! Text out of tokens, one at a time: a character's bytes may lie in several tokens, so what is
//! not yet a whole character is held back, and what can never become one is U+FFFD.

use super::{TokenKind, Tokenizer};
use crate::Result;

/// Turns bytes that arrive in pieces into text. All pieces together give what
/// [`String::from_utf8_lossy`] gives for the whole.
#[derive(Clone, Debug, Default)]
pub struct Utf8Stream {
    /// The begin of a character, at most three bytes.
    held: Vec<u8>,
}

impl Utf8Stream {
    /// Takes bytes, and appends the text that is certain by now.
    pub fn push(&mut self, bytes: &[u8], text: &mut String) {
        self.held.extend_from_slice(bytes);
        let mut rest = self.held.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    rest = after;
                    let Some(invalid) = error.error_len() else { break };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &rest[invalid..];
                }
            }
        }
        let done = self.held.len() - rest.len();
        self.held.drain(..done);
    }

    /// Ends the text: a character that was begun is U+FFFD.
    pub fn finish(&mut self, text: &mut String) {
        if !self.held.is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
            self.held.clear();
        }
    }
}

/// Turns tokens into text as they are generated.
#[derive(Clone, Debug, Default)]
pub struct Decoder {
    utf8: Utf8Stream,
    /// The next token's first space is SentencePiece's own, and not the text's.
    drop_space: bool,
}

impl Decoder {
    /// A decoder for tokens that continue a text.
    pub fn new() -> Decoder {
        Decoder::default()
    }

    /// A decoder for tokens that begin a text: the space that SentencePiece puts before it is
    /// dropped.
    pub fn at_start(tokenizer: &Tokenizer) -> Decoder {
        Decoder { utf8: Utf8Stream::default(), drop_space: tokenizer.space_prefix() }
    }

    /// Takes a token of `tokenizer`, and gives the text that is certain by now.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<String> {
        let mut text = String::new();
        self.push_to(tokenizer, id, &mut text)?;
        Ok(text)
    }

    /// Ends the text: U+FFFD if a character was begun, else nothing.
    pub fn finish(&mut self) -> String {
        let mut text = String::new();
        self.utf8.finish(&mut text);
        text
    }

    pub(super) fn push_to(
        &mut self,
        tokenizer: &Tokenizer,
        id: u32,
        text: &mut String,
    ) -> Result<()> {
        let mut bytes = tokenizer.token_bytes(id)?;
        let kind = tokenizer.kind(id)?;
        if self.drop_space && kind == TokenKind::Normal {
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
        }
        // Text behind a special token was encoded with a prefix of its own.
        self.drop_space =
            tokenizer.space_prefix() && matches!(kind, TokenKind::Control | TokenKind::UserDefined);
        self.utf8.push(bytes, text);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_pieces(bytes: &[u8], cut: impl Fn(usize) -> bool) -> String {
        let (mut stream, mut text, mut start) = (Utf8Stream::default(), String::new(), 0);
        for end in 1..=bytes.len() {
            if end == bytes.len() || cut(end) {
                stream.push(&bytes[start..end], &mut text);
                start = end;
            }
        }
        stream.finish(&mut text);
        text
    }

    #[test]
    fn every_cut_gives_what_the_whole_gives() {
        let texts: [&[u8]; 9] = [
            "aé世🏳️‍🌈z".as_bytes(),
            b"\xf0\x9f\x8f",
            b"\xf0\x9f\x8fA\xe4\xb8",
            b"\xc3\xc3\xa9\xff\xfe",
            b"\xed\xa0\x80",
            b"\xf4\x90\x80\x80",
            b"\xc0\xaf\xe0\x80\x80",
            b"\xf0\x90\xf0\x90\x8d\x88",
            b"",
        ];
        for bytes in texts {
            let whole = String::from_utf8_lossy(bytes);
            for cuts in 0..1_u32 << bytes.len().min(12) {
                assert_eq!(in_pieces(bytes, |at| cuts >> (at % 12) & 1 == 1), whole, "{bytes:x?}");
            }
        }
    }

    #[test]
    fn nothing_comes_before_its_character_is_whole() {
        let (mut stream, mut text) = (Utf8Stream::default(), String::new());
        for byte in &"世".as_bytes()[..2] {
            stream.push(&[*byte], &mut text);
            assert_eq!(text, "");
        }
        stream.push(&"世".as_bytes()[2..], &mut text);
        assert_eq!(text, "世");
    }
}
