//! Patterns for unstructured text: terms that must be there, `-terms` that must not, and `?terms` of which one must be. A
//! term is a word, a quoted phrase or a regular expression between percent signs.

use regex::Regex;

use super::PatternError;
use super::text::{Regexes, phrase};

#[derive(Clone, Debug, Default)]
pub(super) struct Terms {
    all: Vec<Term>,
    any: Vec<Term>,
    none: Vec<Term>,
}

#[derive(Clone, Debug)]
enum Term {
    Text(String),
    Regex(Regex),
}

impl Term {
    fn is_in(&self, message: &str) -> bool {
        match self {
            Term::Text(text) => message.contains(text.as_str()),
            Term::Regex(regex) => regex.is_match(message),
        }
    }
}

impl Terms {
    pub(super) fn parse(text: &str) -> Result<Terms, PatternError> {
        let mut terms = Terms::default();
        let mut regexes = Regexes::default();
        let mut rest = text.trim();
        while !rest.is_empty() {
            let (list, after) = match rest.strip_prefix('-') {
                Some(after) => (&mut terms.none, after),
                None => match rest.strip_prefix('?') {
                    Some(after) => (&mut terms.any, after),
                    None => (&mut terms.all, rest),
                },
            };
            let (term, after) = term(after, &mut regexes)?;
            // An empty phrase is in every message.
            if !matches!(&term, Term::Text(text) if text.is_empty()) {
                list.push(term);
            }
            rest = after.trim_start();
        }
        Ok(terms)
    }

    pub(super) fn matches(&self, message: &str) -> bool {
        // Beside terms that must or must not be there, optional ones decide nothing.
        let optional_decide = !self.any.is_empty() && self.all.is_empty() && self.none.is_empty();
        self.all.iter().all(|term| term.is_in(message))
            && !self.none.iter().any(|term| term.is_in(message))
            && (!optional_decide || self.any.iter().any(|term| term.is_in(message)))
    }
}

/// The first term of the text, and what follows it.
fn term<'a>(text: &'a str, regexes: &mut Regexes) -> Result<(Term, &'a str), PatternError> {
    if text.starts_with('"') {
        let (phrase, after) = phrase(text)?;
        return Ok((Term::Text(phrase), after));
    }
    if text.starts_with('%') {
        let (regex, after) = regexes.take(text)?;
        return Ok((Term::Regex(regex), after));
    }
    let end = text.find(char::is_whitespace).unwrap_or(text.len());
    let (word, after) = text.split_at(end);
    // Everything else is for quoted phrases, as other kinds of pattern give it a meaning.
    let in_a_word = |character: char| character.is_alphanumeric() || character == '_';
    if word.is_empty() || !word.chars().all(in_a_word) {
        return Err(PatternError::Characters(word.to_owned()));
    }
    Ok((Term::Text(word.to_owned()), after))
}
