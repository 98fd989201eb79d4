//! Harmony, the format of GPT-OSS, as OpenAI's own renderer writes it: messages between `<|start|>` and
//! `<|end|>`, each with a role, maybe a channel and a recipient. Special tokens and texts are pieces of
//! different kinds, so that no text can become a token.

use super::{Date, Message, Role, Settings};
use crate::tokenizer::{Specials, Tokenizer};
use crate::{Error, Result};

const IDENTITY: &str = "You are ChatGPT, a large language model trained by OpenAI.";
const KNOWLEDGE_CUTOFF: &str = "2024-06";
const CHANNELS: &str = "analysis, commentary, final";
const CONSTRAIN: &str = "<|constrain|>";

/// How long the model thinks before it answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Effort {
    /// Hardly.
    Low,
    /// Some time.
    #[default]
    Medium,
    /// Long.
    High,
}

impl Effort {
    /// As prompts spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Effort::Low => "low",
            Effort::Medium => "medium",
            Effort::High => "high",
        }
    }
}

/// What a turn says.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// What the model is told of itself; `functions`: that there are tools.
    System {
        /// The day of the conversation.
        today: Option<Date>,
        /// How long to think.
        effort: Effort,
        /// Whether the developer's message has functions.
        functions: bool,
    },
    /// Instructions and functions of whoever builds on the model.
    Developer {
        /// What to do.
        instructions: Option<String>,
        /// What the model may call.
        functions: Vec<Function>,
    },
    /// Anything else.
    Text(String),
}

/// A function that the model may call.
#[derive(Clone, Debug, PartialEq)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// What it does.
    pub description: String,
    /// What it takes, if anything.
    pub parameters: Vec<Parameter>,
}

/// A parameter of a function, or a field of an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// Its name.
    pub name: String,
    /// What it means.
    pub description: Option<String>,
    /// What it may be.
    pub kind: Kind,
    /// What it is where it is left out.
    pub default: Option<String>,
    /// Whether it may not be left out.
    pub required: bool,
}

/// Types of parameters.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// Text.
    String,
    /// One of these texts.
    OneOf(Vec<String>),
    /// A number.
    Number,
    /// Yes or no.
    Boolean,
    /// Several of a type.
    Array(Box<Kind>),
    /// Fields.
    Object(Vec<Parameter>),
    /// Anything.
    Any,
}

/// A turn of a conversation.
#[derive(Clone, Debug, PartialEq)]
pub struct Turn {
    /// `system`, `developer`, `user`, `assistant`, or the name of a function.
    pub author: String,
    /// Whom it is for, where that is not everyone.
    pub recipient: Option<String>,
    /// `analysis`, `commentary` or `final`.
    pub channel: Option<String>,
    /// What kind of text follows, maybe after `<|constrain|>`.
    pub content_type: Option<String>,
    /// What it says.
    pub content: Content,
}

impl Turn {
    /// A turn for everyone, in no channel.
    pub fn new(author: impl Into<String>, content: Content) -> Turn {
        Turn { author: author.into(), recipient: None, channel: None, content_type: None, content }
    }
}

/// Part of a prompt: a special token, or text that is none whatever it looks like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// A special token.
    Special(&'static str),
    /// Text.
    Text(String),
}

/// The conversation of plain messages: the model's own system message first, what the caller calls
/// system is the developer's, as OpenAI has it, and answers are final.
pub fn conversation(messages: &[Message], settings: &Settings) -> Vec<Turn> {
    let Settings { today, effort } = *settings;
    let system = Content::System { today, effort, functions: false };
    let mut turns = vec![Turn::new(Role::System.name(), system)];
    turns.extend(messages.iter().map(|message| {
        let text = message.content.clone();
        match message.role {
            Role::System | Role::Developer => {
                let content =
                    Content::Developer { instructions: Some(text), functions: Vec::new() };
                Turn::new(Role::Developer.name(), content)
            }
            Role::User => Turn::new(Role::User.name(), Content::Text(text)),
            Role::Assistant => Turn {
                channel: Some("final".to_owned()),
                ..Turn::new(Role::Assistant.name(), Content::Text(text))
            },
        }
    }));
    turns
}

/// The tokens of a conversation after which the model answers.
///
/// # Errors
/// When the vocabulary lacks a special token of Harmony.
pub fn encode(tokenizer: &Tokenizer, turns: &[Turn]) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for piece in render(turns) {
        match piece {
            Piece::Special(spelling) => ids.push(
                tokenizer.special(spelling).ok_or(Error::NoHarmonyToken { token: spelling })?,
            ),
            Piece::Text(text) => ids.extend(tokenizer.encode(&text, Specials::Plain)?),
        }
    }
    Ok(ids)
}

