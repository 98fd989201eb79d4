//! Jinja templates as transformers runs them, within limits: a template is part of a file that nobody
//! has checked. The engine counts instructions and bytes alike as fuel, and stops when it is used up.
//! What it does not bound:
//! - how deep it calls itself for chains such as `x|trim|trim`: so the tokens of a tag are counted
//!   before, and it runs on a stack that is large enough for them;
//! - how long it walks over lists that hold the same lists many times over, which takes no memory: so
//!   it runs in a thread of its own, and after some seconds nobody waits for it any longer. That
//!   thread then goes on until the program ends.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use minijinja::machinery::{Token, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{Environment, ErrorKind, State, Value, context};
use minijinja_contrib::pycompat;

use super::{Date, Message, Settings};
use crate::{Error, Result, Tokenizer};

/// The longest template; those in use have up to 20 kB.
const MAX_SOURCE_BYTES: usize = 1 << 20;
/// Fuel before any message: instructions, or 64 bytes of data each, so some 6 MB. Templates in use need
/// a hundredth.
const BASE_FUEL: u64 = 100_000;
/// Tokens of a tag, of which each may be a level of the syntax tree; templates in use have up to 100.
const MAX_TAG_TOKENS: usize = 1000;
/// An `elif` is an `if` in an `else`, a level too.
const MAX_ELIFS: usize = 250;
/// Bytes of stack. The levels above take 2 MiB at most where nothing is optimised, and lists in lists,
/// which cost five units of fuel a level, 20 MiB.
const STACK_BYTES: usize = 64 << 20;
/// Prompts take milliseconds.
const DEADLINE: Duration = Duration::from_secs(5);
/// Macros in macros.
const MAX_RECURSION: usize = 64;
/// Bytes that a unit of fuel pays for.
const BYTES_PER_FUEL: usize = 64;

/// A template that can be parsed.
#[derive(Clone, Debug)]
pub(super) struct Template {
    origin: String,
    source: String,
}

impl Template {
    pub(super) fn new(origin: &str, source: &str) -> Result<Template> {
        let template = Template { origin: origin.to_owned(), source: source.to_owned() };
        if source.len() > MAX_SOURCE_BYTES {
            let reason = format!("{} bytes, expected at most {MAX_SOURCE_BYTES}", source.len());
            return Err(Error::ChatTemplate { origin: template.origin, line: None, reason });
        }
        if let Some(reason) = too_deep(source) {
            return Err(Error::ChatTemplate { origin: template.origin, line: None, reason });
        }
        let parsed = source.to_owned();
        template.apart(move || environment(0, None).template_from_str(&parsed).map(drop))?;
        Ok(template)
    }

    /// Runs the engine beside, on a large stack; an error names the template.
    fn apart<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, minijinja::Error> + Send + 'static,
    ) -> Result<T> {
        let (send, receive) = mpsc::channel();
        let thread = thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
            // Nobody listens any more where it took too long.
            let _ = send.send(work());
        });
        let reason = match thread {
            Ok(thread) => match receive.recv_timeout(DEADLINE) {
                Ok(done) => {
                    // It has nothing left to do, and nothing of it is left behind.
                    let _ = thread.join();
                    return done.map_err(|error| self.fault(&error));
                }
                Err(RecvTimeoutError::Timeout) => {
                    format!("it takes longer than {} s", DEADLINE.as_secs())
                }
                Err(RecvTimeoutError::Disconnected) => "the engine gave up".to_owned(),
            },
            Err(error) => format!("there is no thread to run it: {error}"),
        };
        Err(Error::ChatTemplate { origin: self.origin.clone(), line: None, reason })
    }

    pub(super) fn source(&self) -> &str {
        &self.source
    }

    pub(super) fn origin(&self) -> &str {
        &self.origin
    }

    /// The prompt as text, the answer's begin included.
    pub(super) fn render(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        settings: &Settings,
    ) -> Result<String> {
        let spelling = |id: Option<u32>| -> Result<String> {
            match id {
                Some(id) => Ok(String::from_utf8_lossy(tokenizer.token_bytes(id)?).into_owned()),
                None => Ok(String::new()),
            }
        };
        let (bos_token, eos_token) = (spelling(tokenizer.bos())?, spelling(tokenizer.eos())?);
        let bytes = messages.iter().map(|message| message.content.len() as u64).sum();
        let (source, settings) = (self.source.clone(), *settings);
        let messages = messages.to_vec();
        self.apart(move || {
            let message = |message: &Message| {
                context! { role => message.role.name(), content => message.content.as_str() }
            };
            environment(bytes, settings.today).template_from_str(&source)?.render(context! {
                messages => messages.iter().map(message).collect::<Vec<Value>>(),
                bos_token, eos_token,
                add_generation_prompt => true,
                reasoning_effort => settings.effort.name(),
            })
        })
    }

    fn fault(&self, error: &minijinja::Error) -> Error {
        let reason = match error.kind() {
            ErrorKind::OutOfFuel => "it takes more time or memory than a prompt needs".to_owned(),
            kind => match error.detail() {
                Some(detail) => format!("{kind}: {detail}"),
                None => kind.to_string(),
            },
        };
        // What it says may quote the file.
        let reason = crate::gguf::quoted(&reason);
        Error::ChatTemplate { origin: self.origin.clone(), line: error.line(), reason }
    }
}

