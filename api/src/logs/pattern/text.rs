//! What all kinds of pattern are written with: quoted phrases, regular expressions, values with wildcards, and reading
//! them one after the other.

use regex::{Regex, RegexBuilder};

use super::PatternError;

/// Most regular expressions in one pattern.
const MAX_REGEXES: usize = 2;
/// Memory that a compiled one may take, in bytes.
const MAX_REGEX_BYTES: usize = 1 << 20;

/// A phrase at the beginning of the text, quotation marks around it, and what follows it; a backslash keeps the character
/// after it.
pub(super) fn phrase(text: &str) -> Result<(String, &str), PatternError> {
    let mut phrase = String::new();
    let mut characters = text.char_indices().skip(1);
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Ok((phrase, &text[at + 1..])),
            '\\' => phrase.extend(characters.next().map(|(_, kept)| kept)),
            character => phrase.push(character),
        }
    }
    Err(PatternError::Quote)
}

/// Counts the regular expressions of a pattern.
#[derive(Debug, Default)]
pub(super) struct Regexes {
    taken: usize,
}

impl Regexes {
    /// A regular expression at the beginning of the text, percent signs around it, and what follows it.
    pub(super) fn take<'a>(&mut self, text: &'a str) -> Result<(Regex, &'a str), PatternError> {
        self.taken += 1;
        if self.taken > MAX_REGEXES {
            return Err(PatternError::TooManyRegexes);
        }
        let body = text.strip_prefix('%').unwrap_or(text);
        let (regex, after) = body.split_once('%').ok_or(PatternError::Percent)?;
        let allowed = |character: char| {
            character.is_ascii_alphanumeric() || ":_#=@/;,-^$?[]{}|\\*+.".contains(character)
        };
        if regex.is_empty() || !regex.chars().all(allowed) {
            return Err(PatternError::Characters(regex.to_owned()));
        }
        let built = RegexBuilder::new(regex)
            .size_limit(MAX_REGEX_BYTES)
            .dfa_size_limit(MAX_REGEX_BYTES)
            .nest_limit(50)
            .build();
        match built {
            Ok(regex) => Ok((regex, after)),
            Err(_) => Err(PatternError::Regex(regex.to_owned())),
        }
    }
}

/// A text in which every `*` stands for any characters, or for none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Glob {
    pieces: Vec<String>,
}

impl Glob {
    pub(super) fn new(text: &str) -> Glob {
        Glob {
            pieces: text.split('*').map(str::to_owned).collect(),
        }
    }

    pub(super) fn matches(&self, text: &str) -> bool {
        let [first, middle @ .., last] = self.pieces.as_slice() else {
            // Without a star there is one piece.
            return self.pieces.first().is_some_and(|whole| whole == text);
        };
        let Some(rest) = text.strip_prefix(first.as_str()) else {
            return false;
        };
        // Each piece where it comes first leaves the most for those after it.
        let mut rest = rest;
        for piece in middle {
            match rest.find(piece.as_str()) {
                Some(at) => rest = &rest[at + piece.len()..],
                None => return false,
            }
        }
        rest.ends_with(last.as_str())
    }
}

/// How a value is compared with one of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Comparison {
    pub(super) fn holds(self, theirs: f64, ours: f64) -> bool {
        match self {
            Comparison::Equal => theirs == ours,
            Comparison::NotEqual => theirs != ours,
            Comparison::Less => theirs < ours,
            Comparison::LessOrEqual => theirs <= ours,
            Comparison::Greater => theirs > ours,
            Comparison::GreaterOrEqual => theirs >= ours,
        }
    }
}

/// What a value of a message is compared with.
#[derive(Clone, Debug)]
pub(super) enum Operand {
    /// Written without quotation marks; a number where it is one.
    Bare(Glob, Option<f64>),
    Quoted(Glob),
    Regex(Regex),
}

/// A value of a message.
#[derive(Clone, Copy, Debug)]
pub(super) enum Scalar<'a> {
    Text(&'a str),
    Number(f64),
}

/// A comparison with what is on its right.
#[derive(Clone, Debug)]
pub(super) struct Condition {
    pub(super) comparison: Comparison,
    pub(super) operand: Operand,
}

impl Condition {
    /// Whether it compares with a number.
    pub(super) fn is_numeric(&self) -> bool {
        matches!(self.operand, Operand::Bare(_, Some(_)))
    }

