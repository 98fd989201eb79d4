//! Texts in the vocabularies of the tests, which must come back as they were; and the vocabulary of a
//! GGUF file of any bytes, which is refused or can encode and decode. The first byte chooses.
#![no_main]

use std::io::Read;
use std::sync::LazyLock;

use flate2::read::GzDecoder;
use ironwarp::Gguf;
use ironwarp::tokenizer::{Decoder, Specials, TokenKind, Tokenizer, VocabSource};
use ironwarp_fuzz::{Counting, within};
use libfuzzer_sys::fuzz_target;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A packed vocabulary of the tests: a token a line, a tab before a control token, `left right` the
/// token that the next merge makes.
fn unpack(packed: &[u8], pre: &str) -> Tokenizer {
    let mut text = String::new();
    GzDecoder::new(packed).read_to_string(&mut text).unwrap();
    let (mut tokens, mut kinds, mut merges) = (Vec::new(), Vec::new(), Vec::new());
    for line in text.lines() {
        let control = line.strip_prefix('\t');
        kinds.push(if control.is_some() { 3 } else { 1 });
        tokens.push(control.map_or_else(|| line.replacen(' ', "", 1), str::to_owned));
        if control.is_none() && line.contains(' ') {
            merges.push(line);
        }
    }
    let source = VocabSource {
        origin: "test",
        model: "gpt2",
        pre: Some(pre),
        tokens: tokens.iter().map(String::as_str).collect(),
        kinds: Some(kinds),
        merges,
        ..VocabSource::default()
    };
    Tokenizer::new(&source).unwrap()
}

macro_rules! vocabulary {
    ($name:literal, $pre:literal) => {
        unpack(include_bytes!(concat!("../../tests/data/tokenizers/", $name, ".vocab.gz")), $pre)
    };
}

static FIXED: [LazyLock<Tokenizer>; 4] = [
    LazyLock::new(|| vocabulary!("gpt2", "gpt-2")),
    LazyLock::new(|| vocabulary!("smollm2", "smollm")),
    LazyLock::new(|| vocabulary!("tiny_o200k", "gpt-4o")),
    LazyLock::new(|| {
        let file = include_bytes!("../../tests/data/tiny/llama-256-q2_k.gguf");
        Tokenizer::from_gguf(&Gguf::parse(file.as_slice(), "llama").unwrap()).unwrap()
    }),
];

fuzz_target!(init: FIXED.iter().for_each(|each| _ = LazyLock::force(each)), |bytes: &[u8]| {
    let Some((first, bytes)) = bytes.split_first() else { return };
    let text = String::from_utf8_lossy(bytes);
    match FIXED.get(usize::from(*first) % 5) {
        Some(tokenizer) => fixed(tokenizer, &text, usize::from(*first) % 5),
        // Tokens, kinds, merges and their tables take more than the file, but only so much more.
        None => within(256 * bytes.len() + (4 << 20), || from_file(bytes)),
    }
});

fn fixed(tokenizer: &Tokenizer, text: &str, index: usize) {
    let sentence_piece = index == 3;
    // SentencePiece writes a space as this character, and can't tell the two apart.
    let text = if sentence_piece { text.replace('▁', " ") } else { text.to_owned() };
    let plain = tokenizer.encode(&text, Specials::Plain).unwrap();
    let whole = tokenizer.decode(&plain).unwrap();
    // SmolLM2 has no tokens for some control characters: U+FFFD stands for them.
    assert!(whole == text || index == 1 && whole.contains('\u{fffd}'), "{text:?} became {whole:?}");
    for id in &plain {
        let kind = tokenizer.kind(*id).unwrap();
        assert!(matches!(kind, TokenKind::Normal | TokenKind::Byte), "{text:?}: {kind:?}");
    }
    let mut decoder = Decoder::at_start(tokenizer);
    let mut streamed = String::new();
    for id in &plain {
        streamed += &decoder.push(tokenizer, *id).unwrap();
    }
    assert_eq!(streamed + &decoder.finish(), whole);
    let parsed = tokenizer.encode(&text, Specials::Parse).unwrap();
    let back = tokenizer.decode(&parsed).unwrap();
    // The space that SentencePiece puts before a text stands behind a special token too.
    assert!(back == whole || index != 0 && index != 2, "{text:?} became {back:?}");
}

fn from_file(bytes: &[u8]) {
    let Ok(gguf) = Gguf::parse(bytes, "fuzz.gguf") else { return };
    let tokenizer = match Tokenizer::from_gguf(&gguf) {
        Ok(tokenizer) => tokenizer,
        Err(error) => {
            assert!(error.to_string().starts_with("fuzz.gguf: "), "{error}");
            return;
        }
    };
    let text = String::from_utf8_lossy(bytes);
    for specials in [Specials::Plain, Specials::Parse] {
        if let Ok(ids) = tokenizer.encode(&text, specials) {
            for id in &ids {
                let kind = tokenizer.kind(*id).unwrap();
                let allowed = !kind.is_special() || specials == Specials::Parse;
                assert!(allowed || kind == TokenKind::Unknown, "text became {kind:?}");
            }
            tokenizer.decode(&ids).unwrap();
        }
    }
    let ids: Vec<u32> = (0..tokenizer.n_tokens() as u32).collect();
    tokenizer.decode(&ids).unwrap();
    assert!(tokenizer.decode(&[ids.len() as u32]).is_err());
    for (spelling, id) in tokenizer.specials() {
        assert_eq!(tokenizer.special(spelling), Some(id));
    }
}