/// White space around tags as transformers has it.
fn syntax() -> SyntaxConfig {
    // Only delimiters can be wrong, and these are the usual ones.
    (SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()).unwrap_or_default()
}

/// Why a template might be nested deeper than the stack allows.
fn too_deep(source: &str) -> Option<String> {
    let (mut n_tokens, mut n_elifs) = (0, 0);
    // What is no token is an error of the parser's too, and it tells the line.
    for (token, _) in tokenize(source, false, syntax()).map_while(|token| token.ok()) {
        n_tokens += 1;
        match token {
            Token::VariableStart | Token::BlockStart | Token::TemplateData(_) => n_tokens = 0,
            Token::Ident("elif") => n_elifs += 1,
            _ => {}
        }
        if n_tokens > MAX_TAG_TOKENS {
            return Some(format!("a tag of more than {MAX_TAG_TOKENS} tokens"));
        }
        if n_elifs > MAX_ELIFS {
            return Some(format!("more than {MAX_ELIFS} times elif"));
        }
    }
    None
}

/// What templates find: transformers' white space rules and functions, Python's methods.
fn environment<'a>(message_bytes: u64, today: Option<Date>) -> Environment<'a> {
    let mut environment = Environment::new();
    // A prompt reads each message a few times: a unit for each of its bytes allows 64.
    environment.set_fuel(Some(BASE_FUEL + message_bytes));
    environment.set_recursion_limit(MAX_RECURSION);
    environment.set_syntax(syntax());
    environment.set_unknown_method_callback(method);
    environment.add_function("raise_exception", |reason: String| -> Result<Value, _> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, reason))
    });
    environment.add_function("strftime_now", move |pattern: String| {
        let date = today.unwrap_or(Date::of_days(0));
        date.format(&pattern).ok_or_else(|| {
            let reason = format!("strftime_now can't write \"{pattern}\"");
            minijinja::Error::new(ErrorKind::InvalidOperation, reason)
        })
    });
    environment
}

/// Python's methods. The engine charges for what they return once it is there, so those that may return
/// much more than they are given go through filters that look first, or pay before.
fn method(
    state: &mut State,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, minijinja::Error> {
    let text_bytes = value.as_str().map_or(0, str::len);
    match (value.kind(), name) {
        (ValueKind::String, "replace") if args.len() == 2 => {
            state.apply_filter("replace", &[value.clone(), args[0].clone(), args[1].clone()])
        }
        (ValueKind::String, "join") if args.len() == 1 => {
            state.apply_filter("join", &[args[0].clone(), value.clone()])
        }
        (ValueKind::String, "replace" | "join" | "format") => {
            Err(minijinja::Error::from(ErrorKind::UnknownMethod))
        }
        // At most a piece for each byte, of the size of a value.
        (ValueKind::String, "split" | "splitlines") => {
            let pieces = text_bytes as u64 + 1;
            state.consume_fuel(pieces * size_of::<Value>() as u64 / BYTES_PER_FUEL as u64 + 1)?;
            pycompat::unknown_method_callback(state, value, name, args)
        }
        _ => {
            state.consume_fuel((text_bytes / BYTES_PER_FUEL) as u64 + 1)?;
            pycompat::unknown_method_callback(state, value, name, args)
        }
    }
}
