//! One file for each way in which parsers of the format are known to have failed. A refusal must
//! name the file, the place, the offset, what was found and what was expected, so the whole
//! message is compared.

use ironwarp::Gguf;

use super::build::{ARRAY, Build, STRING, U32};

/// Offset of the first byte behind the header.
const BODY: usize = 4 + 4 + 8 + 8;

// --- What is refused: the file as a whole ---

#[test]
fn an_absent_file_a_directory_and_an_empty_file_are_refused() {
    let dir = env!("CARGO_TARGET_TMPDIR");
    let text = |path: &str| Gguf::open(path).err().unwrap().to_string();
    assert!(text("/nowhere/x.gguf").starts_with("/nowhere/x.gguf: No such file"));
    assert_eq!(text(dir), format!("{dir}: not a regular file"));
    let empty = format!("{dir}/empty.gguf");
    std::fs::write(&empty, b"").unwrap();
    let expected = "header at byte 0: the magic needs 4 bytes, 0 are left";
    assert_eq!(text(&empty), format!("{empty}: {expected}"));
}

#[test]
fn another_magic_is_refused() {
    let build = Build(b"PK\x03\x04".to_vec()).zeros(40);
    let expected = "header at byte 0: the magic is \"PK\\x03\\x04\", expected \"GGUF\"";
    assert_eq!(build.refusal(), format!("bad.gguf: {expected}"));
}

#[test]
fn versions_1_4_and_big_endian_are_refused() {
    let refusal = |version| Build::head(version, 0, 0).refusal();
    assert_eq!(refusal(1), "bad.gguf: header at byte 4: version 1, expected 2 or 3");
    assert_eq!(refusal(4), "bad.gguf: header at byte 4: version 4, expected 2 or 3");
    assert_eq!(refusal(0), "bad.gguf: header at byte 4: version 0, expected 2 or 3");
    assert_eq!(
        refusal(3u32.swap_bytes()),
        "bad.gguf: header at byte 4: a big-endian file (version 3 when byte-swapped), \
         expected little-endian"
    );
}

/// Cut anywhere, a file is refused: no section can end early. Only the padding behind the head of
/// a file without tensors may be missing.
#[test]
fn a_file_cut_at_any_byte_is_refused() {
    let whole = Build::v3(1, 3)
        .key("general.name", STRING)
        .text("cut")
        .key("a.list", ARRAY)
        .u32(STRING)
        .u64(2)
        .text("one")
        .text("two")
        .key("a.number", U32)
        .u32(5)
        .tensor("w", &[32, 2], 0, 0)
        .pad(32)
        .zeros(256)
        .0;
    Gguf::parse(whole.as_slice(), "whole").unwrap();
    for len in 0..whole.len() {
        let text = Build(whole[..len].to_vec()).refusal();
        assert!(text.starts_with("bad.gguf: ") && text.contains(" at byte "), "{len}: {text}");
    }
}

#[test]
fn a_file_cut_in_each_section_says_where() {
    let cut = |build: Build, expected: &str| {
        assert_eq!(build.refusal(), format!("bad.gguf: {expected}"));
    };
    cut(
        Build(b"GGUF".to_vec()).u32(3).u32(0),
        "header at byte 8: a count needs 8 bytes, 4 are left",
    );
    cut(
        Build::v3(0, 1).u64(9).bytes(b"abcdef"),
        "metadata entry 0 at byte 32: a key needs 9 bytes, 6 are left",
    );
    cut(
        Build::v3(0, 1).text("abcdefghi").zeros(1),
        "key abcdefghi at byte 41: a value type needs 4 bytes, 1 are left",
    );
    let entry = Build::v3(0, 1).key("general.name", STRING);
    cut(
        entry.u64(9).bytes(b"short"),
        "key general.name at byte 56: a string needs 9 bytes, 5 are left",
    );
    let tensor = Build::v3(1, 0).text("w").u32(2).u64(32).u64(1);
    cut(tensor.u32(0), "tensor w at byte 57: a tensor offset needs 8 bytes, 0 are left");
}

// --- What is refused: counts and lengths that are only claimed ---

