//! Whole models against plain f64 loops, layer by layer: each layer of the engine is given to the
//! loops with the stream that it got itself, so that the first one that differs is named. The loops
//! are held to what transformers computed.

mod machine;
mod made;
mod plain;
mod tiny;

use ironwarp::model::{Config, KvType, Logits, Segment};
use ironwarp::{Gguf, Model, Options};
use kernels_gpu::gpu::emu::Mode;
use kernels_gpu::quant::Format;
use libtest_mimic::{Arguments, Failed, Trial};
use made::{GPT_OSS, GPT2, LLAMA, Scaling, Shape};
use plain::{Plain, Rows};
use std::path::Path;

fn main() {
    let args = Arguments::from_args();
    let mut trials = Vec::new();
    let mut add = |name: String, test: Box<dyn Fn() -> Result<(), String> + Send>| {
        trials.push(Trial::test(name, move || test().map_err(Failed::from)));
    };
    for path in tiny::files() {
        let name = tiny::name(&path);
        if tiny::reference_path(&path, "hf_hidden").exists() {
            let path = path.clone();
            add(format!("{name}/loops_streams"), Box::new(move || loops_have_the_streams(&path)));
        }
        let loops = path.clone();
        add(format!("{name}/loops_logits"), Box::new(move || loops_have_the_logits(&loops)));
        add(format!("{name}/layers"), Box::new(move || tiny_layers_agree(&path)));
    }
    for (name, shape) in shapes() {
        add(format!("made/{name}"), Box::new(move || made_layers_agree(&shape)));
    }
    for seed in 0..n_any() {
        add(format!("any/{seed}"), Box::new(move || any_layers_agree(seed)));
    }
    add("made/refused".to_owned(), Box::new(what_would_be_wrong_is_refused));
    for (name, shape) in long_shapes() {
        add(format!("long/{name}"), Box::new(move || long_layers_agree(&shape)));
    }
    libtest_mimic::run(&args, trials).exit();
}

