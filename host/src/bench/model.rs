//! Whole models: how fast they read a prompt and generate, as their users meet it.

use super::{Spread, random_tokens};
use crate::error::Result;
use crate::generate::{Generator, Sampling};
use crate::model::Model;
use std::collections::BTreeSet;
use std::time::Instant;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    /// Reading a prompt of so many tokens, and choosing the first token after it.
    Prompt(usize),
    /// Generating so many tokens of each sequence.
    Generate(usize),
}

/// One measurement of a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// What is measured.
    pub test: Test,
    /// Tokens of each sequence that are in the cache before.
    pub depth: usize,
    /// Sequences.
    pub batch: usize,
    /// Timed runs, after one that is not.
    pub runs: usize,
    /// 0 always takes the likeliest token; else each sequence draws with its own seed.
    pub temperature: f32,
}

/// What was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// What was asked for.
    pub plan: Plan,
    /// Tokens a second, of all sequences together, by the host's clock.
    pub tokens_per_second: Spread,
    /// Milliseconds that one sequence waits for a token.
    pub ms_per_token: f64,
    /// Bytes of weights that a step reads; of experts, as many as are expected. None for a prompt.
    pub weight_bytes: Option<u64>,
    /// Bytes of keys and values that a step reads, in the mean. None for a prompt.
    pub cache_bytes: Option<u64>,
    /// Different tokens among those that went into a step, in the mean. The same token in two
    /// sequences would choose much the same experts, and less would be read than is expected.
    pub distinct_tokens: Option<f64>,
}

impl Plan {
    /// Such as `tg128 @ d4096 b4`.
    pub fn name(&self) -> String {
        let mut name = match self.test {
            Test::Prompt(n) => format!("pp{n}"),
            Test::Generate(n) => format!("tg{n}"),
        };
        if self.depth > 0 {
            name += &format!(" @ d{}", self.depth);
        }
        if self.batch > 1 {
            name += &format!(" b{}", self.batch);
        }
        name
    }

    /// Tokens of context that each sequence needs.
    pub fn context(&self) -> usize {
        self.depth + self.new_tokens()
    }

    /// Tokens that a run adds to each sequence.
    fn new_tokens(&self) -> usize {
        match self.test {
            Test::Prompt(n) | Test::Generate(n) => n,
        }
    }
}

impl Row {
    /// Bytes that a step reads. None for a prompt, whose time is not in what it reads.
    pub fn step_bytes(&self) -> Option<u64> {
        Some(self.weight_bytes? + self.cache_bytes?)
    }

    /// So many bytes a step, as bytes a second.
    pub fn rate(&self, step_bytes: u64) -> f64 {
        let steps_per_second = self.tokens_per_second.median() / self.plan.batch as f64;
        step_bytes as f64 * steps_per_second
    }
}

/// Measures. The cache is filled to the depth with random tokens, really read; the runs begin from
/// there, each taking back what the one before added.
///
/// # Errors
/// When the model has too little context or too few sequences, or a step fails.
pub fn measure(model: &mut Model, plan: &Plan) -> Result<Row> {
    let n_vocab = model.config().n_vocab;
    let (new_tokens, max_step) = (plan.new_tokens(), model.max_step());
    let (weight_bytes, cache_bytes) = match plan.test {
        Test::Prompt(_) => (None, None),
        Test::Generate(n) => {
            let cache: u64 = (0..n).map(|i| model.cache_bytes(plan.depth + i)).sum();
            let batch = plan.batch as u64;
            (Some(model.step_bytes(plan.batch)), Some(batch * cache / n.max(1) as u64))
        }
    };
    let samplings: Vec<Sampling> = (0..plan.batch)
        .map(|sequence| Sampling {
            temperature: plan.temperature,
            seed: sequence as u64,
            ..Sampling::GREEDY
        })
        .collect();
    let mut generator = Generator::of_several(model, &samplings)?;
    let prompt = random_tokens(u64::MAX, new_tokens, n_vocab);
    let (mut rates, mut seen) = (Vec::with_capacity(plan.runs), 0);
    let mut filled = false;
    for run in 0..=plan.runs {
        if filled && new_tokens < max_step {
            generator.rewind(new_tokens)?;
        } else {
            generator.restart();
            for sequence in 0..plan.batch {
                // The last token of them is the first that a step takes, and not yet in the cache.
                let tokens = random_tokens(sequence as u64, plan.depth + 1, n_vocab);
                generator.read(sequence, &tokens)?;
            }
            filled = true;
        }
        generator.model().device().synchronize()?;
        let started = Instant::now();
        match plan.test {
            Test::Prompt(_) => {
                generator.start(&prompt)?;
            }
            Test::Generate(n) => {
                for _ in 0..n {
                    let tokens = generator.next_of_all()?;
                    if run > 0 && plan.batch > 1 {
                        seen += tokens.iter().collect::<BTreeSet<_>>().len();
                    }
                }
            }
        }
        let time = started.elapsed();
        if run > 0 {
            rates.push(super::per_second((new_tokens * plan.batch) as u64, time));
        }
    }
    let steps = (plan.runs * new_tokens).max(1) as f64;
    let tokens_per_second = Spread::of(rates);
    Ok(Row {
        plan: *plan,
        ms_per_token: 1e3 * plan.batch as f64 / tokens_per_second.median(),
        tokens_per_second,
        weight_bytes,
        cache_bytes,
        distinct_tokens: (weight_bytes.is_some() && plan.batch > 1).then(|| seen as f64 / steps),
    })
}
