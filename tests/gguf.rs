//! GGUF files: what is read, what is refused, what is written, and the commands about them.

#[path = "gguf/build.rs"]
mod build;
#[path = "gguf/command.rs"]
mod command;
#[path = "gguf/refused.rs"]
mod refused;
#[path = "gguf/synthetic.rs"]
mod synthetic;
#[path = "gguf/written.rs"]
mod written;

use build::{ARRAY, Build, STRING, U32};
use ironwarp::Gguf;
use ironwarp::gguf::Value;
use kernels_gpu::quant::Format;

#[test]
fn every_value_type_is_read_back() {
    let build = Build::v3(0, 12)
        .key("u8", 0)
        .bytes(&[200])
        .key("i8", 1)
        .bytes(&[0x80])
        .key("u16", 2)
        .bytes(&60000u16.to_le_bytes())
        .key("i16", 3)
        .bytes(&(-30000i16).to_le_bytes())
        .key("u32", 4)
        .u32(4_000_000_000)
        .key("i32", 5)
        .bytes(&(-2_000_000_000i32).to_le_bytes())
        .key("f32", 6)
        .bytes(&1.5f32.to_le_bytes())
        .key("bool", 7)
        .bytes(&[1])
        .key("string", 8)
        .text("Ġx")
        .key("u64", 10)
        .u64(u64::MAX)
        .key("i64", 11)
        .bytes(&i64::MIN.to_le_bytes())
        .key("f64", 12)
        .bytes(&(-0.25f64).to_le_bytes());
    let gguf = build.open();
    let expected = [
        ("u8", Value::U8(200)),
        ("i8", Value::I8(-128)),
        ("u16", Value::U16(60000)),
        ("i16", Value::I16(-30000)),
        ("u32", Value::U32(4_000_000_000)),
        ("i32", Value::I32(-2_000_000_000)),
        ("f32", Value::F32(1.5)),
        ("bool", Value::Bool(true)),
        ("string", Value::String("Ġx")),
        ("u64", Value::U64(u64::MAX)),
        ("i64", Value::I64(i64::MIN)),
        ("f64", Value::F64(-0.25)),
    ];
    assert_eq!(gguf.metadata().collect::<Vec<_>>(), expected);
    assert_eq!(gguf.u32("u8").unwrap(), Some(200));
    assert_eq!(gguf.u64("u64").unwrap(), Some(u64::MAX));
    assert_eq!(gguf.f32("f64").unwrap(), Some(-0.25));
    assert_eq!(gguf.bool("bool").unwrap(), Some(true));
    assert_eq!(gguf.str("string").unwrap(), Some("Ġx"));
    assert_eq!(gguf.u32("absent").unwrap(), None);
}

#[test]
fn arrays_are_views_of_the_file() {
    let gguf = Build::v3(0, 4)
        .key("tokens", ARRAY)
        .u32(STRING)
        .u64(3)
        .text("a")
        .text("")
        .text("µ")
        .key("types", ARRAY)
        .u32(5)
        .u64(3)
        .u32(1)
        .u32(u32::MAX)
        .u32(3)
        .key("nested", ARRAY)
        .u32(ARRAY)
        .u64(2)
        .u32(0)
        .u64(2)
        .bytes(&[7, 8])
        .u32(STRING)
        .u64(1)
        .text("z")
        .key("empty", ARRAY)
        .u32(U32)
        .u64(0)
        .open();
    let tokens = gguf.require_strings("tokens").unwrap();
    assert_eq!(tokens.len(), 3);
    assert_eq!(tokens.iter().collect::<Vec<_>>(), ["a", "", "µ"]);
    let types = gguf.require_i32s("types").unwrap();
    assert_eq!(types.iter().collect::<Vec<_>>(), [1, -1, 3]);
    assert_eq!((types.get(1), types.get(2), types.get(3)), (Some(-1), Some(3), None));
    assert_eq!(types.get(usize::MAX), None);
    let Some(Value::Array(nested)) = gguf.value("nested") else { panic!() };
    let shown: Vec<String> = nested.iter().map(|v| v.to_string()).collect();
    assert_eq!(shown, ["[7, 8]", "[\"z\"]"]);
    // An empty array is an array of anything.
    assert!(gguf.require_strings("empty").unwrap().is_empty());
    assert!(gguf.require_f32s("empty").unwrap().is_empty());
}

