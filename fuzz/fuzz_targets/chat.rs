//! A chat template and messages of any bytes, separated by 0xff; a message's first byte chooses its
//! role. It renders or is refused, in bounded time and memory, and no message becomes a special token.
#![no_main]

use std::sync::LazyLock;

use ironwarp::chat::{ChatTemplate, Message, Role, Settings};
use ironwarp::tokenizer::{Tokenizer, VocabSource};
use ironwarp_fuzz::{Counting, within};
use libfuzzer_sys::fuzz_target;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const SPECIALS: [&str; 6] = ["<|im_start|>", "<|im_end|>", "<s>", "</s>", "[INST]", "[/INST]"];

/// Every byte, and some special tokens.
static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
    let mut tokens: Vec<String> = (0..256).map(|byte| format!("<0x{byte:02X}>")).collect();
    tokens.extend(SPECIALS.map(str::to_owned));
    let kinds = (0..tokens.len()).map(|id| if id < 256 { 6 } else { 3 }).collect();
    let source = VocabSource {
        origin: "test",
        model: "llama",
        tokens: tokens.iter().map(String::as_str).collect(),
        kinds: Some(kinds),
        scores: Some(vec![0.0; tokens.len()]),
        bos: Some(258),
        eos: Some(259),
        add_space_prefix: Some(false),
        ..VocabSource::default()
    };
    Tokenizer::new(&source).unwrap()
});

fuzz_target!(init: { LazyLock::force(&TOKENIZER); }, |bytes: &[u8]| {
    let mut parts = bytes.split(|byte| *byte == 0xff);
    let source = String::from_utf8_lossy(parts.next().unwrap_or_default());
    let messages: Vec<Message> = parts
        .filter_map(|part| {
            let (role, content) = part.split_first()?;
            let role = match role % 4 {
                0 => Role::Developer,
                1 => Role::System,
                2 => Role::User,
                _ => Role::Assistant,
            };
            Some(Message::new(role, String::from_utf8_lossy(content)))
        })
        .collect();
    let settings = Settings::default();
    let said: usize = messages.iter().map(|message| message.content.len()).sum();
    // Fuel pays for 6.4 MB, the engine and its tables take some more, tokens four times the text.
    within(64 << 20, || {
        let template = match ChatTemplate::new("fuzz.gguf", &source) {
            Ok(template) => template,
            Err(error) => return assert!(error.to_string().starts_with("fuzz.gguf: "), "{error}"),
        };
        match template.encode(&TOKENIZER, &messages, &settings) {
            Ok(ids) => {
                // What the template alone spells, no message can add to.
                let special = |ids: &[u32]| ids.iter().filter(|id| **id >= 256).count();
                let text = TOKENIZER.decode(&ids).unwrap();
                let spelled: usize = SPECIALS.iter().map(|s| text.matches(s).count()).sum();
                assert!(special(&ids) <= spelled);
                let silent = !source.contains(['<', '[', '\\'])
                    && ["_token", "%c"].iter().all(|spells| !source.contains(spells));
                if said > 0 && silent {
                    assert_eq!(special(&ids), 0, "a message became a special token: {text:?}");
                }
            }
            Err(error) => assert!(error.to_string().starts_with("fuzz.gguf: "), "{error}"),
        }
    });
});