/// Shapes that no file of the references has.
fn shapes() -> Vec<(&'static str, Shape)> {
    use Format::*;
    let every_32: &[Format] = &[Q8_0, Q5_1, Q4_0, Q5_0, Q4_1, MXFP4, F16, BF16, F32];
    let every_256: &[Format] = &[Q4_K, Q6_K, Q2_K, Q5_0, Q3_K, Q8_0, Q5_K, F16];
    vec![
        ("llama_f32", Shape { seed: 2, ..LLAMA }),
        (
            "llama_three_queries_a_key_head_80",
            Shape { n_heads: 6, head_dim: 80, n_vocab: 773, formats: every_32, ..LLAMA },
        ),
        (
            "llama_own_keys_head_96_linear",
            Shape {
                n_heads: 3,
                n_kv_heads: 3,
                head_dim: 96,
                n_embd: 160,
                tied: true,
                scaling: Scaling::Linear(4.0),
                formats: every_32,
                ..LLAMA
            },
        ),
        (
            "llama_eight_queries_a_key_head_128_divisors",
            Shape {
                n_heads: 8,
                n_kv_heads: 1,
                head_dim: 128,
                n_embd: 256,
                n_ff: 512,
                rope_base: 500_000.0,
                scaling: Scaling::Divisors(32.0),
                formats: every_256,
                ..LLAMA
            },
        ),
        (
            "llama_part_of_head_192_turns_yarn",
            Shape {
                n_heads: 4,
                head_dim: 192,
                rot_dim: Some(64),
                scaling: Scaling::Yarn(8.0, 512),
                formats: &[Q8_0],
                ..LLAMA
            },
        ),
        (
            "llama_factor_without_a_type",
            Shape { floats: &[("rope.scaling.factor", 4.0)], formats: &[Q8_0], ..LLAMA },
        ),
        (
            "llama_factor_of_older_files",
            Shape { floats: &[("rope.scale_linear", 0.5)], formats: &[Q8_0], ..LLAMA },
        ),
        (
            "llama_yarn_of_its_own",
            Shape {
                scaling: Scaling::Yarn(16.0, 64),
                floats: &[
                    ("rope.scaling.yarn_beta_fast", 8.0),
                    ("rope.scaling.yarn_beta_slow", 2.0),
                    ("rope.scaling.attn_factor", 0.8),
                ],
                formats: &[Q8_0],
                ..LLAMA
            },
        ),
        (
            "gpt_oss_window_on_two_of_three_layers",
            Shape {
                n_layers: 4,
                counts: &[("attention.sliding_window_pattern", 3)],
                formats: &[Q8_0],
                ..GPT_OSS
            },
        ),
        (
            "llama_head_256",
            Shape { n_heads: 2, head_dim: 256, n_kv_heads: 1, formats: &[Q4_0, F16], ..LLAMA },
        ),
        (
            "llama_head_8_biases",
            Shape { n_heads: 15, n_kv_heads: 5, head_dim: 8, biases: true, ..LLAMA },
        ),
        (
            "llama_nine_heads_of_64_tied_biases",
            Shape {
                n_embd: 576,
                n_ff: 224,
                n_heads: 9,
                n_kv_heads: 3,
                head_dim: 64,
                tied: true,
                biases: true,
                n_vocab: 1,
                formats: every_32,
                ..LLAMA
            },
        ),
        (
            "llama_rows_of_no_block",
            Shape {
                n_embd: 72,
                n_ff: 100,
                n_heads: 3,
                head_dim: 24,
                n_kv_heads: 1,
                formats: every_32,
                ..LLAMA
            },
        ),
        (
            "gpt_oss_three_of_five_experts",
            Shape {
                n_heads: 10,
                head_dim: 64,
                window: 7,
                experts: (5, 3),
                n_vocab: 201,
                formats: &[Q8_0],
                seed: 3,
                ..GPT_OSS
            },
        ),
        (
            "gpt_oss_two_of_sixteen_experts_mixed",
            Shape {
                n_heads: 8,
                n_kv_heads: 8,
                head_dim: 80,
                window: 33,
                experts: (16, 2),
                n_ff: 160,
                formats: every_32,
                ..GPT_OSS
            },
        ),
        (
            "gpt_oss_one_expert_window_of_one",
            Shape {
                n_heads: 2,
                n_kv_heads: 2,
                window: 1,
                experts: (1, 1),
                scaling: Scaling::None,
                formats: &[MXFP4],
                ..GPT_OSS
            },
        ),
        (
            "gpt_oss_sixteen_queries_a_key_all_experts",
            Shape {
                n_heads: 16,
                n_kv_heads: 1,
                n_layers: 3,
                head_dim: 64,
                window: 0,
                experts: (6, 6),
                tied: true,
                formats: &[MXFP4, Q8_0],
                ..GPT_OSS
            },
        ),
        (
            "gpt_oss_yarn_range_beyond_the_pairs",
            Shape {
                rope_base: 1000.0,
                scaling: Scaling::Yarn(4.0, 65_536),
                head_dim: 48,
                ..GPT_OSS
            },
        ),
        (
            "gpt2_rows_of_no_block",
            Shape {
                n_embd: 120,
                n_heads: 3,
                n_kv_heads: 3,
                head_dim: 40,
                n_ff: 200,
                formats: &[F16, BF16],
                ..GPT2
            },
        ),
        (
            "gpt2_five_heads_of_64_untied",
            Shape {
                n_embd: 320,
                n_heads: 5,
                n_kv_heads: 5,
                head_dim: 64,
                n_ff: 96,
                n_vocab: 333,
                tied: false,
                formats: every_32,
                ..GPT2
            },
        ),
    ]
}

/// Shapes for contexts of 300 tokens.
fn long_shapes() -> Vec<(&'static str, Shape)> {
    let formats = &[Format::Q8_0];
    vec![
        ("gpt_oss_window_128", Shape { window: 128, formats, ..GPT_OSS }),
        ("gpt_oss_window_33", Shape { window: 33, n_heads: 8, n_kv_heads: 1, formats, ..GPT_OSS }),
        ("gpt_oss_window_of_all", Shape { window: 300, formats, ..GPT_OSS }),
        ("llama", Shape { formats: &[Format::F16], ..LLAMA }),
        ("gpt2", Shape { formats, ..GPT2 }),
    ]
}

