//! Patterns for messages that are JSON: `{ ($.a.b[0] = "x*" && $.n > 3) || $.c NOT EXISTS }`.

use serde_json::Value;

use super::PatternError;
use super::text::{Condition, Reader, Scalar};

/// How deep parentheses go, and how many wildcards the selectors of a pattern have.
const MAX_DEPTH: usize = 16;
const MAX_WILDCARDS: usize = 3;

#[derive(Clone, Debug)]
pub(super) enum Expression {
    All(Vec<Expression>),
    Any(Vec<Expression>),
    Test(Selector, Test),
}

#[derive(Clone, Debug)]
pub(super) struct Selector(Vec<Step>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Member(String),
    Item(usize),
    AnyMember,
    AnyItem,
}

#[derive(Clone, Debug)]
pub(super) enum Test {
    Compare(Condition),
    IsNull,
    IsTrue,
    IsFalse,
    Exists,
    NotExists,
}

impl Expression {
    /// Of a pattern that begins with a brace.
    pub(super) fn parse(text: &str) -> Result<Expression, PatternError> {
        let mut parser = Parser {
            reader: Reader::new(text),
            wildcards: 0,
        };
        if !parser.reader.take("{") {
            return Err(parser.reader.expected("'{'"));
        }
        let expression = parser.any(0)?;
        if !parser.reader.take("}") {
            return Err(parser.reader.expected("'&&', '||' or '}'"));
        }
        if !parser.reader.rest().is_empty() {
            return Err(parser.reader.expected("the end"));
        }
        Ok(expression)
    }

    pub(super) fn matches(&self, message: &str) -> bool {
        if !message.trim_start().starts_with('{') {
            return false;
        }
        match serde_json::from_str::<Value>(message) {
            Ok(value) => self.holds(&value),
            Err(_) => false,
        }
    }

    fn holds(&self, root: &Value) -> bool {
        match self {
            Expression::All(parts) => parts.iter().all(|part| part.holds(root)),
            Expression::Any(parts) => parts.iter().any(|part| part.holds(root)),
            Expression::Test(selector, Test::NotExists) => !selector.leads_to(root, &|_| true),
            Expression::Test(selector, test) => selector.leads_to(root, &|value| test.holds(value)),
        }
    }
}

impl Test {
    fn holds(&self, value: &Value) -> bool {
        match self {
            Test::Compare(condition) => match value {
                Value::String(text) => condition.holds(Scalar::Text(text)),
                Value::Number(number) => number
                    .as_f64()
                    .is_some_and(|number| condition.holds(Scalar::Number(number))),
                Value::Bool(value) => condition.holds(Scalar::Text(if *value { "true" } else { "false" })),
                Value::Null | Value::Array(_) | Value::Object(_) => false,
            },
            Test::IsNull => value.is_null(),
            Test::IsTrue => *value == Value::Bool(true),
            Test::IsFalse => *value == Value::Bool(false),
            Test::Exists | Test::NotExists => true,
        }
    }
}

impl Selector {
    /// Whether some value that it leads to `is_wanted`.
    fn leads_to(&self, root: &Value, is_wanted: &dyn Fn(&Value) -> bool) -> bool {
        follow(&self.0, root, is_wanted)
    }
}

fn follow(steps: &[Step], value: &Value, is_wanted: &dyn Fn(&Value) -> bool) -> bool {
    let Some((step, rest)) = steps.split_first() else {
        return is_wanted(value);
    };
    let on = |next: &Value| follow(rest, next, is_wanted);
    match (step, value) {
        (Step::Member(name), Value::Object(members)) => members.get(name).is_some_and(on),
        (Step::Item(index), Value::Array(items)) => items.get(*index).is_some_and(on),
        (Step::AnyMember, Value::Object(members)) => members.values().any(on),
        (Step::AnyItem, Value::Array(items)) => items.iter().any(on),
        _ => false,
    }
}

struct Parser<'a> {
    reader: Reader<'a>,
    wildcards: usize,
}

