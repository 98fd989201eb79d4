//! `ironwarp bench` on the emulator: which rows it gives, that their bytes are those of the file, and
//! that its reports can be read.

use ironwarp::Gguf;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn ironwarp(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ironwarp"));
    // The card of whoever runs the tests stays out of it.
    command.env("CUDA_VISIBLE_DEVICES", "").args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn stdout(arguments: &[&str]) -> String {
    let output = ironwarp(arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// What went wrong, as the command tells it.
fn failure(arguments: &[&str], status: i32) -> String {
    let output = ironwarp(arguments);
    assert_eq!(output.status.code(), Some(status), "{}", text(&output.stderr));
    assert!(!text(&output.stderr).contains("panicked"), "{}", text(&output.stderr));
    text(&output.stderr)
}

/// A file for a report, gone when this is.
struct Report(PathBuf);

impl Report {
    fn new(name: &str) -> Report {
        Report(std::env::temp_dir().join(format!("ironwarp-{}-{name}", std::process::id())))
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }

    fn text(&self) -> String {
        std::fs::read_to_string(&self.0).unwrap()
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.text()).unwrap()
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The model in the box, as a file.
fn box_model() -> Gguf {
    let host = std::env::var("CARGO_MANIFEST_DIR").unwrap_or(env!("CARGO_MANIFEST_DIR").into());
    Gguf::open(Path::new(&host).join("../assets/box-model.gguf")).unwrap()
}

/// Bytes of the matrices that a step of `n_tokens` reads, from the file's list of tensors: (those of
/// experts, the others).
fn matrix_bytes(gguf: &Gguf) -> (u64, u64) {
    let (mut experts, mut others) = (0, 0);
    for tensor in gguf.tensors() {
        let is_vector = tensor.name().ends_with(".bias") || tensor.dims().len() == 1;
        let only_embeds =
            tensor.name() == "token_embd.weight" && gguf.tensor("output.weight").is_some();
        if tensor.name().contains("_exps.weight") {
            experts += tensor.n_bytes();
        } else if !(is_vector || only_embeds) {
            others += tensor.n_bytes();
        }
    }
    (experts, others)
}

#[test]
fn rows_of_every_depth_and_batch() {
    let report = Report::new("model.json");
    let arguments = ["--device", "cpu", "--prompt", "6", "--gen", "4", "--reps", "2"];
    let lists = ["--depth", "0,140", "--batch", "1,3", "--json", report.path()];
    let said = stdout(&[&["bench", "model"][..], &arguments, &lists].concat());
    let report = report.json();
    let rows = report["rows"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["test"].as_str().unwrap()).collect();
    let expected = ["pp6", "tg4", "tg4 b3", "pp6 @ d140", "tg4 @ d140", "tg4 @ d140 b3"];
    assert_eq!(names, expected);
    for name in names {
        assert!(said.lines().any(|line| line.starts_with(&format!("  {name}  "))), "{said}");
    }

    let gguf = box_model();
    let key = |suffix: &str| gguf.require_u32(&format!("gpt-oss.{suffix}")).unwrap() as u64;
    let (n_experts, n_used) = (key("expert_count"), key("expert_used_count"));
    let (experts, others) = matrix_bytes(&gguf);
    let window = key("attention.sliding_window");
    assert!(window < 140, "the depth is to be beyond the window of {window}");
    for row in rows {
        let runs = row["tokens_per_second"]["runs"].as_array().unwrap();
        assert_eq!(runs.len(), 2);
        let speed = |which: &str| row["tokens_per_second"][which].as_f64().unwrap();
        assert!(0.0 < speed("min") && speed("min") <= speed("median"));
        assert!(speed("median") <= speed("max"));
        let batch = row["batch"].as_u64().unwrap();
        let ms = row["ms_per_token"].as_f64().unwrap();
        assert!((ms * speed("median") / 1e3 / batch as f64 - 1.0).abs() < 1e-9);
        if row["kind"] == "prompt" {
            assert!(row["weight_bytes_per_step"].is_null());
            continue;
        }

        // Of n experts b tokens use n (1 - (1 - k/n)^b).
        let unused = (1.0 - n_used as f64 / n_experts as f64).powi(batch as i32);
        let weights = others as f64 + experts as f64 * (1.0 - unused);
        let found = row["weight_bytes_per_step"].as_f64().unwrap();
        // Each of the expert matrices is rounded to a byte.
        assert!(
            (found - weights).abs() <= 0.5 * 3.0 * key("block_count") as f64,
            "{found} {weights}"
        );

        // Layers by turns see a window and everything; f16 keys and values.
        let depth = row["depth"].as_u64().unwrap();
        let position = 2 * 2 * key("attention.head_count_kv") * key("attention.key_length");
        let seen = |layer: u64, n: u64| if layer.is_multiple_of(2) { n.min(window) } else { n };
        let step = |n| (0..key("block_count")).map(|layer| seen(layer, n)).sum::<u64>() * position;
        let cache: u64 = (depth + 1..=depth + 4).map(step).sum::<u64>() * batch / 4;
        assert_eq!(row["cache_bytes_per_step"].as_u64(), Some(cache));

        let rate = row["bytes_per_second"].as_f64().unwrap();
        let expected = (found + cache as f64) * speed("median") / batch as f64;
        assert!((rate / expected - 1.0).abs() < 1e-9);
        assert_eq!(row["distinct_tokens_per_step"].is_null(), batch == 1);
    }
    assert!(!report["copy"]["bytes_per_second"].as_array().unwrap().is_empty());
}

#[test]
fn a_roofline_has_every_byte_of_the_step() {
    let (report, page) = (Report::new("roofline.json"), Report::new("roofline.html"));
    let arguments = ["bench", "roofline", "--device", "cpu", "--depth", "40", "--batch", "2"];
    let reports = ["--json", report.path(), "--html", page.path()];
    let said = stdout(&[&arguments[..], &reports].concat());
    let (report, page) = (report.json(), page.text());
    let kernels = report["kernels"].as_array().unwrap();
    let name = |kernel: &Value| kernel["kernel"].as_str().unwrap().to_owned();
    for kernel in kernels {
        let name = name(kernel);
        assert!(said.lines().any(|line| line.starts_with(&format!("  {name}  "))), "{said}");
        assert!(page.contains(&format!("<td>{name}</td>")), "{name}");
        let figure = |key: &str| kernel[key].as_f64().unwrap();
        assert!((figure("time_us") - figure("floor_us") - figure("loss_us")).abs() < 1e-6);
        assert!(figure("alone_us") > 0.0 && figure("launches") >= 1.0);
    }
    let losses: Vec<f64> = kernels.iter().map(|k| k["loss_us"].as_f64().unwrap()).collect();
    assert!(losses.is_sorted_by(|a, b| a >= b), "{losses:?}");

    // What the kernels read together is what `bench model` says of such a step: no kernel reads
    // what another one is given too, and nothing is left.
    let model = Report::new("roofline-model.json");
    let arguments = ["bench", "model", "--device", "cpu", "--prompt", "0", "--gen", "1"];
    let step = ["--depth", "40", "--batch", "2", "--reps", "1", "--json", model.path()];
    stdout(&[&arguments[..], &step].concat());
    let row = &model.json()["rows"][0];
    let bytes = |key: &str| row[key].as_u64().unwrap();
    let all: u64 = kernels.iter().map(|kernel| kernel["bytes"].as_u64().unwrap()).sum();
    assert_eq!(all, bytes("weight_bytes_per_step") + bytes("cache_bytes_per_step"));
    assert_eq!(report["stray_bytes"], 0);
    // The cache's bytes are attention's alone.
    let attention: u64 = kernels
        .iter()
        .filter(|kernel| ["decode_f16", "deep_f16"].iter().any(|k| name(kernel).starts_with(k)))
        .map(|kernel| kernel["bytes"].as_u64().unwrap())
        .sum();
    assert_eq!(attention, bytes("cache_bytes_per_step"));
}

/// Every bench of the table: it is checked before it is timed, so that one which is here was right.
#[test]
fn every_kernel_is_right_and_its_figures_agree() {
    let (report, page) = (Report::new("kernels.json"), Report::new("kernels.html"));
    let arguments = ["bench", "kernels", "--device", "cpu"];
    let list = stdout(&[&arguments[..], &["--list"]].concat());
    let listed: Vec<&str> = list.lines().collect();
    let reports = ["--json", report.path(), "--html", page.path()];
    let said = stdout(&[&arguments[..], &reports].concat());
    let (report, page) = (report.json(), page.text());
    let rows = report["rows"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names, listed);
    expect_standing_by_itself(&page);

    let median = |value: &Value| {
        let mut figures: Vec<f64> =
            value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        figures.sort_by(f64::total_cmp);
        (figures[(figures.len() - 1) / 2] + figures[figures.len() / 2]) / 2.0
    };
    let copy_rate = median(&report["copy"]["bytes_per_second"]);
    let peaks = ["byte", "half"].map(|of| median(&report[format!("{of}_operations_per_second")]));
    let same = |found: &Value, expected: f64| {
        let found = found.as_f64().unwrap();
        assert!((found / expected - 1.0).abs() < 1e-9, "{found} {expected}");
    };
    for (row, name) in rows.iter().zip(names) {
        assert!(said.lines().any(|line| line.starts_with(&format!("  {name}  "))), "{said}");
        assert!(page.contains(&format!("<td>{}</td>", name.replace('&', "&amp;"))), "{name}");
        let figure = |key: &str| row[key].as_f64().unwrap_or_else(|| panic!("{name}: {key}"));
        let time = |key: &str| row["time_us"][key].as_f64().unwrap() * 1e-6;
        assert!(0.0 < time("min") && time("min") <= time("median"), "{name}");
        assert!(time("median") <= time("max"), "{name}");
        assert!(figure("bytes") > 0.0 && figure("checked") >= 1.0, "{name}");
        assert!(figure("copies") >= 2.0 && figure("batch") >= figure("copies"), "{name}");
        same(&row["bytes_per_second"], figure("bytes") / time("median"));
        same(&row["share_of_copy"], figure("bytes_per_second") / copy_rate);

        // A product of n x m weights with t tokens is 2 n m t operations.
        let (kernels, shape) = name.split_once('/').unwrap();
        let kernels: Vec<&str> = kernels.split('+').collect();
        let launched = row["kernels"].as_array().unwrap();
        assert!(launched.iter().all(|k| kernels.contains(&k.as_str().unwrap())), "{name}");
        if figure("operations") == 0.0 {
            assert!(row["operations_per_second"].is_null() && row["share_of_peak"].is_null());
            continue;
        }
        same(&row["operations_per_second"], figure("operations") / time("median"));
        let is_attention = shape.contains(" @ d");
        if let Some(share) = row["share_of_peak"].as_f64() {
            let halves = is_attention || kernels[0].contains("f16");
            let pieces = if is_attention { 1.0 } else { 2.0 };
            let expected = pieces * figure("operations_per_second") / peaks[halves as usize];
            same(&Value::from(share), expected);
        } else {
            assert!(kernels == ["matmul_f32_x4"], "{name}");
        }
        if let Some(expected) = product_operations(shape) {
            assert_eq!(row["operations"].as_u64(), Some(expected), "{name}");
        } else {
            assert!(is_attention, "{name}");
        }
    }
    // The stages of a step, each with its own kernels.
    for stem in [
        "matmul_q8_0_x4/",
        "matmul_q8_0_x16/",
        "matmul_q6_k_x1/",
        "matmul_f32_x4/",
        "gated_mxfp4_x8/",
        "experts_mxfp4/",
        "matmul_mxfp4_x8/",
        "matmul_mxfp4_x16/",
        "matmul_mxfp4_x16+swiglu_oai/",
        "moe_route_few/",
        "moe_route+moe_groups/",
        "moe_combine/",
        "decode_f16_d64/",
        "rms_weigh/",
        "layer_norm/",
        "embed_q8_0/",
        "row_best+argmax/",
        "row_best+sample_bins+sample/",
        "matmul_f16_norm64/",
        "matmul_f16_x1/",
    ] {
        assert!(listed.iter().any(|name| name.starts_with(stem)), "{stem}");
    }
}

/// Operations of a product, as its shape has it: `model part [used of experts] [2x]rowsxcolumns tokens`.
fn product_operations(shape: &str) -> Option<u64> {
    let words: Vec<&str> = shape.split(' ').collect();
    let [.., sizes, tokens] = words[..] else { return None };
    let sizes: Vec<u64> = sizes.split('x').map(|n| n.parse().ok()).collect::<Option<_>>()?;
    let tokens: u64 = tokens.trim_start_matches(char::is_alphabetic).parse().ok()?;
    let of = words.iter().position(|&word| word == "of");
    let used: u64 = of.map_or(Some(1), |of| words[of - 1].parse().ok())?;
    Some(2 * sizes.iter().product::<u64>() * used * tokens)
}

#[test]
fn a_pattern_chooses_kernels() {
    let arguments = ["bench", "kernels", "--device", "cpu"];
    let all = stdout(&[&arguments[..], &["--list"]].concat());
    let some = stdout(&[&arguments[..], &["_q6_k_", "--list"]].concat());
    let expected: Vec<&str> = all.lines().filter(|name| name.contains("_q6_k_")).collect();
    assert_eq!(some.lines().collect::<Vec<_>>(), expected);
    assert!(!expected.is_empty() && expected.len() < all.lines().count());

    let said = failure(&[&arguments[..], &["no-such-kernel"]].concat(), 1);
    assert!(said.contains("`no-such-kernel`"), "{said}");
    assert!(all.lines().all(|name| said.contains(name)), "{said}");
    failure(&["bench", "kernels", "--batch", "1"], 2);
    let unwritable = ["router", "--json", "/no/such/folder/report.json"];
    let said = failure(&[&arguments[..], &unwritable].concat(), 1);
    assert!(said.contains("/no/such/folder/report.json"), "{said}");
}

#[test]
fn a_page_stands_by_itself() {
    let page = Report::new("model.html");
    let arguments = ["bench", "model", "--device", "cpu", "--prompt", "3", "--gen", "2"];
    stdout(&[&arguments[..], &["--reps", "1", "--html", page.path()]].concat());
    let page = page.text();
    assert!(page.contains("<td>tg2</td>"));
    expect_standing_by_itself(&page);
}

/// Nothing is fetched, nothing runs, and every element that is opened is closed.
fn expect_standing_by_itself(page: &str) {
    for foreign in ["<script", "http:", "https:", "url(", "@import", "src="] {
        assert!(!page.contains(foreign), "{foreign}");
    }
    assert!(page.contains("prefers-color-scheme: dark"));
    let mut open = Vec::new();
    for tag in page.split('<').skip(1).map(|rest| rest.split_once('>').unwrap().0) {
        let name = tag.split_whitespace().next().unwrap();
        match name.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), Some(name), "{page}"),
            None if tag.ends_with('/') || ["!doctype", "meta"].contains(&name) => {}
            None => open.push(name),
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn what_makes_no_sense_is_refused() {
    failure(&["bench"], 2);
    failure(&["bench", "model", "--depth", "one"], 2);
    failure(&["bench", "model", "--batch"], 2);
    for (flags, says) in [
        (&["--reps", "0"][..], "--reps 0"),
        (&["--batch", "1,0"], "--batch 0"),
        (&["--prompt", "0", "--gen", "0"], "nothing is left"),
        (&["--ctx", "8", "--depth", "7"], "need 519 tokens"),
        (&["--json", "/no/such/folder/report.json"], "/no/such/folder/report.json"),
    ] {
        let said = failure(&[&["bench", "model", "--device", "cpu"], flags].concat(), 1);
        assert!(said.contains(says), "{said}");
    }
    let said = failure(&["bench", "roofline", "--device", "cpu", "--batch", "0"], 1);
    assert!(said.contains("--batch 0"), "{said}");
    let said = failure(&["bench", "roofline", "--device", "cpu", "--ctx", "9", "--depth", "9"], 1);
    assert!(said.contains("needs one more"), "{said}");
}
