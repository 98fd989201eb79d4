//! What the writer writes, the reader reads; what it can't write, it refuses.

use std::io::{self, Write};

use ironwarp::Gguf;
use ironwarp::gguf::{TensorInfo, Value, Writer};
use kernels_gpu::quant::Format;

fn refusal<T>(result: ironwarp::Result<T>) -> String {
    result.err().expect("it was accepted").to_string()
}

/// Data of a tensor that tells which tensor it is of.
fn data(info: &TensorInfo) -> Vec<u8> {
    let first = info.name().bytes().map(u64::from).sum::<u64>();
    (first..first + info.n_bytes()).map(|byte| byte as u8).collect()
}

fn put(info: &TensorInfo, out: &mut dyn Write) -> io::Result<()> {
    out.write_all(&data(info))
}

fn sample(alignment: u32) -> Writer {
    let mut w = Writer::new("sample");
    w.entry("general.alignment", &alignment).unwrap();
    w.entry("u8", &1u8).unwrap();
    w.entry("i8", &-1i8).unwrap();
    w.entry("u16", &2u16).unwrap();
    w.entry("i16", &-2i16).unwrap();
    w.entry("i32", &-3i32).unwrap();
    w.entry("f32", &0.1f32).unwrap();
    w.entry("bool", &true).unwrap();
    w.entry("str", "Ġx\n").unwrap();
    w.entry("u64", &u64::MAX).unwrap();
    w.entry("i64", &i64::MIN).unwrap();
    w.entry("f64", &0.1f64).unwrap();
    w.entry("strings", &["a", "", "µ"][..]).unwrap();
    w.entry("owned", &[String::from("b")][..]).unwrap();
    w.entry("floats", &[1f32, -2.0][..]).unwrap();
    w.entry("bools", &[true, false][..]).unwrap();
    w.entry("none", &[0i32; 0][..]).unwrap();
    w.tensor("norm", Format::F32, &[7]).unwrap();
    w.tensor("blk.0.w", Format::MXFP4, &[64, 3, 2, 1]).unwrap();
    w.tensor("k", Format::Q6_K, &[512, 2]).unwrap();
    w
}

#[test]
fn what_is_written_is_read_back() {
    for alignment in [1, 32, 256] {
        let writer = sample(alignment);
        let mut file = Vec::new();
        writer.write(&mut file, put).unwrap();
        assert_eq!(file.len() as u64, writer.file_bytes());
        let gguf = Gguf::parse(file, "sample").unwrap();
        assert_eq!((gguf.version(), gguf.alignment()), (3, alignment));
        assert_eq!(gguf.tensors(), writer.tensors());
        for info in gguf.tensors() {
            assert_eq!(gguf.tensor_bytes(info), data(info), "{}", info.name());
        }
        let scalars = [
            ("general.alignment", Value::U32(alignment)),
            ("u8", Value::U8(1)),
            ("i8", Value::I8(-1)),
            ("u16", Value::U16(2)),
            ("i16", Value::I16(-2)),
            ("i32", Value::I32(-3)),
            ("f32", Value::F32(0.1)),
            ("bool", Value::Bool(true)),
            ("str", Value::String("Ġx\n")),
            ("u64", Value::U64(u64::MAX)),
            ("i64", Value::I64(i64::MIN)),
            ("f64", Value::F64(0.1)),
        ];
        assert_eq!(gguf.metadata().take(12).collect::<Vec<_>>(), scalars);
        let strings = |key| gguf.require_strings(key).unwrap().iter().collect::<Vec<_>>();
        assert_eq!((strings("strings"), strings("owned")), (vec!["a", "", "µ"], vec!["b"]));
        let floats: Vec<f32> = gguf.require_f32s("floats").unwrap().iter().collect();
        assert_eq!(floats, [1.0, -2.0]);
        assert_eq!(gguf.value("bools").unwrap().to_string(), "[true, false]");
        assert_eq!(gguf.require_i32s("none").unwrap().len(), 0);
    }
}