#[test]
fn counts_that_the_file_cannot_hold_are_refused() {
    assert_eq!(
        Build::v3(u64::MAX, 0).refusal(),
        "bad.gguf: header at byte 8: 18446744073709551615 tensors are claimed, expected at most 0: \
         8 bytes are left"
    );
    assert_eq!(
        Build::v3(0, 1 << 60).zeros(28).refusal(),
        "bad.gguf: header at byte 16: 1152921504606846976 metadata entries are claimed, \
         expected at most 2: 28 bytes are left"
    );
}

#[test]
fn string_lengths_beyond_the_file_are_refused() {
    let build = Build::v3(0, 1).key("general.name", STRING).u64(u64::MAX).zeros(9);
    assert_eq!(
        build.refusal(),
        "bad.gguf: key general.name at byte 56: a string needs 18446744073709551615 bytes, \
         9 are left"
    );
    // As an i64 the length is negative; seeking by it went backwards elsewhere.
    let build = Build::v3(0, 1).key("general.name", STRING).u64(1 << 63).zeros(9);
    assert_eq!(
        build.refusal(),
        "bad.gguf: key general.name at byte 56: a string needs 9223372036854775808 bytes, \
         9 are left"
    );
}

#[test]
fn array_lengths_beyond_the_file_are_refused() {
    let array = |elem: u32, len: u64| Build::v3(0, 1).key("a", ARRAY).u32(elem).u64(len).zeros(40);
    // 2^62 elements of 4 bytes: the product is 0 in 64 bits.
    assert_eq!(
        array(U32, 1 << 62).refusal(),
        "bad.gguf: key a at byte 41: 4611686018427387904 array elements are claimed, \
         expected at most 10: 40 bytes are left"
    );
    assert_eq!(
        array(STRING, u64::MAX).refusal(),
        "bad.gguf: key a at byte 41: 18446744073709551615 array elements are claimed, \
         expected at most 5: 40 bytes are left"
    );
    assert_eq!(
        array(ARRAY, 4).refusal(),
        "bad.gguf: key a at byte 41: 4 array elements are claimed, \
         expected at most 3: 40 bytes are left"
    );
}

#[test]
fn keys_that_are_empty_or_too_long_are_refused() {
    let expected = "bad.gguf: metadata entry 0 at byte 24: a key has 0 bytes, expected 1 to 65535";
    assert_eq!(Build::v3(0, 1).key("", U32).zeros(8).refusal(), expected);
    let expected =
        "bad.gguf: metadata entry 0 at byte 24: a key has 65536 bytes, expected 1 to 65535";
    assert_eq!(Build::v3(0, 1).key(&"k".repeat(65536), U32).u32(0).refusal(), expected);
    Build::v3(0, 1).key(&"k".repeat(65535), U32).u32(0).open();
}

#[test]
fn tensor_names_that_are_empty_or_too_long_are_refused() {
    let named = |name: &str| Build::v3(1, 0).tensor(name, &[1], 0, 0).pad(32).zeros(4);
    assert_eq!(
        named("").refusal(),
        "bad.gguf: tensor description 0 at byte 24: a tensor name has 0 bytes, expected 1 to 256"
    );
    assert_eq!(
        named(&"n".repeat(257)).refusal(),
        "bad.gguf: tensor description 0 at byte 24: a tensor name has 257 bytes, expected 1 to 256"
    );
    named(&"n".repeat(256)).open();
}

// --- What is refused: values ---

#[test]
fn text_that_is_not_utf8_is_refused() {
    let build = Build::v3(0, 1).key("general.name", STRING).u64(3).bytes(b"ab\xff");
    assert_eq!(
        build.refusal(),
        "bad.gguf: key general.name at byte 56: a string is not UTF-8 from its byte 2 on, \
         expected UTF-8"
    );
    let build = Build::v3(0, 1).u64(2).bytes(b"\xc3\x28").u32(U32).u32(0);
    assert_eq!(
        build.refusal(),
        "bad.gguf: metadata entry 0 at byte 32: a key is not UTF-8 from its byte 0 on, \
         expected UTF-8"
    );
}

#[test]
fn value_types_that_do_not_exist_are_refused() {
    let expected = |found: u32, at: usize| {
        format!("bad.gguf: key a at byte {at}: value type {found}, expected 0 to 12")
    };
    let at = BODY + 9;
    assert_eq!(Build::v3(0, 1).key("a", 13).zeros(8).refusal(), expected(13, at));
    // -1 as an id indexed a table elsewhere.
    assert_eq!(Build::v3(0, 1).key("a", u32::MAX).zeros(8).refusal(), expected(u32::MAX, at));
    let build = Build::v3(0, 1).key("a", ARRAY).u32(99).u64(0);
    assert_eq!(build.refusal(), expected(99, at + 4));
}

