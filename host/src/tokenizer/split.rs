//! How byte-level BPE cuts text into words before it merges: one pattern per family of models.
//! The patterns are the published ones, except that `\s+(?!\S)|\s+` is written `\s+` and its
//! look-ahead is done here: what is left is regular, so no text can make the search blow up.

use regex::{Regex, RegexBuilder};

/// The cuts that are known, by the names that files give them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PreTokenizer {
    /// GPT-2.
    Gpt2,
    /// GPT-4o and GPT-OSS (o200k).
    Gpt4o,
    /// Llama 3.
    Llama3,
    /// SmolLM: GPT-2 with every digit on its own.
    SmolLm,
    /// Qwen 2 and its kin: Llama 3 with every digit on its own.
    Qwen2,
}

/// Names in files, and what they mean. GPT-2 files older than the key have none, or `default`.
const NAMES: [(&str, PreTokenizer); 12] = [
    ("gpt-2", PreTokenizer::Gpt2),
    ("gpt2", PreTokenizer::Gpt2),
    ("default", PreTokenizer::Gpt2),
    ("gpt-4o", PreTokenizer::Gpt4o),
    ("o200k", PreTokenizer::Gpt4o),
    ("llama4", PreTokenizer::Gpt4o),
    ("llama-bpe", PreTokenizer::Llama3),
    ("llama3", PreTokenizer::Llama3),
    ("llama-v3", PreTokenizer::Llama3),
    ("smollm", PreTokenizer::SmolLm),
    ("qwen2", PreTokenizer::Qwen2),
    ("deepseek-r1-qwen", PreTokenizer::Qwen2),
];

/// What the search may remember of a pattern. A text in every script of Unicode needs more than the
/// usual 2 MiB of Gpt4o's, and is cut 50 times slower (300 kB in 0.8 s) if it doesn't get it.
const DFA_BYTES: usize = 8 << 20;

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+";

const GPT4O: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+",
);

const LLAMA3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+",
);

const QWEN2: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+",
);

impl PreTokenizer {
    /// The cut that a file means by `name`.
    pub(super) fn named(name: &str) -> Option<PreTokenizer> {
        NAMES.iter().find(|(known, _)| *known == name).map(|(_, pre)| *pre)
    }

    /// Every name that is known, for the message about one that is not.
    pub(super) fn known() -> String {
        let names: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
        format!("one of {}", names.join(", "))
    }

    fn pattern(self) -> &'static str {
        match self {
            PreTokenizer::Gpt2 | PreTokenizer::SmolLm => GPT2,
            PreTokenizer::Gpt4o => GPT4O,
            PreTokenizer::Llama3 => LLAMA3,
            PreTokenizer::Qwen2 => QWEN2,
        }
    }
}

/// Cuts text into words.
pub(super) struct Splitter {
    pattern: Regex,
    /// A run of white space that ends in a line break belongs to `\s*[\r\n]+`, which stands before
    /// `\s+` and has no look-ahead.
    breaks_apart: bool,
    digits_apart: bool,
}

impl Splitter {
    pub(super) fn new(pre: PreTokenizer) -> Splitter {
        let pattern = pre.pattern();
        Splitter {
            // The patterns are constants, and each is compiled by a test.
            pattern: (RegexBuilder::new(pattern).dfa_size_limit(DFA_BYTES).build())
                .expect("a constant pattern"),
            breaks_apart: pattern.contains(r"\s*[\r\n]+"),
            digits_apart: pre == PreTokenizer::SmolLm,
        }
    }

    /// Hands out the words of `text`, in order; together they are the text.
    pub(super) fn split(&self, text: &str, mut word: impl FnMut(&str)) {
        if !self.digits_apart {
            return self.scan(text, &mut word);
        }
        let mut start = 0;
        for (at, digit) in text.match_indices(char::is_numeric) {
            self.scan(&text[start..at], &mut word);
            word(digit);
            start = at + digit.len();
        }
        self.scan(&text[start..], &mut word);
    }

    fn scan(&self, text: &str, word: &mut impl FnMut(&str)) {
        let mut start = 0;
        while let Some(found) = self.pattern.find_at(text, start) {
            if found.start() > start {
                word(&text[start..found.start()]);
            }
            let end = found.end() - self.given_back(text, found.as_str(), found.end());
            word(&text[found.start()..end]);
            start = end;
        }
        if start < text.len() {
            word(&text[start..]);
        }
    }