    pub(super) fn holds(&self, value: Scalar<'_>) -> bool {
        let equal = match (&self.operand, value) {
            (Operand::Bare(_, Some(ours)), Scalar::Number(theirs)) => {
                return self.comparison.holds(theirs, *ours);
            }
            (Operand::Bare(glob, None) | Operand::Quoted(glob), Scalar::Number(theirs)) => {
                glob.matches(&theirs.to_string())
            }
            (Operand::Bare(glob, _) | Operand::Quoted(glob), Scalar::Text(text)) => glob.matches(text),
            (Operand::Regex(regex), Scalar::Text(text)) => regex.is_match(text),
            (Operand::Regex(regex), Scalar::Number(theirs)) => regex.is_match(&theirs.to_string()),
        };
        match self.comparison {
            Comparison::Equal => equal,
            Comparison::NotEqual => !equal,
            // Only numbers are more or less.
            _ => false,
        }
    }
}

/// Reads a pattern from left to right.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    rest: &'a str,
    regexes: Regexes,
}

impl<'a> Reader<'a> {
    pub(super) fn new(text: &'a str) -> Reader<'a> {
        Reader {
            rest: text,
            regexes: Regexes::default(),
        }
    }

    pub(super) fn rest(&mut self) -> &'a str {
        self.rest = self.rest.trim_start();
        self.rest
    }

    /// Whether this came next; then it is behind.
    pub(super) fn take(&mut self, token: &str) -> bool {
        match self.rest().strip_prefix(token) {
            Some(after) => {
                self.rest = after;
                true
            }
            None => false,
        }
    }

    /// A word that has to end where it ends.
    pub(super) fn take_word(&mut self, word: &str) -> bool {
        let after = self.rest().strip_prefix(word);
        let ends = |after: &&str| !after.starts_with(|it: char| it.is_alphanumeric() || it == '_');
        match after.filter(ends) {
            Some(after) => {
                self.rest = after;
                true
            }
            None => false,
        }
    }

    /// The characters that come next of which each `is_in`.
    pub(super) fn take_while(&mut self, is_in: impl Fn(char) -> bool) -> &'a str {
        let end = self
            .rest
            .find(|character| !is_in(character))
            .unwrap_or(self.rest.len());
        let (taken, after) = self.rest.split_at(end);
        self.rest = after;
        taken
    }

    pub(super) fn phrase(&mut self) -> Result<String, PatternError> {
        let (phrase, after) = phrase(self.rest)?;
        self.rest = after;
        Ok(phrase)
    }

    pub(super) fn comparison(&mut self) -> Option<Comparison> {
        let all = [
            ("!=", Comparison::NotEqual),
            ("<=", Comparison::LessOrEqual),
            (">=", Comparison::GreaterOrEqual),
            ("=", Comparison::Equal),
            ("<", Comparison::Less),
            (">", Comparison::Greater),
        ];
        all.into_iter()
            .find_map(|(token, comparison)| self.take(token).then_some(comparison))
    }

    /// The right side of a comparison.
    pub(super) fn condition(&mut self, comparison: Comparison) -> Result<Condition, PatternError> {
        let operand = match self.rest().chars().next() {
            Some('"') => Operand::Quoted(Glob::new(&self.phrase()?)),
            Some('%') => {
                let (regex, after) = self.regexes.take(self.rest)?;
                self.rest = after;
                Operand::Regex(regex)
            }
            _ => {
                let word = self.take_while(|it| it.is_alphanumeric() || "_-.*+:/@#$?".contains(it));
                if word.is_empty() {
                    return Err(self.expected("a value"));
                }
                let number = word.parse().ok().filter(|number: &f64| number.is_finite());
                Operand::Bare(Glob::new(word), number)
            }
        };
        let ordered = !matches!(comparison, Comparison::Equal | Comparison::NotEqual);
        if ordered && !matches!(operand, Operand::Bare(_, Some(_))) {
            return Err(PatternError::NotANumber);
        }
        Ok(Condition { comparison, operand })
    }

    pub(super) fn expected(&mut self, what: &'static str) -> PatternError {
        let found: String = self.rest().chars().take(20).collect();
        PatternError::Expected { what, found }
    }
}
