//! CloudWatch's filter patterns: for unstructured text (`terms`), for JSON (`json`) and for fields with spaces between
//! (`fields`).

mod fields;
mod json;
mod terms;
#[cfg(test)]
mod tests;
mod text;

use self::fields::Fields;
use self::json::Expression;
use self::terms::Terms;

/// What a message must be like.
#[derive(Clone, Debug)]
pub(super) struct Pattern(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Terms(Terms),
    Json(Expression),
    Fields(Fields),
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PatternError {
    #[error("Invalid character(s) in term '{0}'")]
    Characters(String),
    #[error("Invalid filter pattern: a quotation mark is not closed")]
    Quote,
    #[error("Invalid filter pattern: a regular expression has no '%' at its end")]
    Percent,
    #[error("Invalid filter pattern: '{0}' is not a regular expression")]
    Regex(String),
    #[error("Invalid filter pattern: it has more than 2 regular expressions")]
    TooManyRegexes,
    #[error("Invalid filter pattern: its selectors have more than 3 wildcards")]
    TooManyWildcards,
    #[error("Invalid filter pattern: its parentheses are too deep")]
    TooDeep,
    #[error("Invalid filter pattern: only numbers can be compared with <, <=, > and >=")]
    NotANumber,
    #[error("Invalid filter pattern: it has more than one ellipsis")]
    Ellipsis,
    #[error("Invalid filter pattern: the conditions of one field name another, '{0}'")]
    OtherField(String),
    #[error("Invalid filter pattern: expected {what}, found '{found}'")]
    Expected { what: &'static str, found: String },
    #[error("Invalid filter pattern: it is longer than {MAX_PATTERN_CHARS} characters")]
    TooLong,
}

const MAX_PATTERN_CHARS: usize = 1024;

impl Pattern {
    pub(super) fn parse(text: &str) -> Result<Pattern, PatternError> {
        if text.chars().count() > MAX_PATTERN_CHARS {
            return Err(PatternError::TooLong);
        }
        let kind = match text.trim_start().chars().next() {
            Some('{') => Expression::parse(text).map(Kind::Json),
            Some('[') => Fields::parse(text).map(Kind::Fields),
            _ => Terms::parse(text).map(Kind::Terms),
        };
        kind.map(Pattern)
    }

    pub(super) fn matches(&self, message: &str) -> bool {
        match &self.0 {
            Kind::Terms(terms) => terms.matches(message),
            Kind::Json(expression) => expression.matches(message),
            Kind::Fields(fields) => fields.matches(message),
        }
    }
}
