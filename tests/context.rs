//! Contexts: around the borders of pages, windows and splits, up to the last token and one more; and
//! that what was in the cache before, or is beside a sequence in a batch, changes no bit of it.

mod machine;
mod made;

use ironwarp::generate::{Generator, Sampling};
use ironwarp::model::{KvType, Logits, Segment};
use ironwarp::{Error, Model, Options};
use kernels_gpu::attention::SPLIT;
use kernels_gpu::gpu::emu::Mode;
use kernels_gpu::kv_cache::PAGE;
use kernels_gpu::quant::Format;
use made::{GPT_OSS, GPT2, LLAMA, Random, Shape};

/// gpt-oss' own window.
const WINDOW: usize = 128;

/// Narrow, since it is the length that counts here.
const NARROW: Shape = Shape { n_embd: 32, n_ff: 32, head_dim: 16, n_vocab: 48, ..GPT_OSS };

const SHAPES: [(&str, Shape); 4] = [
    ("gpt-oss", Shape { window: WINDOW, formats: &[Format::Q8_0], ..NARROW }),
    ("gpt-oss, eight queries a key", {
        Shape { window: 33, n_heads: 8, n_kv_heads: 1, formats: &[Format::MXFP4], ..NARROW }
    }),
    ("llama", {
        let (n_embd, n_ff, head_dim, n_vocab) = (32, 32, 16, 48);
        Shape { n_embd, n_ff, head_dim, n_vocab, formats: &[Format::Q4_0], ..LLAMA }
    }),
    ("gpt2", {
        let (n_embd, n_ff, head_dim, n_vocab) = (32, 64, 8, 48);
        Shape { n_embd, n_ff, head_dim, n_vocab, formats: &[Format::Q8_0], ..GPT2 }
    }),
];

fn load(shape: &Shape, options: Options) -> Model {
    let options = Options { kv_type: Some(KvType::F16), ..options };
    let device = machine::device(Mode::FAST);
    Model::load(&device, &shape.gguf(), &options, &mut |_| ()).unwrap()
}

fn with_context(context: usize) -> Options {
    let (n_sequences, max_step, max_outputs) = (16, 1024, 16);
    Options { context: Some(context), n_sequences, max_step, max_outputs, ..Options::default() }
}

fn last(sequence: usize, position: usize, tokens: &[u32]) -> Segment<'_> {
    Segment { sequence, position, tokens, logits: Logits::Last }
}

/// The last token's logits, of a sequence that is read `step` tokens at a time.
fn read(model: &mut Model, sequence: usize, tokens: &[u32], step: usize) -> Vec<u32> {
    for (i, tokens) in tokens.chunks(step).enumerate() {
        model.forward(&[last(sequence, i * step, tokens)]).unwrap();
    }
    bits(model, 1).remove(0)
}

/// The bits of the logits, a row an output.
fn bits(model: &Model, n_outputs: usize) -> Vec<Vec<u32>> {
    let logits = model.read_logits(n_outputs).unwrap();
    let rows = logits.chunks_exact(model.config().n_vocab);
    rows.map(|row| row.iter().map(|l| l.to_bits()).collect()).collect()
}

#[test]
fn prefill_gives_the_bits_of_decode_at_every_border() {
    let around = |n: usize| [n - 1, n, n + 1];
    let borders = [around(PAGE as usize), around(WINDOW), around(SPLIT as usize)].concat();
    for (name, shape) in &SHAPES {
        let tokens = Random(5).tokens(SPLIT as usize + 1, shape.n_vocab);
        let mut model = load(shape, with_context(tokens.len()));
        let mut decoded = Vec::new();
        for (position, token) in tokens.chunks(1).enumerate() {
            model.forward(&[last(0, position, token)]).unwrap();
            decoded.push(bits(&model, 1).remove(0));
        }
        assert_ne!(decoded[0], decoded[1], "{name}");
        for &n in &borders {
            let prefilled = read(&mut model, 1, &tokens[..n], n);
            assert!(prefilled == decoded[n - 1], "{name}: {n} tokens");
        }
        for step in [PAGE as usize, 33, 100, WINDOW + 1] {
            let all = read(&mut model, 2, &tokens, step);
            assert!(all == decoded[tokens.len() - 1], "{name}: {step} at a time");
        }
        // The prompt up to a border, and the rest one by one.
        for &n in &borders[3..6] {
            read(&mut model, 3, &tokens[..n], n);
            for position in n..n + 3 {
                model.forward(&[last(3, position, &tokens[position..=position])]).unwrap();
                assert!(bits(&model, 1)[0] == decoded[position], "{name}: {n}, then {position}");
            }
        }
    }
}

