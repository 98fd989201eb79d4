//! Conversations as a model wants them: the template that its file carries (`jinja`), or for GPT-OSS
//! without one OpenAI's Harmony format (`harmony`). A template is as untrusted as the rest of a file.
//!
//! The one law: what somebody wrote stays text. A template's own `<|end|>` is the token, a user's is
//! seven characters. In Harmony the pieces are tokenised apart. A Jinja template sees one string and
//! gives one string, so the texts go in with a *mark*, a character that nobody used (a Unicode
//! noncharacter), wherever the spelling of a special token could begin or end, and marks are removed
//! when the special tokens have been found: a spelling with a mark in it is none. Marks stand inside
//! of the text, never before its first or behind its last visible character where white space could
//! follow, so that a template's `trim` works as ever; a template that counts a text's characters, or
//! cuts it at something spelled like a special token, sees the marks.

mod date;
pub mod harmony;
mod jinja;

use std::collections::HashSet;

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};

use crate::tokenizer::{Specials, Tokenizer};
use crate::{Error, Gguf, Result};

pub use date::Date;
pub use harmony::Effort;

/// The template's key.
const TEMPLATE: &str = "tokenizer.chat_template";

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// What the model is told before anything else.
    System,
    /// GPT-OSS: instructions of whoever builds on the model.
    Developer,
    /// The person.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// As templates spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::Developer => "developer",
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said; text, whatever it looks like.
    pub content: String,
}

impl Message {
    /// A turn.
    pub fn new(role: Role, content: impl Into<String>) -> Message {
        Message { role, content: content.into() }
    }
}

/// What a prompt depends on besides the messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The day that the model is told; none: it isn't told, or where it must be, 1970 began.
    pub today: Option<Date>,
    /// How long GPT-OSS thinks.
    pub effort: Effort,
}

/// How conversations are written for one model.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Harmony,
    Jinja(jinja::Template),
}

impl ChatTemplate {
    /// The template of a file; for GPT-OSS without one, Harmony.
    ///
    /// # Errors
    /// When the file has no template, or one that is none.
    pub fn from_gguf(gguf: &Gguf) -> Result<ChatTemplate> {
        match gguf.str(TEMPLATE)? {
            Some(source) => ChatTemplate::new(gguf.name(), source),
            None if gguf.str("general.architecture")? == Some("gpt-oss") => {
                Ok(ChatTemplate::harmony())
            }
            None => Err(Error::NoChatTemplate { origin: gguf.name().to_owned() }),
        }
    }

    /// A Jinja template; `origin` is what errors call its file.
    ///
    /// # Errors
    /// When it is not one.
    pub fn new(origin: &str, source: &str) -> Result<ChatTemplate> {
        Ok(ChatTemplate { kind: Kind::Jinja(jinja::Template::new(origin, source)?) })
    }

    /// OpenAI's format for GPT-OSS.
    pub fn harmony() -> ChatTemplate {
        ChatTemplate { kind: Kind::Harmony }
    }

    /// The prompt after which the model answers. Nothing is to be put before it.
    ///
    /// # Errors
    /// When the template fails, asks for more time or memory than prompts need, or the vocabulary
    /// lacks a special token of Harmony.
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        settings: &Settings,
    ) -> Result<Vec<u32>> {
        let template = match &self.kind {
            Kind::Harmony => {
                return harmony::encode(tokenizer, &harmony::conversation(messages, settings));
            }
            Kind::Jinja(template) => template,
        };
        let specials = Spellings::of(tokenizer);
        let mark = unused_character(template, messages)?;
        let marked: Vec<Message> = messages
            .iter()
            .map(|message| Message {
                role: message.role,
                content: specials.marked(&message.content, mark),
            })
            .collect();
        let text = template.render(tokenizer, &marked, settings)?;
        specials.encode(tokenizer, &text, mark)
    }
}

/// A noncharacter that is in no text.
fn unused_character(template: &jinja::Template, messages: &[Message]) -> Result<char> {
    let unused = |mark: &char| {
        !template.source().contains(*mark) && messages.iter().all(|m| !m.content.contains(*mark))
    };
    ('\u{fdd0}'..='\u{fdef}').find(unused).ok_or_else(|| Error::ChatTemplate {
        origin: template.origin().to_owned(),
        line: None,
        reason: "the messages hold every noncharacter from U+FDD0 to U+FDEF".to_owned(),
    })
}

/// The spellings of a vocabulary's special tokens that a template may mean. Those of one character, or
/// with white space at an end, are text to templates: a mark beside them would break words apart.
struct Spellings<'a> {
    all: Vec<(&'a str, u32)>,
    firsts: HashSet<char>,
    lasts: HashSet<char>,
}

impl Spellings<'_> {
    fn of(tokenizer: &Tokenizer) -> Spellings<'_> {
        let usable =
            |spelling: &str| spelling.trim() == spelling && spelling.chars().nth(1).is_some();
        let all: Vec<(&str, u32)> = tokenizer.specials().filter(|(text, _)| usable(text)).collect();
        Spellings {
            firsts: all.iter().filter_map(|(text, _)| text.chars().next()).collect(),
            lasts: all.iter().filter_map(|(text, _)| text.chars().next_back()).collect(),
            all,
        }
    }

    /// The text with marks behind every character that begins a special token, before every one that
    /// ends one, and behind the first visible character: so that no spelling can begin in the text,
    /// end in it, or hold all of it.
    fn marked(&self, text: &str, mark: char) -> String {
        let mut marked = String::with_capacity(text.len() + 8);
        let mut begun = false;
        for character in text.chars() {
            if self.lasts.contains(&character) {
                marked.push(mark);
            }
            marked.push(character);
            let first_visible = !begun && !character.is_whitespace();
            begun |= first_visible;
            if first_visible || self.firsts.contains(&character) {
                marked.push(mark);
            }
        }
        marked
    }

    /// The tokens of a rendered template: special tokens where they are spelled without a mark.
    fn encode(&self, tokenizer: &Tokenizer, text: &str, mark: char) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        let plain = |part: &str, ids: &mut Vec<u32>| -> Result<()> {
            let part: String = part.chars().filter(|character| *character != mark).collect();
            ids.extend(tokenizer.encode(&part, Specials::Plain)?);
            Ok(())
        };
        let search = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .kind(Some(AhoCorasickKind::ContiguousNFA)) // a DFA takes 1 KiB for each byte of spelling
            .build(self.all.iter().map(|(spelling, _)| spelling));
        // Too many bytes of spellings for the search, which the tokenizer has refused before.
        let Ok(search) = search else { return plain(text, &mut ids).map(|()| ids) };
        let mut start = 0;
        for found in search.find_iter(text) {
            plain(&text[start..found.start()], &mut ids)?;
            ids.push(self.all[found.pattern().as_usize()].1);
            start = found.end();
        }
        plain(&text[start..], &mut ids)?;
        Ok(ids)
    }
}