fn load(gguf: &Gguf, kv_type: KvType, context: usize) -> Result<Model, String> {
    let options = Options {
        context: Some(context),
        max_outputs: context,
        kv_type: Some(kv_type),
        ..Options::default()
    };
    Model::load(&machine::device(Mode::FAST), gguf, &options, &mut |_| ())
        .map_err(|e| e.to_string())
}

fn relative_rms(got: &[f64], want: &[f64]) -> f64 {
    let error: f64 = got.iter().zip(want).map(|(g, w)| (g - w).powi(2)).sum();
    (error / want.iter().map(|w| w.powi(2)).sum::<f64>()).sqrt()
}

fn rows(values: &[f32], n_cols: usize) -> Rows {
    values.chunks_exact(n_cols).map(|row| row.iter().map(|&v| v as f64).collect()).collect()
}

fn within(what: &str, error: f64, allowed: f64) -> Result<(), String> {
    let text = format!("{what}: relative RMS {error:.2e}, allowed {allowed:.2e}");
    println!("{text}");
    // Not `error > allowed`: a NaN must fail.
    if error <= allowed { Ok(()) } else { Err(text) }
}

/// What fp32 leaves: transformers adds up rows of a few hundred products in one order or another,
/// through a few layers.
const FP32: f64 = 1e-5;

fn loops_have_the_streams(path: &Path) -> Result<(), String> {
    let gguf = Gguf::open(path).unwrap();
    let plain = Plain::new(&gguf, false);
    let tokens = tiny::ids(path, "tokens");
    let mut streams = plain.streams(&tokens);
    // transformers gives the last one behind the final norm.
    let last = streams.pop().unwrap();
    streams.push(plain.output_norm(&last));
    let want = rows(&tiny::reference::<f32>(path, "hf_hidden"), last[0].len());
    for (index, (stream, want)) in streams.iter().zip(want.chunks(tokens.len())).enumerate() {
        let error = relative_rms(&stream.concat(), &want.concat());
        within(&format!("stream {index}"), error, FP32)?;
    }
    if streams.len() * tokens.len() == want.len() { Ok(()) } else { Err("other shapes".into()) }
}

fn loops_have_the_logits(path: &Path) -> Result<(), String> {
    let gguf = Gguf::open(path).unwrap();
    let tokens = tiny::ids(path, "tokens");
    let mut references = vec![("hf_logits", false)];
    if tiny::reference_path(path, "hf_logits_yarn_truncate").exists() {
        references.push(("hf_logits_yarn_truncate", true));
    }
    for (array, truncate) in references {
        let plain = Plain::new(&gguf, truncate);
        let logits = plain.head(plain.streams(&tokens).last().unwrap());
        let want = rows(&tiny::reference::<f32>(path, array), logits[0].len());
        let error = relative_rms(&logits.concat(), &want.concat());
        within(array, error, FP32)?;
    }
    Ok(())
}

fn tiny_layers_agree(path: &Path) -> Result<(), String> {
    let gguf = Gguf::open(path).unwrap();
    layers_agree(&gguf, &tiny::ids(path, "tokens"), &[KvType::F32, KvType::F16])
}

fn made_layers_agree(shape: &Shape) -> Result<(), String> {
    let tokens = made::Random(shape.seed).tokens(40, shape.n_vocab);
    layers_agree(&shape.gguf(), &tokens, &[KvType::F32, KvType::F16, KvType::Bf16])
}

/// Shapes that nobody chose, one a seed: 24, or as many as `IRONWARP_SHAPES` says.
fn n_any() -> u64 {
    std::env::var("IRONWARP_SHAPES").map_or(24, |n| n.parse().expect("IRONWARP_SHAPES"))
}