#[test]
fn bools_other_than_0_and_1_are_refused() {
    let expected =
        |at: usize| format!("bad.gguf: key a at byte {at}: a bool of 2, expected 0 or 1");
    assert_eq!(Build::v3(0, 1).key("a", 7).bytes(&[2]).refusal(), expected(37));
    let build = Build::v3(0, 1).key("a", ARRAY).u32(7).u64(3).bytes(&[0, 1, 2]);
    assert_eq!(build.refusal(), expected(51));
}

#[test]
fn deep_nesting_is_refused_before_the_stack_ends() {
    let nested = |depth: usize| {
        let build = Build::v3(0, 1).key("a", ARRAY);
        let build = (1..depth).fold(build, |build, _| build.u32(ARRAY).u64(1));
        build.u32(U32).u64(1).u32(5)
    };
    nested(4).open();
    let expected = "arrays nested deeper than 4, expected at most 4 levels";
    for depth in [5, 100_000] {
        assert_eq!(nested(depth).refusal(), format!("bad.gguf: key a at byte 85: {expected}"));
    }
}

#[test]
fn a_key_given_twice_is_refused() {
    let build = Build::v3(0, 3).key("a", U32).u32(1).key("b", U32).u32(2).key("a", U32).u32(1);
    assert_eq!(
        build.refusal(),
        "bad.gguf: key a at byte 58: a second key of this name: entry 2 repeats entry 0, \
         expected one"
    );
}

#[test]
fn hostile_names_do_not_reach_the_terminal() {
    let key = format!("\x1b[2J{}", "k".repeat(1000));
    let text = Build::v3(0, 1).key(&key, 99).zeros(8).refusal();
    assert!(text.starts_with("bad.gguf: key \\u{1b}[2Jkkk"), "{text}");
    assert!(text.len() < 200, "{text}");
}

// --- What is refused: alignment ---

#[test]
fn alignments_that_are_no_power_of_two_are_refused() {
    for bad in [0, 3, 33, u32::MAX] {
        let build = Build::v3(1, 1).key("general.alignment", U32).u32(bad);
        let build = build.tensor("w", &[1], 0, 0).zeros(128);
        assert_eq!(
            build.refusal(),
            format!(
                "bad.gguf: key general.alignment at byte 53: the alignment is {bad} as u32, \
                 expected a power of two as u32"
            )
        );
    }
}

#[test]
fn an_alignment_of_another_type_is_refused() {
    let expected = |found: &str| {
        format!(
            "bad.gguf: key general.alignment at byte 53: the alignment is {found}, \
             expected a power of two as u32"
        )
    };
    let build = Build::v3(0, 1).key("general.alignment", 10).u64(32);
    assert_eq!(build.refusal(), expected("32 as u64"));
    let build = Build::v3(0, 1).key("general.alignment", STRING).text("32");
    assert_eq!(build.refusal(), expected("of type string"));
}

#[test]
fn the_largest_alignment_leaves_no_room_for_data() {
    let build = Build::v3(1, 1).key("general.alignment", U32).u32(1 << 31);
    let build = build.tensor("w", &[4], 0, 0).zeros(64);
    assert_eq!(
        build.refusal(),
        "bad.gguf: tensor w at byte 57: 16 bytes of data at offset 0, \
         expected to end within the 0 bytes of the data section"
    );
}

// --- What is refused: tensors ---

/// One tensor `w`, with enough data behind it for a small one.
fn tensor(dims: &[u64], ty: u32, offset: u64) -> Build {
    Build::v3(1, 0).tensor("w", dims, ty, offset).pad(32).zeros(1024)
}

fn tensor_refusal(dims: &[u64], ty: u32, offset: u64) -> String {
    let text = tensor(dims, ty, offset).refusal();
    text.strip_prefix("bad.gguf: tensor w at byte ").expect(&text).to_string()
}