#[test]
fn the_last_token_of_a_context_is_as_any_other_and_one_more_is_refused() {
    // Not whole pages, and longer than the window of the second shape.
    let context = 70;
    for (name, shape) in &SHAPES {
        let tokens = Random(6).tokens(context + 1, shape.n_vocab);
        let mut roomy = load(shape, with_context(2 * context));
        let want = read(&mut roomy, 0, &tokens[..context], context);
        let mut model = load(shape, with_context(context));
        assert_eq!(model.context(), context);
        for sequence in [0, 15] {
            let start = context - 3;
            read(&mut model, sequence, &tokens[..start], 16);
            for position in start..context {
                let token = &tokens[position..=position];
                model.forward(&[last(sequence, position, token)]).unwrap();
            }
            assert!(bits(&model, 1)[0] == want, "{name}, sequence {sequence}");
        }
        // One token, or a step, that ends one past the end; nothing is lost by asking.
        for (position, tokens) in
            [(context, &tokens[context..]), (50, &tokens[50..]), (0, &tokens[..])]
        {
            let error = model.forward(&[last(0, position, tokens)]).unwrap_err();
            let Error::ContextFull { position, context: found } = error else { panic!("{error}") };
            assert_eq!((position, found), (context, context), "{name}");
            assert!(error.to_string().contains("ask for a longer one"), "{error}");
        }
        model.forward(&[last(0, context - 1, &tokens[context - 1..context])]).unwrap();
        assert!(bits(&model, 1)[0] == want, "{name}, after the errors");
    }
}

#[test]
fn a_generator_fills_its_context_and_then_says_so() {
    let (_, shape) = &SHAPES[0];
    let prompt = Random(7).tokens(60, shape.n_vocab);
    let mut model = load(shape, Options { n_sequences: 1, ..with_context(70) });
    let mut generator = Generator::new(&mut model, Sampling::GREEDY).unwrap();
    generator.start(&prompt).unwrap();
    for position in 60..70 {
        assert!(!generator.is_full(), "{position}");
        generator.next().unwrap();
    }
    assert!(generator.is_full());
    let error = generator.next().unwrap_err();
    assert!(matches!(error, Error::ContextFull { position: 70, context: 70 }), "{error}");
    // A prompt may fill the context, and not more.
    let full = Random(8).tokens(71, shape.n_vocab);
    let mut generator = Generator::new(&mut model, Sampling::GREEDY).unwrap();
    generator.start(&full[..70]).unwrap();
    assert!(generator.is_full());
    let mut generator = Generator::new(&mut model, Sampling::GREEDY).unwrap();
    assert!(matches!(generator.start(&full), Err(Error::ContextFull { .. })));
}

#[test]
fn the_same_request_gives_the_same_bits_whatever_the_cache_held() {
    for (name, shape) in &SHAPES {
        let tokens = Random(9).tokens(300, shape.n_vocab);
        let mut model = load(shape, with_context(300));
        let fresh = read(&mut model, 0, &tokens[..75], 40);
        read(&mut model, 0, &tokens, 150);
        for again in 0..3 {
            assert!(read(&mut model, 0, &tokens[..75], 40) == fresh, "{name}, time {again}");
        }
        let mut model = load(shape, with_context(300));
        assert!(read(&mut model, 0, &tokens[..75], 40) == fresh, "{name}, loaded anew");
    }
}

/// Sequences of many lengths, decoded together: more of them than a step has that spreads its
/// contexts over blocks, and fewer.
#[test]
fn company_changes_no_bit_of_a_sequence() {
    let lengths = [290, 1, 2, 31, 33, 127, 128, 129, 255, 256, 257, 5];
    for (name, shape) in &SHAPES {
        let mut model = load(shape, with_context(300));
        let texts: Vec<Vec<u32>> = lengths
            .iter()
            .enumerate()
            .map(|(i, n)| Random(10 + i as u64).tokens(n + 3, shape.n_vocab))
            .collect();
        let mut alone = Vec::new();
        for (text, &n) in texts.iter().zip(&lengths) {
            read(&mut model, 15, &text[..n], n);
            for position in n..n + 3 {
                model.forward(&[last(15, position, &text[position..=position])]).unwrap();
                alone.push(bits(&model, 1).remove(0));
            }
        }
        // Prompts of several sequences in one step; then all decode together, or the first few.
        for sequences in (0..lengths.len()).collect::<Vec<_>>().chunks(3) {
            let prompts = sequences.iter().map(|&s| last(s, 0, &texts[s][..lengths[s]]));
            model.forward(&prompts.collect::<Vec<_>>()).unwrap();
        }
        for n_together in [12, 9, 8, 3] {
            for step in 0..3 {
                let segments: Vec<_> = (0..n_together)
                    .map(|s| last(s, lengths[s] + step, &texts[s][lengths[s] + step..][..1]))
                    .collect();
                model.forward(&segments).unwrap();
                for (s, row) in bits(&model, n_together).into_iter().enumerate() {
                    let want = &alone[3 * s + step];
                    assert!(row == *want, "{name}: {n_together} together, sequence {s}, {step}");
                }
            }
        }
    }
}

