//! The command as its users meet it: text from the model in the box, and what it says when it can't.

use std::io::Read;
use std::process::{Command, Output, Stdio};

fn ironwarp(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ironwarp"));
    // The card of whoever runs the tests stays out of it.
    command.env("CUDA_VISIBLE_DEVICES", "").args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// What went wrong, as the command tells it.
fn failure(arguments: &[&str], status: i32) -> String {
    let output = ironwarp(arguments);
    assert_eq!(output.status.code(), Some(status), "{}", text(&output.stderr));
    assert!(!text(&output.stderr).contains("panicked"), "{}", text(&output.stderr));
    text(&output.stderr)
}

const STORY: [&str; 7] =
    ["generate", "--device", "cpu", "--prompt", "Once upon a time", "--ctx", "128"];

fn generate(more: &[&str]) -> String {
    let output = ironwarp(&[&STORY, more].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("tokens/s"), "{}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn the_model_in_the_box_tells_a_story() {
    let story = generate(&["--temperature", "0", "-n", "24"]);
    assert!(story.starts_with("Once upon a time, there was a"), "{story}");
}

#[test]
fn a_seed_gives_the_same_text_always() {
    let draw = |seed| generate(&["--temperature", "1", "--seed", seed, "-n", "24"]);
    let first = draw("7");
    assert_eq!(first, draw("7"));
    assert_ne!(first, draw("8"));
}

#[test]
fn a_text_ends_where_the_context_does() {
    let mut said = Vec::new();
    for n in ["100", "28"] {
        let limits = ["--ctx", "32", "-n", n, "--ignore-eos", "--temperature", "0"];
        let mut arguments = vec!["generate", "--device", "cpu", "--prompt", "Once upon a time"];
        arguments.extend(limits);
        let output = ironwarp(&arguments);
        assert!(output.status.success(), "{}", text(&output.stderr));
        // Four tokens and the one that begins a text; the last token needs no place of its own.
        assert!(text(&output.stderr).contains("generated 28 tokens"), "{}", text(&output.stderr));
        said.push(text(&output.stdout));
    }
    assert_eq!(said[0], said[1]);
}

#[test]
fn a_missing_file_is_named() {
    let said = failure(&["generate", "/no/such.gguf", "--prompt", "x", "--device", "cpu"], 1);
    assert!(said.contains("/no/such.gguf"), "{said}");
}

#[test]
fn a_prompt_longer_than_the_context_is_refused() {
    let words = "word ".repeat(300);
    let said = failure(&["generate", "--device", "cpu", "--ctx", "64", "--prompt", &words], 1);
    assert!(said.contains("the context only 64") && said.contains("--ctx"), "{said}");
}

#[test]
fn a_card_that_is_not_there_is_an_error_where_one_is_asked_for() {
    let said = failure(&["generate", "--device", "cuda", "--prompt", "x"], 1);
    assert!(said.starts_with("ironwarp: "), "{said}");
}

#[test]
fn meaningless_sampling_is_refused() {
    let said = failure(&[&STORY[..], &["--top-p", "1.5"]].concat(), 1);
    assert!(said.contains("top-p is 1.5"), "{said}");
}

#[test]
fn a_conversation_needs_a_template() {
    let tiny = format!("{}/../tests/data/tiny/llama-256-q2_k.gguf", env!("CARGO_MANIFEST_DIR"));
    let said = failure(&["generate", &tiny, "--device", "cpu", "--chat", "--prompt", "Hi"], 1);
    assert!(said.contains("no chat template (tokenizer.chat_template)"), "{said}");
    // The model in the box has one. What is asked is not repeated.
    let answer = generate(&["--chat", "--system", "Be kind.", "--temperature", "0", "-n", "4"]);
    assert!(!answer.contains("Once upon a time"), "{answer}");
    failure(&["generate", "--prompt", "Hi", "--system", "without --chat"], 2);
}

#[test]
fn bad_usage_has_status_two() {
    failure(&["generate", "--no-such-flag"], 2);
    failure(&["logits", "--tokens", "one", "--out", "x.npy"], 2);
}

#[test]
fn logits_are_an_array_of_every_position() {
    let path = std::env::temp_dir().join(format!("ironwarp-logits-{}.npy", std::process::id()));
    let out = path.to_str().unwrap();
    let output = ironwarp(&["logits", "--device", "cpu", "--tokens", "5,6,7", "--out", out]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let bytes = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let array = npyz::NpyFile::new(bytes.as_slice()).unwrap();
    assert_eq!(array.shape(), [3, 4096]);
    let values: Vec<f32> = array.into_vec().unwrap();
    assert!(values.iter().all(|v| v.is_finite()));
    assert_ne!(values[..4096], values[4096..8192]);
}

/// The text so far is whole, and its figures come after it.
#[test]
fn an_interrupt_ends_a_text_and_is_no_error() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_ironwarp"))
        .env("CUDA_VISIBLE_DEVICES", "")
        .args(["generate", "--device", "cpu", "--prompt", "Once upon a time", "--ctx", "4096"])
        .args(["-n", "4000", "--ignore-eos", "--temperature", "0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut said = vec![0; 60];
    out.read_exact(&mut said).unwrap();
    let signal = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(signal.success());
    out.read_to_end(&mut said).unwrap();
    let output = child.wait_with_output().unwrap();
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{errors}");
    let said = text(&said);
    assert!(said.starts_with("Once upon a time, there was a") && said.ends_with('\n'), "{said}");
    let figures = errors.lines().last().unwrap();
    assert!(figures.contains("tokens/s") && !errors.contains("panicked"), "{errors}");
    let generated = figures.split("generated ").nth(1).unwrap().split(' ').next().unwrap();
    assert!(generated.parse::<usize>().unwrap() < 4000, "{figures}");
}

/// On a terminal, and nowhere else.
#[test]
fn a_load_shows_its_progress_on_a_terminal() {
    let program = env!("CARGO_BIN_EXE_ironwarp");
    let arguments = "generate --device cpu --prompt Once -n 1 --ctx 32 --temperature 0";
    let output = Command::new("script")
        .args(["-qec", &format!("{program} {arguments}"), "/dev/null"])
        .env("CUDA_VISIBLE_DEVICES", "")
        .env("TERM", "xterm")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && shown.contains("tokens/s"), "{shown}");
    assert!(shown.contains("loading ") && shown.contains("/6.90 MiB"), "{shown:?}");
    let output = ironwarp(&arguments.split(' ').collect::<Vec<_>>());
    assert!(output.status.success());
    for stream in [text(&output.stdout), text(&output.stderr)] {
        assert!(!stream.contains("loading") && !stream.contains('\x1b'), "{stream:?}");
    }
}