fn any_layers_agree(seed: u64) -> Result<(), String> {
    let shape = Shape::any(seed);
    let n_tokens = made::Random(seed).within(8, 60);
    let tokens = made::Random(seed + 1).tokens(n_tokens, shape.n_vocab);
    layers_agree(&shape.gguf(), &tokens, &[KvType::F32, KvType::F16])
        .map_err(|error| format!("{error}\n{shape:?}, {n_tokens} tokens"))
}

/// Keys that would change the positions, and that the engine does not know: not silently wrong.
fn what_would_be_wrong_is_refused() -> Result<(), String> {
    let refused = |shape: Shape, expected: &str| {
        let said = Config::read(&shape.gguf()).map_or_else(|e| e.to_string(), |_| "taken".into());
        if said.contains(expected) { Ok(()) } else { Err(format!("{said}, not {expected}")) }
    };
    let yarn = Shape { scaling: Scaling::Yarn(4.0, 64), ..LLAMA };
    let with = |floats| Shape { floats, ..yarn.clone() };
    refused(with(&[("rope.scaling.yarn_log_multiplier", 0.1)]), "yarn_log_multiplier is 0.1")?;
    refused(with(&[("rope.scaling.yarn_ext_factor", 0.5)]), "yarn_ext_factor is 0.5")?;
    refused(with(&[("rope.scaling.yarn_attn_factor", 2.0)]), "yarn_attn_factor is 2")?;
    refused(with(&[("rope.scaling.alpha", 1000.0)]), "alpha is 1000")?;
    refused(with(&[("rope.scaling.yarn_beta_fast", -1.0)]), "yarn_beta_fast is -1")?;
    refused(with(&[("rope.scaling.attn_factor", f32::NAN)]), "attn_factor is NaN")?;
    refused(with(&[("rope.scaling.yarn_log_multiplier", 0.0)]), "taken")?;
    let counts = &[("attention.sliding_window_pattern", 0)];
    refused(Shape { counts, ..GPT_OSS }, "sliding_window_pattern is 0")
}

/// A context that is several windows, pages and splits long.
fn long_layers_agree(shape: &Shape) -> Result<(), String> {
    let tokens = made::Random(shape.seed).tokens(300, shape.n_vocab);
    layers_agree(&shape.gguf(), &tokens, &[KvType::F32, KvType::F16])
}

/// What rounding may do to one token, relative to what is computed.
struct Allowed {
    /// Of what a layer adds to the stream.
    layer: f64,
    /// Of the logits, given the stream.
    head: f64,
    /// Of the logits, given the tokens.
    whole: f64,
}

/// The errors that the formats explain.
fn allowed(gguf: &Gguf, kv_type: KvType) -> Allowed {
    let longest = gguf.tensors().iter().map(|t| t.n_cols()).max().unwrap() as f64;
    // A sum of n products in f32 strays by about sqrt(n) roundings.
    let sums = longest.sqrt() * 2f64.powi(-24);
    let fp32 = gguf.tensors().iter().all(|t| t.format() == Format::F32);
    // Other products take activations in steps of 2^-15 of the largest of a block of 32, and that
    // is at most sqrt(32) times their root mean square; a step's rounding has 1 / sqrt(12) of it.
    let codes = if fp32 { 0.0 } else { (32f64 / 12.0).sqrt() * 2f64.powi(-15) };
    let product = sums + codes;
    // Values are rounded once; keys too, and scores of a few units multiply that.
    let cache = 4.0
        * match kv_type {
            KvType::F32 => 0.0,
            KvType::F16 => 2f64.powi(-11),
            KvType::Bf16 => 2f64.powi(-8),
        };
    // Four products one after another, and softmax and gates between, which may double an error.
    let layer = 2.0 * (4.0 * product + cache);
    Allowed { layer, head: 2.0 * product, whole: if fp32 { 1e-4 + cache } else { 3e-3 + cache } }
}