impl Parser<'_> {
    fn any(&mut self, depth: usize) -> Result<Expression, PatternError> {
        let mut parts = vec![self.all(depth)?];
        while self.reader.take("||") {
            parts.push(self.all(depth)?);
        }
        Ok(Expression::Any(parts))
    }

    fn all(&mut self, depth: usize) -> Result<Expression, PatternError> {
        let mut parts = vec![self.one(depth)?];
        while self.reader.take("&&") {
            parts.push(self.one(depth)?);
        }
        Ok(Expression::All(parts))
    }

    fn one(&mut self, depth: usize) -> Result<Expression, PatternError> {
        if self.reader.take("(") {
            if depth == MAX_DEPTH {
                return Err(PatternError::TooDeep);
            }
            let inner = self.any(depth + 1)?;
            if !self.reader.take(")") {
                return Err(self.reader.expected("')'"));
            }
            return Ok(inner);
        }
        let selector = self.selector()?;
        let test = self.test()?;
        Ok(Expression::Test(selector, test))
    }

    fn selector(&mut self) -> Result<Selector, PatternError> {
        if !self.reader.take("$") {
            return Err(self.reader.expected("a selector, which begins with '$'"));
        }
        let mut steps = Vec::new();
        loop {
            let step = match self.reader.rest().chars().next() {
                Some('.') if self.reader.take(".*") => Step::AnyMember,
                // `.[` is read as `[`.
                Some('.') if self.reader.take(".[") => self.bracket()?,
                Some('.') if self.reader.take(".") => {
                    let name = self
                        .reader
                        .take_while(|it| it.is_alphanumeric() || matches!(it, '_' | '-' | '@'));
                    if name.is_empty() {
                        return Err(self.reader.expected("the name of a member"));
                    }
                    Step::Member(name.to_owned())
                }
                Some('[') if self.reader.take("[") => self.bracket()?,
                _ => break,
            };
            if matches!(step, Step::AnyMember | Step::AnyItem) {
                self.wildcards += 1;
            }
            steps.push(step);
        }
        if self.wildcards > MAX_WILDCARDS {
            return Err(PatternError::TooManyWildcards);
        }
        if steps.is_empty() {
            return Err(self.reader.expected("the name of a member"));
        }
        Ok(Selector(steps))
    }

    /// What is in brackets of which the first is behind.
    fn bracket(&mut self) -> Result<Step, PatternError> {
        let step = match self.reader.rest().chars().next() {
            Some('*') if self.reader.take("*") => Step::AnyItem,
            Some('"') => Step::Member(self.reader.phrase()?),
            Some('\'') if self.reader.take("'") => {
                let name = self.reader.take_while(|it| it != '\'').to_owned();
                if !self.reader.take("'") {
                    return Err(PatternError::Quote);
                }
                Step::Member(name)
            }
            _ => {
                let digits = self.reader.take_while(|it| it.is_ascii_digit());
                let index = digits.parse().map_err(|_| self.reader.expected("an index"))?;
                Step::Item(index)
            }
        };
        if !self.reader.take("]") {
            return Err(self.reader.expected("']'"));
        }
        Ok(step)
    }

    fn test(&mut self) -> Result<Test, PatternError> {
        if self.reader.take_word("IS") {
            let tests = [
                ("NULL", Test::IsNull),
                ("TRUE", Test::IsTrue),
                ("FALSE", Test::IsFalse),
            ];
            let found = tests.into_iter().find(|(word, _)| self.reader.take_word(word));
            return found
                .map(|(_, test)| test)
                .ok_or_else(|| self.reader.expected("NULL, TRUE or FALSE"));
        }
        if self.reader.take_word("NOT") {
            return match self.reader.take_word("EXISTS") {
                true => Ok(Test::NotExists),
                false => Err(self.reader.expected("EXISTS")),
            };
        }
        if self.reader.take_word("EXISTS") {
            return Ok(Test::Exists);
        }
        let Some(comparison) = self.reader.comparison() else {
            return Err(self.reader.expected("a comparison"));
        };
        Ok(Test::Compare(self.reader.condition(comparison)?))
    }
}
