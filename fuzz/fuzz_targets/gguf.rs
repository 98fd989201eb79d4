//! A GGUF file of any bytes: it is refused, or all of it can be read. Reading takes memory in
//! proportion to the bytes that are there, whatever they claim.
#![no_main]

use std::fmt::Write as _;

use ironwarp::Gguf;
use ironwarp::model::{Config, Options, memory_need};
use ironwarp_fuzz::{Counting, within};
use libfuzzer_sys::fuzz_target;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fuzz_target!(|bytes: &[u8]| {
    // The copy, and for the shortest entry (14 bytes) a vector that has just doubled.
    within(48 * bytes.len() + (64 << 10), || read(bytes));
});

fn read(bytes: &[u8]) {
    let gguf = match Gguf::parse(bytes, "fuzz.gguf") {
        Ok(gguf) => gguf,
        Err(error) => {
            assert!(error.to_string().starts_with("fuzz.gguf: "), "{error}");
            return;
        }
    };
    let mut text = String::new();
    for (key, value) in gguf.metadata() {
        text.clear();
        write!(text, "{value}").unwrap();
        assert_eq!(gguf.value(key).map(|v| v.value_type()), Some(value.value_type()));
        // Each typed reading gives a value or an error that names the file.
        let _ = (gguf.u32(key), gguf.u64(key), gguf.f32(key), gguf.bool(key), gguf.str(key));
        if let Ok(Some(array)) = gguf.array(key) {
            assert_eq!(array.iter().count(), array.len());
        }
        if let Ok(Some(strings)) = gguf.strings(key) {
            assert_eq!(strings.iter().count(), strings.len());
        }
        if let Ok(Some(numbers)) = gguf.i32s(key) {
            assert_eq!(numbers.iter().count(), numbers.len());
            assert_eq!(numbers.get(0), numbers.iter().next());
            assert_eq!(numbers.get(numbers.len()), None);
        }
        let _ = (gguf.u32s(key), gguf.f32s(key));
    }
    for info in gguf.tensors() {
        assert_eq!(gguf.tensor(info.name()), Some(info));
        let data = gguf.tensor_bytes(info);
        assert_eq!(data.len() as u64, info.n_bytes());
        assert_eq!(info.row_bytes() * info.n_rows(), info.n_bytes());
    }
    // What a model's loading asks of a file before it touches a weight.
    let _ = Config::read(&gguf);
    let _ = memory_need(&gguf, &Options::default());
}