fn layers_agree(gguf: &Gguf, tokens: &[u32], kv_types: &[KvType]) -> Result<(), String> {
    let plain = Plain::new(gguf, false);
    let exact = plain.streams(tokens);
    let whole = plain.head(exact.last().unwrap());
    let margins = (0..plain.n_layers).flat_map(|index| plain.margins(index, &exact[index]));
    let least_margin = margins.fold(f64::INFINITY, f64::min);
    for &kv_type in kv_types {
        let allowed = allowed(gguf, kv_type);
        let check = |what: &str, token: usize, error: f64, allowed: f64| {
            within(&format!("{kv_type:?} cache, token {token}, {what}"), error, allowed)
        };
        let mut model = load(gguf, kv_type, tokens.len())?;
        let (streams, logits) = watch(&mut model, tokens)?;
        // A sum of two numbers, each exact.
        let embedded = plain.embed(tokens);
        let (token, error) = worst(&streams[0], |t| vec![&embedded[t]], None);
        check("the embedding", token, error, 2f64.powi(-24))?;
        for (index, pair) in streams.windows(2).enumerate() {
            let [input, got] = pair else { unreachable!() };
            let want = plain.layer(index, input);
            let margins = plain.margins(index, input);
            // Where the choice of experts is nearer than the router's error, either may be made.
            let tie = |token: usize| margins[token] < 2.0 * allowed.layer;
            let other = match (0..tokens.len()).any(tie) {
                true => plain.layer_with_runner_up(index, input),
                false => Rows::new(),
            };
            let right = |token: usize| match tie(token) {
                true => vec![&want[token], &other[token]],
                false => vec![&want[token]],
            };
            let (token, error) = worst(got, right, Some(input));
            check(&format!("layer {index}"), token, error, allowed.layer)?;
        }
        let want = plain.head(streams.last().unwrap());
        let (token, error) = worst(&logits, |t| vec![&want[t]], None);
        check("the head", token, error, allowed.head)?;
        // A tie of experts that turns is carried on; the layers above have been seen either way.
        if least_margin > 2.0 * allowed.layer {
            let error = relative_rms(&logits.concat(), &whole.concat());
            within(&format!("{kv_type:?} cache, the model"), error, allowed.whole)?;
        }
    }
    Ok(())
}

/// Streams and logits of all tokens: a prompt, a few more together, and some one by one.
fn watch(model: &mut Model, tokens: &[u32]) -> Result<(Vec<Rows>, Rows), String> {
    let mut streams = vec![Rows::new(); model.config().n_layers + 1];
    let mut logits = Rows::new();
    let mut position = 0;
    for n in [tokens.len() - 7, 3, 1, 1, 1, 1] {
        let tokens = &tokens[position..position + n];
        let segment = Segment { sequence: 0, position, tokens, logits: Logits::All };
        let step = model.hidden_states(&[segment]).map_err(|e| e.to_string())?;
        for (stream, step) in streams.iter_mut().zip(step) {
            stream.extend(rows(&step, model.config().n_embd));
        }
        let step = model.read_logits(n).map_err(|e| e.to_string())?;
        logits.extend(rows(&step, model.config().n_vocab));
        position += n;
    }
    assert_eq!(position, tokens.len());
    Ok((streams, logits))
}

/// The token that is furthest from the nearest of its right rows, and how far: relative to the row,
/// or to what it adds to that of `input`.
fn worst<'a>(
    got: &Rows,
    right: impl Fn(usize) -> Vec<&'a Vec<f64>>,
    input: Option<&Rows>,
) -> (usize, f64) {
    let error = |token: usize, want: &[f64]| {
        let zero = vec![0.0; want.len()];
        let from = input.map_or(&zero, |input| &input[token]);
        let less = |x: &[f64]| -> Vec<f64> { x.iter().zip(from).map(|(x, f)| x - f).collect() };
        relative_rms(&less(&got[token]), &less(want))
    };
    let nearest = |token: usize| {
        let errors = right(token).into_iter().map(|want| error(token, want));
        (token, errors.fold(f64::INFINITY, |a, b| if b.is_nan() { b } else { a.min(b) }))
    };
    (0..got.len()).map(nearest).max_by(|a, b| a.1.total_cmp(&b.1)).unwrap()
}