#[test]
fn tensors_of_version_2_and_3_with_a_large_alignment() {
    for version in [2, 3] {
        let data: Vec<u8> = (0..=255).cycle().take(128 + 68).collect();
        let gguf = Build::head(version, 2, 1)
            .key("general.alignment", U32)
            .u32(128)
            .tensor("norm", &[7], 0, 0)
            .tensor("w", &[32, 1, 2], 8, 128)
            .pad(128)
            .bytes(&data)
            .open();
        assert_eq!((gguf.version(), gguf.alignment()), (version, 128));
        let w = gguf.require_tensor("w").unwrap();
        assert_eq!((w.name(), w.format(), w.dims()), ("w", Format::Q8_0, &[32, 1, 2][..]));
        assert_eq!((w.n_elems(), w.n_bytes(), w.row_bytes()), (64, 68, 34));
        assert_eq!((w.n_cols(), w.n_rows(), w.dims4()), (32, 2, [32, 1, 2, 1]));
        assert_eq!(gguf.tensor_bytes(w), &data[128..]);
        assert_eq!(gguf.tensor_bytes(&gguf.tensors()[0]), &data[..28]);
        assert!(gguf.tensor("nor").is_none());
    }
}

#[test]
fn real_files_are_mapped() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/tiny/gpt2-128-q5_0-pure.gguf");
    let gguf = Gguf::open(path).unwrap();
    assert_eq!((gguf.tensors().len(), gguf.metadata().len()), (52, 20));
    assert_eq!(gguf.require_str("general.architecture").unwrap(), "gpt2");
    assert_eq!(gguf.require_u32("gpt2.block_count").unwrap(), 4);
    assert_eq!(gguf.require_f32("gpt2.attention.layer_norm_epsilon").unwrap(), 1e-5);
    let tokens = gguf.require_strings("tokenizer.ggml.tokens").unwrap();
    assert_eq!((tokens.len(), tokens.iter().last()), (1025, Some("<|endoftext|>")));
    let embd = gguf.require_tensor("token_embd.weight").unwrap();
    assert_eq!((embd.format(), embd.dims()), (Format::Q5_0, &[128, 1025][..]));
    assert_eq!(gguf.tensor_bytes(embd).len(), 1025 * 4 * 22);

    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/tiny/llama-256-q2_k.gguf");
    let gguf = Gguf::open(path).unwrap();
    assert_eq!(gguf.require_f32s("tokenizer.ggml.scores").unwrap().len(), 1000);
    let types = gguf.require_i32s("tokenizer.ggml.token_type").unwrap();
    assert_eq!((types.get(0), types.get(3)), (Some(2), Some(6)));
    let formats = ["blk.0.attn_q.weight", "blk.0.attn_v.weight", "output.weight"]
        .map(|name| gguf.require_tensor(name).unwrap().format());
    assert_eq!(formats, [Format::Q2_K, Format::Q3_K, Format::Q6_K]);
}

#[test]
fn getters_name_file_key_offset_found_and_expected() {
    let gguf = Build::v3(0, 4)
        .key("text", STRING)
        .text("x")
        .key("minus", 5)
        .u32(u32::MAX)
        .key("list", ARRAY)
        .u32(5)
        .u64(2)
        .u32(7)
        .u32(u32::MAX)
        .key("huge", 12)
        .bytes(&1e300f64.to_le_bytes())
        .open();
    let text = |error: ironwarp::Error| error.to_string();
    assert_eq!(
        text(gguf.u32("text").unwrap_err()),
        "good.gguf: key text at byte 40: the value is of type string, \
         expected an integer of 0 to 2^32 - 1"
    );
    assert_eq!(
        text(gguf.u32("minus").unwrap_err()),
        "good.gguf: key minus at byte 66: the value -1 does not fit, \
         expected an integer of 0 to 2^32 - 1"
    );
    assert_eq!(
        text(gguf.u32s("list").unwrap_err()),
        "good.gguf: key list at byte 86: the value -1 of element 1 does not fit, \
         expected an array of integers of 0 to 2^32 - 1"
    );
    assert_eq!(
        text(gguf.strings("list").unwrap_err()),
        "good.gguf: key list at byte 86: the value is an array of i32, \
         expected an array of strings"
    );
    assert!(text(gguf.f32("huge").unwrap_err()).ends_with("does not fit, expected an f32"));
    assert_eq!(
        text(gguf.require_u32("llama.block_count").unwrap_err()),
        "good.gguf: key llama.block_count: the key is missing, \
         expected an integer of 0 to 2^32 - 1"
    );
    assert_eq!(
        text(gguf.require_tensor("output.weight").unwrap_err()),
        "good.gguf: tensor output.weight: the tensor is missing"
    );
}
