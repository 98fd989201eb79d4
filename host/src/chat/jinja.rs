//! Jinja templates as transformers runs them, within limits: a template is part of a file that nobody
//! has checked. The engine counts instructions and bytes alike as fuel, and stops when it is used up.

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
        let parsed = environment(0, None).template_from_str(source).map(drop);
        parsed.map_err(|error| template.fault(&error))?;
        Ok(template)
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
        let environment = environment(bytes, settings.today);
        let messages: Vec<Value> = messages
            .iter()
            .map(|message| context! { role => message.role.name(), content => &message.content })
            .collect();
        let template = environment.template_from_str(&self.source);
        let rendered = template.and_then(|template| {
            template.render(context! {
                messages, bos_token, eos_token,
                add_generation_prompt => true,
                reasoning_effort => settings.effort.name(),
            })
        });
        rendered.map_err(|error| self.fault(&error))
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

/// What templates find: transformers' white space rules and functions, Python's methods.
fn environment<'a>(message_bytes: u64, today: Option<Date>) -> Environment<'a> {
    let mut environment = Environment::new();
    // A prompt reads each message a few times: a unit for each of its bytes allows 64.
    environment.set_fuel(Some(BASE_FUEL + message_bytes));
    environment.set_recursion_limit(MAX_RECURSION);
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    if let Ok(syntax) = syntax {
        environment.set_syntax(syntax);
    }
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