#[test]
fn dimension_counts_other_than_1_to_4_are_refused() {
    assert_eq!(tensor_refusal(&[], 0, 0), "33: 0 dimensions, expected 1 to 4");
    assert_eq!(tensor_refusal(&[1; 5], 0, 0), "33: 5 dimensions, expected 1 to 4");
    // A claim alone, with no dimensions behind it.
    let build = Build::v3(1, 0).text("w").u32(u32::MAX).zeros(64);
    let expected = "bad.gguf: tensor w at byte 33: 4294967295 dimensions, expected 1 to 4";
    assert_eq!(build.refusal(), expected);
    tensor(&[1; 4], 0, 0).open();
}

#[test]
fn zero_dimensions_are_refused() {
    assert_eq!(tensor_refusal(&[0], 0, 0), "33: dimension 0 is 0, expected at least 1");
    assert_eq!(tensor_refusal(&[32, 2, 0], 8, 0), "33: dimension 2 is 0, expected at least 1");
    // Nor does a zero hide an overflow.
    assert_eq!(
        tensor_refusal(&[u64::MAX, u64::MAX, 0], 0, 0),
        "33: dimension 2 is 0, expected at least 1"
    );
}

#[test]
fn sizes_that_wrap_are_refused() {
    let overflow = |dims: &str| {
        format!("33: the size of {dims} overflows, expected less than 2^63 elements and bytes")
    };
    // (2^42 + 1) * 2^22 = 2^64 + 2^22, which wraps to a small number.
    let dims = [(1 << 42) + 1, 1 << 22];
    assert_eq!(tensor_refusal(&dims, 0, 0), overflow("[4398046511105, 4194304]"));
    // Two halves of which the product wraps to 0.
    let dims = [1 << 32, 1 << 32];
    assert_eq!(tensor_refusal(&dims, 0, 0), overflow("[4294967296, 4294967296]"));
    // The elements fit in an i64; their bytes do not.
    let dims = [i64::MAX as u64];
    assert_eq!(tensor_refusal(&dims, 1, 0), overflow("[9223372036854775807]"));
    let dims = [i64::MAX as u64, 2];
    assert_eq!(tensor_refusal(&dims, 1, 0), overflow("[9223372036854775807, 2]"));
    // 2^62 elements of 4 bytes: the elements fit, their bytes wrap to 0.
    assert_eq!(tensor_refusal(&[1 << 62], 0, 0), overflow("[4611686018427387904]"));
    // 2^62 elements of 17 / 32 bytes: the elements times 17 would wrap.
    assert!(tensor_refusal(&[1 << 62], 39, 0).contains("bytes of data at offset 0"));
}

#[test]
fn tensor_types_that_are_unknown_or_unsupported_are_refused_by_name() {
    let known = "F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, BF16, MXFP4";
    for (id, name) in [(20, "IQ4_NL"), (34, "TQ1_0"), (40, "NVFP4"), (26, "I32"), (4, "Q4_2")] {
        assert_eq!(
            tensor_refusal(&[256], id, 0),
            format!("45: tensor type {name} (id {id}) is not supported, expected one of {known}")
        );
    }
    for id in [1000, u32::MAX] {
        assert_eq!(
            tensor_refusal(&[256], id, 0),
            format!("45: tensor type {id}, expected a GGML type id such as {known}")
        );
    }
}

#[test]
fn rows_that_are_not_whole_blocks_are_refused() {
    assert_eq!(
        tensor_refusal(&[48, 2], 2, 0),
        "33: rows of 48 elements, expected a multiple of 32, the block of Q4_0"
    );
    // The matrix has whole blocks; its rows don't.
    assert_eq!(
        tensor_refusal(&[128, 2], 12, 0),
        "33: rows of 128 elements, expected a multiple of 256, the block of Q4_K"
    );
}

#[test]
fn data_outside_the_file_is_refused() {
    assert_eq!(
        tensor_refusal(&[257], 0, 0),
        "24: 1028 bytes of data at offset 0, expected to end within the 1024 bytes of the data \
         section"
    );
    tensor(&[256], 0, 0).open();
    assert_eq!(
        tensor_refusal(&[1], 0, 1024),
        "24: 4 bytes of data at offset 1024, expected to end within the 1024 bytes of the data \
         section"
    );
    // Offset and size wrap around to a place in the file.
    let offset = u64::MAX - 31;
    assert_eq!(
        tensor_refusal(&[16], 0, offset),
        "24: 64 bytes of data at offset 18446744073709551584, expected to end within the 1024 \
         bytes of the data section"
    );
}