/// A real file, taken apart and put together again, is the same file byte for byte.
#[test]
fn a_real_file_survives_reading_and_writing() {
    for name in ["gpt2-128-q5_0-pure", "llama-256-q2_k"] {
        let root = env!("CARGO_MANIFEST_DIR");
        let path = format!("{root}/../tests/data/tiny/{name}.gguf");
        let real = Gguf::open(&path).unwrap();
        let mut writer = Writer::new(name);
        real.metadata().try_for_each(|(key, value)| writer.entry(key, &value)).unwrap();
        for info in real.tensors() {
            writer.tensor(info.name(), info.format(), info.dims()).unwrap();
        }
        let mut file = Vec::new();
        let copy = |info: &TensorInfo, out: &mut dyn Write| out.write_all(real.tensor_bytes(info));
        writer.write(&mut file, copy).unwrap();
        assert!(file == std::fs::read(&path).unwrap(), "{name} differs");
    }
}

#[test]
fn a_file_bears_its_name_only_when_complete() {
    let path = format!("{}/written.gguf", env!("CARGO_TARGET_TMPDIR"));
    let part = format!("{path}.part");
    let _ = std::fs::remove_file(&path);
    let fails = |info: &TensorInfo, out: &mut dyn Write| match info.name() {
        "k" => Err(io::Error::other("the source is gone")),
        _ => put(info, out),
    };
    assert_eq!(refusal(sample(32).write_file(&path, fails)), "sample: the source is gone");
    assert!(!std::fs::exists(&path).unwrap() && !std::fs::exists(&part).unwrap());
    sample(32).write_file(&path, put).unwrap();
    assert!(std::fs::exists(&path).unwrap() && !std::fs::exists(&part).unwrap());
    assert_eq!(Gguf::open(&path).unwrap().tensors().len(), 3);
}

#[test]
fn data_of_another_size_is_refused() {
    let of_size = |delta: i64| {
        let fill = move |info: &TensorInfo, out: &mut dyn Write| {
            let n = info.n_bytes() as i64 + if info.name() == "blk.0.w" { delta } else { 0 };
            out.write_all(&vec![0; n as usize])
        };
        refusal(sample(32).write(&mut Vec::new(), fill))
    };
    let expected = "sample: tensor blk.0.w: 203 bytes of data were given, expected 204";
    assert_eq!(of_size(-1), expected);
    assert_eq!(of_size(1), "sample: failed to write whole buffer");
}

#[test]
fn what_no_reader_takes_is_not_written() {
    let mut w = sample(32);
    assert_eq!(
        refusal(w.entry("u16", &1u32)),
        "sample: key u16: a second key of this name: entry 17 repeats entry 3, expected one"
    );
    assert_eq!(refusal(w.entry("", &1u32)), "sample: key : key has 0 bytes, expected 1 to 65535");
    assert_eq!(
        refusal(w.tensor("k", Format::F32, &[1])),
        "sample: tensor k: a second tensor of this name: entry 3 repeats entry 2, expected one"
    );
    assert_eq!(
        refusal(w.tensor("x", Format::F32, &[2, 0])),
        "sample: tensor x: dimension 1 is 0, expected at least 1"
    );
    assert_eq!(
        refusal(w.tensor("x", Format::F32, &[1; 5])),
        "sample: tensor x: 5 dimensions, expected 1 to 4"
    );
    assert_eq!(
        refusal(w.tensor("x", Format::Q4_K, &[128])),
        "sample: tensor x: rows of 128 elements, expected a multiple of 256, the block of Q4_K"
    );
    let overflow = "the size of [2305843009213693951] overflows, expected less than 2^63 elements \
                    and bytes";
    assert_eq!(
        refusal(w.tensor("x", Format::F32, &[(1 << 61) - 1])),
        format!("sample: tensor x: {overflow}")
    );
    // What was refused left nothing behind.
    assert_eq!(w.tensors().len(), 3);
    let mut file = Vec::new();
    w.write(&mut file, put).unwrap();
    assert_eq!(Gguf::parse(file, "sample").unwrap().metadata().len(), 17);
}

#[test]
fn the_writer_refuses_alignments_that_the_reader_would() {
    let expected = |found: &str| {
        format!(
            "w: key general.alignment: the alignment is {found}, expected a power of two as u32"
        )
    };
    let mut w = Writer::new("w");
    let text = refusal(w.entry("general.alignment", &33u32));
    assert_eq!(text, expected("33 as u32 behind 0 tensors"));
    w.tensor("t", Format::F32, &[1]).unwrap();
    let text = refusal(w.entry("general.alignment", &64u32));
    assert_eq!(text, expected("64 as u32 behind 1 tensors"));
}