/// A step that comes again is recorded and replayed where the device can; a watched one never is.
#[test]
fn a_recorded_step_gives_the_bits_of_its_launches() {
    for (name, shape) in &SHAPES {
        let tokens = Random(31).tokens(24, shape.n_vocab);
        let mut model = load(shape, with_context(70));
        let prompt = &tokens[..10];
        for sequence in [0, 1] {
            model.forward(&[last(sequence, 0, prompt)]).unwrap();
        }
        for position in 10..tokens.len() {
            let token = &tokens[position..=position];
            model.forward(&[last(0, position, token)]).unwrap();
            let replayed = bits(&model, 1);
            model.hidden_states(&[last(1, position, token)]).unwrap();
            assert!(replayed == bits(&model, 1), "{name}: {position}");
        }
    }
}

#[test]
fn nothing_to_read_is_no_step() {
    let (_, shape) = &SHAPES[0];
    let mut model = load(shape, with_context(70));
    let tokens = Random(30).tokens(20, shape.n_vocab);
    let want = read(&mut model, 0, &tokens, 20);
    assert_eq!(model.forward(&[]).unwrap(), 0);
    assert_eq!(model.forward(&[last(0, 70, &[]), last(99, 0, &[])]).unwrap(), 0);
    assert_eq!(model.hidden_states(&[]).unwrap(), [const { Vec::<f32>::new() }; 3]);
    assert!(bits(&model, 1)[0] == want);
    // An empty segment among others.
    let n = model.forward(&[last(1, 0, &[]), last(0, 0, &tokens), last(2, 5, &[])]).unwrap();
    assert_eq!(n, 1);
    assert!(bits(&model, 1)[0] == want);
    let mut generator = Generator::new(&mut model, Sampling::GREEDY).unwrap();
    assert!(matches!(generator.start(&[]), Err(Error::EmptyPrompt)));
}

/// As a server has it: at every step some of the sequences go on, by a token or by many.
#[test]
fn any_schedule_gives_the_bits_of_one_long_prefill() {
    for (seed, (name, shape)) in SHAPES.iter().enumerate() {
        let random = &mut Random(20 + seed as u64);
        let texts: Vec<Vec<u32>> = (0..5)
            .map(|_| {
                let n = random.within(1, 150);
                random.tokens(n, shape.n_vocab)
            })
            .collect();
        let options = Options { max_outputs: 512, ..with_context(150) };
        let mut model = load(shape, options);
        let alone: Vec<_> = texts
            .iter()
            .map(|tokens| {
                let logits = Logits::All;
                let segment = Segment { sequence: 15, position: 0, tokens, logits };
                model.forward(&[segment]).unwrap();
                bits(&model, tokens.len())
            })
            .collect();
        let mut read = vec![0; texts.len()];
        while read.iter().zip(&texts).any(|(&read, text)| read < text.len()) {
            let mut segments = Vec::new();
            for sequence in 0..texts.len() {
                let left = texts[sequence].len() - read[sequence];
                let most = random.pick(&[0, 1, 1, 1, 7, 30, 100]);
                let tokens = &texts[sequence][read[sequence]..][..left.min(most)];
                let (position, logits) = (read[sequence], Logits::All);
                segments.push(Segment { sequence, position, tokens, logits });
            }
            let n = model.forward(&segments).unwrap();
            let mut rows = bits(&model, n).into_iter();
            for Segment { sequence, tokens, .. } in &segments {
                for _ in *tokens {
                    let want = &alone[*sequence][read[*sequence]];
                    assert!(rows.next().unwrap() == *want, "{name}: {sequence}, {read:?}");
                    read[*sequence] += 1;
                }
            }
            assert!(rows.next().is_none());
        }
    }
}