/// The pieces of a conversation after which the model answers. Thoughts that led to a final answer are
/// left out: the model was trained to see only those of the answer that it is at.
pub fn render(turns: &[Turn]) -> Vec<Piece> {
    let mut pieces = Pieces(Vec::new());
    let is = |turn: &Turn, channel: &str| {
        turn.author == Role::Assistant.name() && turn.channel.as_deref() == Some(channel)
    };
    let last_final = turns.iter().rposition(|turn| is(turn, "final"));
    for (index, turn) in turns.iter().enumerate() {
        let thought = is(turn, "analysis") && last_final.is_some_and(|last| index < last);
        if !thought {
            pieces.turn(turn);
        }
    }
    pieces.special("<|start|>");
    pieces.text(Role::Assistant.name());
    pieces.0
}

struct Pieces(Vec<Piece>);

impl Pieces {
    fn special(&mut self, spelling: &'static str) {
        self.0.push(Piece::Special(spelling));
    }

    /// Neighbouring texts are one.
    fn text(&mut self, text: &str) {
        match self.0.last_mut() {
            Some(Piece::Text(before)) => before.push_str(text),
            _ => self.0.push(Piece::Text(text.to_owned())),
        }
    }

    fn turn(&mut self, turn: &Turn) {
        self.special("<|start|>");
        self.text(&turn.author);
        if let Some(recipient) = &turn.recipient {
            self.text(&format!(" to={recipient}"));
        }
        if let Some(channel) = &turn.channel {
            self.special("<|channel|>");
            self.text(channel);
        }
        if let Some(content_type) = &turn.content_type {
            self.text(" ");
            match content_type.strip_prefix(CONSTRAIN) {
                Some(rest) => {
                    self.special(CONSTRAIN);
                    self.text(rest);
                }
                None => self.text(content_type),
            }
        }
        self.special("<|message|>");
        self.text(&match &turn.content {
            Content::System { today, effort, functions } => system(*today, *effort, *functions),
            Content::Developer { instructions, functions } => {
                developer(instructions.as_deref(), functions)
            }
            Content::Text(text) => text.clone(),
        });
        // A call of a function waits for its result.
        let calls = turn.author == Role::Assistant.name() && turn.recipient.is_some();
        self.special(if calls { "<|call|>" } else { "<|end|>" });
    }
}

fn system(today: Option<Date>, effort: Effort, functions: bool) -> String {
    let today = today.and_then(|date| date.format("%F"));
    let today = today.map_or_else(String::new, |date| format!("\nCurrent date: {date}"));
    let functions = if functions {
        "\nCalls to these tools must go to the commentary channel: 'functions'."
    } else {
        ""
    };
    format!(
        "{IDENTITY}\nKnowledge cutoff: {KNOWLEDGE_CUTOFF}{today}\n\nReasoning: {}\n\n\
         # Valid channels: {CHANNELS}. Channel must be included for every message.{functions}",
        effort.name(),
    )
}

fn developer(instructions: Option<&str>, functions: &[Function]) -> String {
    let mut sections = Vec::new();
    if let Some(instructions) = instructions {
        sections.push(format!("# Instructions\n\n{instructions}"));
    }
    if !functions.is_empty() {
        let declared: String = functions.iter().map(declaration).collect();
        sections.push(format!(
            "# Tools\n\n## functions\n\nnamespace functions {{\n\n{declared}}} // namespace functions"
        ));
    }
    sections.join("\n\n")
}

/// A function as a type of TypeScript.
fn declaration(function: &Function) -> String {
    let mut text = comment(&function.description, "");
    let takes = match function.parameters.is_empty() {
        true => String::new(),
        false => format!("_: {}", object(&function.parameters, "")),
    };
    text += &format!("type {} = ({takes}) => any;\n\n", function.name);
    text
}

fn comment(text: &str, indent: &str) -> String {
    text.lines().map(|line| format!("{indent}// {line}\n")).collect()
}

fn object(fields: &[Parameter], indent: &str) -> String {
    let mut text = "{\n".to_owned();
    for field in fields {
        if let Some(description) = &field.description {
            text += &comment(description, indent);
        }
        let optional = if field.required { "" } else { "?" };
        text += &format!("{indent}{}{optional}: {},", field.name, type_of(&field.kind, indent));
        if let Some(default) = &field.default {
            text += &format!(" // default: {default}");
        }
        text.push('\n');
    }
    text + indent + "}"
}

fn type_of(kind: &Kind, indent: &str) -> String {
    match kind {
        Kind::String => "string".to_owned(),
        Kind::OneOf(texts) => {
            let quoted: Vec<String> = texts.iter().map(|text| format!("\"{text}\"")).collect();
            quoted.join(" | ")
        }
        Kind::Number => "number".to_owned(),
        Kind::Boolean => "boolean".to_owned(),
        Kind::Array(of) => format!("{}[]", type_of(of, indent)),
        Kind::Object(fields) => object(fields, &format!("{indent}    ")),
        Kind::Any => "any".to_owned(),
    }
}