#[test]
fn data_off_the_alignment_is_refused() {
    assert_eq!(
        tensor_refusal(&[1], 0, 4),
        "24: data at offset 4, expected a multiple of the alignment 32"
    );
}

#[test]
fn data_of_two_tensors_is_refused() {
    let two = |first: u64, second: u64| {
        let build = Build::v3(2, 0).tensor("a", &[16], 0, first).tensor("b", &[9], 0, second);
        build.pad(32).zeros(256)
    };
    assert_eq!(
        two(0, 32).refusal(),
        "bad.gguf: tensor b at byte 57: data at offset 32, expected it behind a, which ends at 64"
    );
    assert_eq!(
        two(32, 0).refusal(),
        "bad.gguf: tensor a at byte 24: data at offset 32, expected it behind b, which ends at 36"
    );
    assert_eq!(
        two(64, 64).refusal(),
        "bad.gguf: tensor b at byte 57: data at offset 64, expected it behind a, which ends at 128"
    );
    // In any order, and with gaps.
    two(0, 64).open();
    two(64, 0).open();
    two(0, 128).open();
}

#[test]
fn more_tensors_or_entries_than_any_model_has_are_refused() {
    let refusal = |n_tensors, n_entries| Build::v3(n_tensors, n_entries).zeros(3 << 20).refusal();
    let expected = |at: usize, what: &str| {
        format!("bad.gguf: header at byte {at}: 65537 {what}, expected at most 65536")
    };
    assert_eq!(refusal(65_537, 0), expected(8, "tensors"));
    assert_eq!(refusal(0, 65_537), expected(16, "metadata entries"));
    // As many as may be take little more memory than the file has: none of it for what is claimed.
    let mut build = Build::v3(0, 65_536);
    for index in 0..65_536 {
        build = build.key(&format!("{index}"), 0).bytes(&[1]);
    }
    assert_eq!(build.open().metadata().len(), 65_536);
}

#[test]
fn a_tensor_given_twice_is_refused() {
    let build = Build::v3(2, 0).tensor("w", &[1], 0, 0).tensor("w", &[1], 0, 32).pad(32).zeros(64);
    assert_eq!(
        build.refusal(),
        "bad.gguf: tensor w at byte 57: a second tensor of this name: entry 1 repeats entry 0, \
         expected one"
    );
}

// --- Damage of no particular kind ---

/// One file with something of everything, and every byte of its head set to each of a few values:
/// whatever is accepted can be read from end to end.
#[test]
fn a_file_with_any_byte_changed_is_refused_or_readable() {
    let whole = Build::v3(2, 5)
        .key("general.alignment", U32)
        .u32(64)
        .key("s", STRING)
        .text("text")
        .key("b", ARRAY)
        .u32(7)
        .u64(3)
        .bytes(&[0, 1, 1])
        .key("t", ARRAY)
        .u32(STRING)
        .u64(2)
        .text("µ")
        .text("")
        .key("n", ARRAY)
        .u32(ARRAY)
        .u64(1)
        .u32(U32)
        .u64(2)
        .u64(9)
        .tensor("a", &[32, 2], 2, 0)
        .tensor("b", &[5], 0, 64)
        .pad(64)
        .zeros(128)
        .0;
    let head = whole.len() - 128;
    let (mut accepted, mut refused) = (0, 0);
    for at in 0..head {
        for value in [0, 1, 2, 3, 7, 8, 9, 12, 0x40, 0x7f, 0x80, 0xff, whole[at] ^ 0x10] {
            let mut file = whole.clone();
            file[at] = value;
            let Ok(gguf) = Gguf::parse(file, "damaged") else {
                refused += 1;
                continue;
            };
            accepted += 1;
            for (key, value) in gguf.metadata() {
                assert_eq!(gguf.value(key), Some(value));
                assert!(!value.to_string().is_empty());
            }
            for info in gguf.tensors() {
                assert_eq!(gguf.tensor_bytes(info).len() as u64, info.n_bytes());
            }
        }
    }
    // Names and values may be anything; lengths, types and offsets may not.
    assert!(accepted > 500 && refused > 1000, "{accepted} accepted, {refused} refused");
}
