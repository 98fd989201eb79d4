//! `ironwarp generate`: text that goes on from a prompt.

use super::model::ModelArgs;
use anyhow::{Context, bail, ensure};
use ironwarp::chat::{ChatTemplate, Date, Effort, Message, Role, Settings};
use ironwarp::generate::{Generator, Sampling};
use ironwarp::tokenizer::{Decoder, Specials};
use ironwarp::{Gguf, Options, Tokenizer};
use std::io::{Write, stderr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Generate text from a prompt
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The text to go on from
    #[arg(short, long)]
    prompt: String,
    /// Read special tokens such as <|start|> in the prompt as such
    #[arg(long)]
    special: bool,
    /// Put the prompt as a message of a user, in the way that the model's file tells
    #[arg(long, conflicts_with = "special")]
    chat: bool,
    /// What the model is told before the message
    #[arg(long, requires = "chat")]
    system: Option<String>,
    /// How long gpt-oss thinks before it answers
    #[arg(long, requires = "chat", value_enum, default_value = "medium")]
    effort: EffortChoice,
    /// Tokens to generate at most
    #[arg(short, long, default_value_t = 128)]
    n: usize,
    /// Go on past the tokens that end a text
    #[arg(long)]
    ignore_eos: bool,
    /// 0 always takes the likeliest token
    #[arg(long, default_value_t = 0.8)]
    temperature: f32,
    /// Choose among this many of the likeliest tokens; 0: all
    #[arg(long, default_value_t = 40)]
    top_k: u32,
    /// Choose among the likeliest tokens that together have this probability
    #[arg(long, default_value_t = 0.95)]
    top_p: f32,
    /// Choose among tokens at least this likely, relative to the likeliest
    #[arg(long, default_value_t = 0.05)]
    min_p: f32,
    /// The same seed gives the same text [default: from the clock]
    #[arg(long)]
    seed: Option<u64>,
}

/// How long gpt-oss thinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum EffortChoice {
    /// Hardly.
    Low,
    /// Some time.
    Medium,
    /// Long.
    High,
}

/// Runs the subcommand.
pub fn run(args: &Args, out: &mut dyn Write) -> anyhow::Result<()> {
    let sampling = Sampling {
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        min_p: args.min_p,
        seed: args.seed.unwrap_or_else(clock_seed),
    };
    sampling.check()?;
    let started = Instant::now();
    let gguf = args.model.open_gguf()?;
    let tokenizer = Tokenizer::from_gguf(&gguf)?;
    let mut prompt = prompt(args, &gguf, &tokenizer)?;
    let device = args.model.open_device()?;
    let mut model = args.model.load(&device, &gguf, Options::default())?;
    let load_time = started.elapsed();

    if prompt.is_empty() {
        // Something must come first: the token that begins a text, or the one that ends the last.
        match tokenizer.bos().or(tokenizer.eos()) {
            Some(token) => prompt.push(token),
            None => bail!("the prompt is empty, and the vocabulary has no token to begin with"),
        }
    }
    let context = model.context();
    ensure!(
        prompt.len() < context,
        "the prompt has {} tokens, and the context only {context}; ask for a longer one with --ctx",
        prompt.len()
    );

    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&interrupted);
    ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed)).context("Ctrl-C")?;
    let mut decoder = Decoder::new();
    if !args.chat {
        write!(out, "{}", args.prompt)?;
        out.flush()?;
    }
    let mut generator = Generator::new(&mut model, sampling)?;
    let prompt_started = Instant::now();
    let mut token = generator.start(&prompt)?;
    let prompt_time = prompt_started.elapsed();
    let decode_started = Instant::now();
    let mut n_decoded = 0;
    for i in 0..args.n {
        if interrupted.load(Ordering::Relaxed) || (tokenizer.is_stop(token) && !args.ignore_eos) {
            break;
        }
        out.write_all(decoder.push(&tokenizer, token)?.as_bytes())?;
        out.flush()?;
        if i + 1 == args.n || generator.is_full() {
            break;
        }
        token = generator.next()?;
        n_decoded += 1;
    }
    let decode_time = decode_started.elapsed();
    out.write_all(decoder.finish().as_bytes())?;
    writeln!(out)?;
    out.flush()?;

    let rate = |n: usize, seconds: f64| if seconds > 0.0 { n as f64 / seconds } else { 0.0 };
    let decode_rate = rate(n_decoded, decode_time.as_secs_f64());
    let mut report = format!(
        "\nload {:.2} s | prompt {} tokens, {:.1} tokens/s | generated {} tokens, {:.1} tokens/s",
        load_time.as_secs_f64(),
        prompt.len(),
        rate(prompt.len(), prompt_time.as_secs_f64()),
        n_decoded + 1,
        decode_rate,
    );
    if let Some(bandwidth) = device.as_cuda().and_then(|cuda| cuda.info().bandwidth()) {
        let read = model.decode_bytes() as f64 * decode_rate;
        let share = 100.0 * read / bandwidth;
        report += &format!(" | {:.0} GB/s of weights, {share:.0} % of the card's", read / 1e9);
    }
    writeln!(stderr(), "{report}")?;
    Ok(())
}

/// The prompt's tokens: a conversation as the model's template has it, or the text as it is.
fn prompt(args: &Args, gguf: &Gguf, tokenizer: &Tokenizer) -> anyhow::Result<Vec<u32>> {
    if args.chat {
        let system = args.system.iter().map(|text| Message::new(Role::System, text));
        let user = Message::new(Role::User, &args.prompt);
        let messages: Vec<Message> = system.chain([user]).collect();
        let effort = match args.effort {
            EffortChoice::Low => Effort::Low,
            EffortChoice::Medium => Effort::Medium,
            EffortChoice::High => Effort::High,
        };
        let settings = Settings { today: Some(Date::today()), effort };
        let template = ChatTemplate::from_gguf(gguf).context("--chat")?;
        return template.encode(tokenizer, &messages, &settings).context("--chat");
    }
    let specials = if args.special { Specials::Parse } else { Specials::Plain };
    let mut prompt = tokenizer.encode(&args.prompt, specials)?;
    if tokenizer.add_bos()
        && let Some(bos) = tokenizer.bos()
    {
        prompt.insert(0, bos);
    }
    Ok(prompt)
}

/// A seed for whoever wants another text every time.
fn clock_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |time| time.as_nanos() as u64)
}
