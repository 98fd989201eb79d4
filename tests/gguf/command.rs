//! The built program: what it prints, where, and with which exit status.

use std::io::Read;
use std::process::{Command, Output, Stdio};

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/tiny/llama-256-q2_k.gguf");

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ironwarp"));
    command.args(args);
    command
}

/// Exit status, standard output, standard error.
fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

/// A line of the output, with its columns one space apart.
fn has_line(output: &str, line: &str) {
    let found = output.lines().any(|l| l.split_whitespace().eq(line.split_whitespace()));
    assert!(found, "no line {line:?} in\n{output}");
}

#[test]
fn inspect_shows_metadata_tensors_totals_and_memory() {
    let (status, out, err) = run(&["inspect", TINY, "--ctx", "100"]);
    assert_eq!((status, err.as_str()), (Some(0), ""));
    has_line(&out, "GGUF version 3, 738.50 KiB, data aligned to 32 bytes");
    has_line(&out, "llama.attention.head_count_kv u32 2");
    has_line(&out, "tokenizer.ggml.token_type i32[1000] [2, 3, 3, 6, 6, 6, …]");
    has_line(&out, "blk.1.ffn_down.weight Q3_K 512 x 256 55.00 KiB");
    has_line(&out, "Q3_K 6 tensors 458,752 weights 192.50 KiB");
    // 2 layers of 2 heads of 64, keys and values, 2 bytes each, 4 pages of 32 positions.
    has_line(&out, "KV cache 128.00 KiB");
    assert!(out.lines().all(|line| line.chars().count() < 150), "{out}");
    let (_, brief, _) = run(&["inspect", "--brief", TINY]);
    assert!(!brief.contains("blk.1.ffn_down.weight") && brief.contains("458,752 weights"));
}

#[test]
fn errors_go_to_standard_error_once_with_status_1() {
    let (status, out, err) = run(&["inspect", "/nowhere.gguf"]);
    assert_eq!((status, out.as_str()), (Some(1), ""));
    assert_eq!(err, "ironwarp: /nowhere.gguf: No such file or directory (os error 2)\n");
    let (status, out, err) = run(&["inspect", file!()]);
    assert_eq!((status, out.as_str()), (Some(1), ""));
    assert_eq!(err.lines().count(), 1, "{err}");
}

#[test]
fn bad_usage_has_status_2_and_help_has_0() {
    for bad in [&["inspect"][..], &["frobnicate"], &["synth", "gpt2", "x.gguf", "--quant", "q9"]] {
        let (status, out, err) = run(bad);
        assert_eq!((status, out.as_str()), (Some(2), ""), "{bad:?}");
        assert!(err.starts_with("error: "), "{err}");
    }
    let (status, out, err) = run(&["--help"]);
    assert_eq!((status, err.as_str()), (Some(0), ""));
    assert!(out.contains("inspect") && out.contains("synth"));
}

/// A reader that leaves is no error: the program stops, and says nothing.
#[test]
fn output_may_be_cut_short() {
    // More tensors than a pipe and the program's own buffer hold.
    let big = format!("{}/many-layers.gguf", env!("CARGO_TARGET_TMPDIR"));
    let sizes = ["--layers", "300", "--embd", "2", "--heads", "1", "--force"];
    let (status, _, err) =
        run(&[&["synth", "gpt2-tiny", &big, "--quant", "f16"], &sizes[..]].concat());
    assert_eq!((status, err.as_str()), (Some(0), ""));
    let mut child =
        command(&["inspect", &big]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 10];
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut first).unwrap();
    drop(out);
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(stderr).unwrap(), "");
    assert_eq!(status.code(), Some(0));
}

#[test]
fn a_full_disk_is_an_error() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let child = command(&["inspect", TINY]).stdout(full).stderr(Stdio::piped()).spawn().unwrap();
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    assert_eq!(status.code(), Some(1));
    let text = String::from_utf8(stderr).unwrap();
    assert_eq!(text, "ironwarp: standard output: No space left on device (os error 28)\n");
}

#[test]
fn synth_writes_a_file_that_inspect_reads() {
    let path = format!("{}/command.gguf", env!("CARGO_TARGET_TMPDIR"));
    let _ = std::fs::remove_file(&path);
    let sizes = "--layers 2 --vocab 600 --embd 256 --ff 320 --heads 4 --kv-heads 2 --experts 6";
    let args: Vec<&str> = ["synth", "gpt-oss-tiny", "--quant", "q4_k_m", path.as_str()]
        .into_iter()
        .chain(sizes.split(' '))
        .collect();
    let (status, out, err) = run(&args);
    assert_eq!((status, err.as_str()), (Some(0), ""));
    assert!(out.starts_with(&format!("{path}: ")), "{out}");
    let (_, out, _) = run(&["inspect", &path, "--ctx", "4096"]);
    has_line(&out, "gpt-oss.expert_count u32 6");
    // 2 heads of 64, keys and values in f16, are 512 bytes a position. One layer keeps all 4096; one
    // its window of 16 and a step of 512, in 17 pages of 32 and one more, since they begin anywhere.
    has_line(&out, "KV cache 2.28 MiB");
    has_line(&out, "blk.1.ffn_down_exps.weight MXFP4 320 x 256 x 6 255.00 KiB");
    has_line(&out, "token_embd.weight Q4_K 256 x 600 84.38 KiB");
    let (status, _, err) = run(&args);
    assert_eq!(status, Some(1));
    assert_eq!(err, format!("ironwarp: {path} exists; --force replaces it\n"));
}
