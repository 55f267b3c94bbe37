//! CloudWatch's filter patterns for unstructured text: words that must be there, `-words` that must not, and `?words`
//! of which one must be. JSON patterns, space-delimited patterns and regular expressions are refused.

/// What a message must be like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pattern {
    all: Vec<String>,
    any: Vec<String>,
    none: Vec<String>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PatternError {
    #[error("Berth does not support {0} filter patterns yet.")]
    Unsupported(&'static str),
    #[error("Invalid character(s) in term '{0}'")]
    Characters(String),
    #[error("Invalid filter pattern: a quotation mark is not closed")]
    Quote,
    #[error("Invalid filter pattern: it is longer than {MAX_PATTERN_CHARS} characters")]
    TooLong,
}

const MAX_PATTERN_CHARS: usize = 1024;

impl Pattern {
    pub(super) fn parse(text: &str) -> Result<Pattern, PatternError> {
        if text.chars().count() > MAX_PATTERN_CHARS {
            return Err(PatternError::TooLong);
        }
        let mut rest = text.trim();
        match rest.chars().next() {
            Some('{') => return Err(PatternError::Unsupported("JSON")),
            Some('[') => return Err(PatternError::Unsupported("space-delimited")),
            _ => {}
        }
        let mut pattern = Pattern::default();
        while !rest.is_empty() {
            let (terms, after) = match rest.strip_prefix('-') {
                Some(after) => (&mut pattern.none, after),
                None => match rest.strip_prefix('?') {
                    Some(after) => (&mut pattern.any, after),
                    None => (&mut pattern.all, rest),
                },
            };
            let (term, after) = term(after)?;
            // An empty phrase is in every message.
            if !term.is_empty() {
                terms.push(term);
            }
            rest = after.trim_start();
        }
        Ok(pattern)
    }

    pub(super) fn matches(&self, message: &str) -> bool {
        let is_in = |term: &String| message.contains(term.as_str());
        self.all.iter().all(is_in)
            && !self.none.iter().any(is_in)
            // Beside words that must be there, optional ones decide nothing.
            && (self.any.is_empty() || !self.all.is_empty() || self.any.iter().any(is_in))
    }
}

/// The first term of the text, and what follows it.
fn term(text: &str) -> Result<(String, &str), PatternError> {
    if let Some(quoted) = text.strip_prefix('"') {
        return phrase(quoted);
    }
    if text.starts_with('%') {
        return Err(PatternError::Unsupported("regular expression"));
    }
    let end = text.find(char::is_whitespace).unwrap_or(text.len());
    let (word, after) = text.split_at(end);
    // Everything else is for quoted phrases, as other kinds of pattern give it a meaning.
    if word.is_empty()
        || !word
            .chars()
            .all(|character| character.is_alphanumeric() || character == '_')
    {
        return Err(PatternError::Characters(word.to_owned()));
    }
    Ok((word.to_owned(), after))
}

/// What is left of a phrase whose quotation mark was read; a backslash keeps the character after it.
fn phrase(text: &str) -> Result<(String, &str), PatternError> {
    let mut phrase = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Ok((phrase, &text[at + 1..])),
            '\\' => phrase.extend(characters.next().map(|(_, kept)| kept)),
            character => phrase.push(character),
        }
    }
    Err(PatternError::Quote)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, message: &str) -> bool {
        Pattern::parse(pattern).unwrap().matches(message)
    }

    #[test]
    fn every_word_must_be_there() {
        assert!(matches("ERROR disk", "disk ERROR: full"));
        assert!(!matches("ERROR disk", "ERROR: full"));
        assert!(!matches("error", "ERROR"), "case counts");
        assert!(matches("", "anything") && matches("  ", ""));
    }

    #[test]
    fn a_phrase_is_one_term() {
        assert!(matches("\"disk is full\"", "the disk is full now"));
        assert!(!matches("\"disk is full\"", "full is disk"));
        assert!(matches(r#""say \"x\" [1]""#, r#"say "x" [1]"#));
        assert!(matches("\"\"", "anything"));
    }

    #[test]
    fn excluded_words_must_not_be_there() {
        assert!(matches("ERROR -timeout", "ERROR disk"));
        assert!(!matches("ERROR -timeout", "ERROR timeout"));
        assert!(!matches("-\"time out\"", "a time out"));
    }

    #[test]
    fn one_of_the_optional_words_must_be_there() {
        assert!(matches("?ERROR ?WARN", "WARN x"));
        assert!(!matches("?ERROR ?WARN", "INFO x"));
        assert!(
            matches("?ERROR INFO", "INFO x"),
            "beside a required word they decide nothing"
        );
    }

    #[test]
    fn other_kinds_of_pattern_are_refused() {
        assert_eq!(
            Pattern::parse("{ $.a = 1 }"),
            Err(PatternError::Unsupported("JSON"))
        );
        assert_eq!(
            Pattern::parse("[a, b]"),
            Err(PatternError::Unsupported("space-delimited"))
        );
        assert_eq!(
            Pattern::parse("%a+%"),
            Err(PatternError::Unsupported("regular expression"))
        );
        assert_eq!(
            Pattern::parse("a.b"),
            Err(PatternError::Characters("a.b".to_owned()))
        );
        assert_eq!(Pattern::parse("-"), Err(PatternError::Characters(String::new())));
        assert_eq!(Pattern::parse("\"open"), Err(PatternError::Quote));
        assert_eq!(Pattern::parse(&"a".repeat(1025)), Err(PatternError::TooLong));
    }

    proptest! {
        #[test]
        fn any_pattern_is_taken_or_refused(pattern in "[a-z\"\\\\?% é-]{0,30}", message: String) {
            if let Ok(pattern) = Pattern::parse(&pattern) {
                pattern.matches(&message);
            }
        }

        #[test]
        fn a_quoted_message_matches_itself(message: String) {
            let quoted = format!("\"{}\"", message.replace('\\', "\\\\").replace('"', "\\\""));
            prop_assume!(quoted.chars().count() <= MAX_PATTERN_CHARS);
            prop_assert!(matches(&quoted, &message));
        }
    }
}