    /// Bytes at the end of `found` that `\s+(?!\S)` leaves to the word behind it: the last white
    /// space of several, unless the text ends there.
    fn given_back(&self, text: &str, found: &str, end: usize) -> usize {
        let mut chars = found.chars();
        match chars.next_back() {
            Some('\r' | '\n') if self.breaks_apart => 0,
            Some(last)
                if last.is_whitespace() && end < text.len() && !chars.as_str().is_empty() =>
            {
                last.len_utf8()
            }
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(pre: PreTokenizer, text: &str) -> Vec<String> {
        let mut words = Vec::new();
        Splitter::new(pre).split(text, |word| words.push(word.to_owned()));
        assert_eq!(words.concat(), text, "{pre:?} must lose nothing");
        words
    }

    /// The patterns as published, look-ahead and all, for an engine that has it. Those of Gpt2 and
    /// Gpt4o are held to the ids of whole vocabularies instead.
    fn published(pre: PreTokenizer) -> String {
        let end = r"\s+(?!\S)|\s+";
        let digits = match pre {
            PreTokenizer::SmolLm => {
                let words = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+";
                return format!("{words}|{end}");
            }
            PreTokenizer::Qwen2 => r"\p{N}",
            _ => r"\p{N}{1,3}",
        };
        let words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+";
        format!(r"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|{end}")
    }

    #[test]
    fn words_are_those_of_the_published_patterns() {
        let path = "/../tests/data/tokenizers/gpt2.golden.json.gz";
        let file = std::fs::File::open(format!("{}{path}", env!("CARGO_MANIFEST_DIR"))).unwrap();
        let golden: serde_json::Value =
            serde_json::from_reader(flate2::read::GzDecoder::new(file)).unwrap();
        let texts = golden["strings"].as_array().unwrap();
        assert_eq!(texts.len(), 1000);
        for pre in [PreTokenizer::Llama3, PreTokenizer::SmolLm, PreTokenizer::Qwen2] {
            let splitter = Splitter::new(pre);
            let pattern = fancy_regex::Regex::new(&published(pre)).unwrap();
            let digit = fancy_regex::Regex::new(r"\p{N}").unwrap();
            for text in texts.iter().map(|text| text.as_str().unwrap()) {
                let mut expected: Vec<&str> = Vec::new();
                let mut cut = |part| {
                    expected.extend(pattern.find_iter(part).map(|found| found.unwrap().as_str()));
                };
                let mut start = 0;
                if pre == PreTokenizer::SmolLm {
                    for found in digit.find_iter(text).map(Result::unwrap) {
                        cut(&text[start..found.start()]);
                        cut(found.as_str());
                        start = found.end();
                    }
                }
                cut(&text[start..]);
                let mut found: Vec<String> = Vec::new();
                splitter.split(text, |word| found.push(word.to_owned()));
                assert_eq!(found, expected, "{pre:?}");
            }
        }
    }

    #[test]
    fn every_name_compiles_and_covers_its_text() {
        let text = "It's  10 000½ \r\n\u{85}\u{a0}x\t\tyİ'LL //\n\n e\u{301}\u{0}🏳️‍🌈  ";
        for (_, pre) in NAMES {
            words(pre, text);
        }
    }

    #[test]
    fn gpt2_leaves_one_space_to_the_next_word() {
        assert_eq!(words(PreTokenizer::Gpt2, "a   b  "), ["a", "  ", " b", "  "]);
        assert_eq!(words(PreTokenizer::Gpt2, "a\n\n1"), ["a", "\n", "\n", "1"]);
        assert_eq!(words(PreTokenizer::Gpt2, "I'll 1234x"), ["I", "'ll", " 1234", "x"]);
    }

    #[test]
    fn gpt4o_keeps_line_breaks_and_case_together() {
        let found = words(PreTokenizer::Gpt4o, "HTTPServer don'T\n\n  x 12345//\n");
        let expected = ["HTTPServer", " don'T", "\n\n", " ", " x", " ", "123", "45", "//\n"];
        assert_eq!(found, expected);
    }

    #[test]
    fn llama3_splits_contractions_and_three_digits() {
        let found = words(PreTokenizer::Llama3, "I'LL see 12345 \t\n!a");
        assert_eq!(found, ["I", "'LL", " see", " ", "123", "45", " \t\n", "!a"]);
    }

    #[test]
    fn qwen2_puts_every_digit_apart() {
        let found = words(PreTokenizer::Qwen2, "in 2024.\n");
        assert_eq!(found, ["in", " ", "2", "0", "2", "4", ".\n"]);
    }

    #[test]
    fn smollm_looks_ahead_inside_its_fragment_only() {
        // The two spaces end their fragment, so none of them is left to the digit.
        assert_eq!(words(PreTokenizer::SmolLm, "a  12"), ["a", "  ", "1", "2"]);
        assert_eq!(words(PreTokenizer::SmolLm, "a  b"), ["a", " ", " b"]);
    }
}
