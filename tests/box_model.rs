//! The model in the box: its file is shaped like a gpt-oss file, its tokens are the reference's.

use std::collections::BTreeMap;
use std::path::Path;

use ironwarp::tokenizer::{Specials, Tokenizer};
use ironwarp::{Error, Gguf};
use serde_json::Value;

const REFERENCE: &str = include_str!("data/box_model_reference.json");

fn open() -> Gguf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/box-model.gguf");
    Gguf::open(path).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

#[test]
fn file_is_small_and_mixed_as_the_real_one() {
    let gguf = open();
    assert!(gguf.file_bytes() < 10_000_000, "{} bytes", gguf.file_bytes());
    assert_eq!(gguf.require_str("general.architecture").unwrap(), "gpt-oss");
    let mut formats = BTreeMap::new();
    for tensor in gguf.tensors() {
        *formats.entry(tensor.format().name()).or_insert(0) += 1;
        let expert = tensor.name().ends_with("_exps.weight");
        assert_eq!(expert, tensor.format().name() == "MXFP4", "{}", tensor.name());
    }
    let expected = [("F32", 73), ("MXFP4", 18), ("Q4_K", 6), ("Q5_0", 16), ("Q8_0", 4)];
    assert_eq!(formats, BTreeMap::from(expected));
    let experts = gguf.require_tensor("blk.5.ffn_down_exps.weight").unwrap();
    assert_eq!(experts.dims(), [192, 256, 8]);
}

#[test]
fn tokens_are_those_of_the_reference() {
    let tokenizer = Tokenizer::from_gguf(&open()).unwrap();
    let reference: Value = serde_json::from_str(REFERENCE).unwrap();
    let prompts = reference["prompts"].as_object().unwrap();
    assert_eq!(prompts.len(), 2);
    for row in prompts.values().chain([&reference["passage"]]) {
        let text = row["text"].as_str().unwrap();
        let expected = ids(&row["tokens"]);
        assert_eq!(tokenizer.encode(text, Specials::Parse).unwrap(), expected, "{text:?}");
        assert_eq!(tokenizer.decode(&expected).unwrap(), text);
    }
    for row in prompts.values() {
        let greedy = ids(&row["greedy"]);
        assert_eq!(tokenizer.decode(&greedy).unwrap(), row["greedy_text"].as_str().unwrap());
    }
}

#[test]
fn control_tokens_are_marked_and_end_what_they_should() -> Result<(), Error> {
    let tokenizer = Tokenizer::from_gguf(&open())?;
    assert_eq!(tokenizer.n_tokens(), 4096);
    assert!(tokenizer.add_bos());
    assert_eq!(tokenizer.bos(), tokenizer.special("<|startoftext|>"));
    for (spelling, stops) in [
        ("<|endoftext|>", true),
        ("<|return|>", true),
        ("<|call|>", true),
        ("<|end|>", false),
        ("<|start|>", false),
        ("<|message|>", false),
        ("<|channel|>", false),
    ] {
        let id = tokenizer.special(spelling).unwrap();
        assert_eq!(tokenizer.is_stop(id), stops, "{spelling}");
        assert_ne!(tokenizer.encode(spelling, Specials::Plain)?, [id], "{spelling}");
    }
    Ok(())
}
