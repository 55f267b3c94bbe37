//! Patterns for messages of fields with spaces between: `[ip, ..., status = 4*, bytes > 1000]`. A field of a message in
//! brackets or quotation marks may have spaces in it.

use super::PatternError;
use super::text::{Condition, Reader, Scalar};

#[derive(Clone, Debug)]
pub(super) struct Fields {
    before: Vec<Field>,
    /// After an ellipsis, which stands for any number of fields.
    after: Option<Vec<Field>>,
}

/// Any of these, of which all must hold; none of them is always right.
#[derive(Clone, Debug, Default)]
struct Field(Vec<Vec<Condition>>);

impl Field {
    fn is_free(&self) -> bool {
        self.0.is_empty()
    }

    fn holds(&self, text: &str) -> bool {
        let number = text.parse().ok().filter(|number: &f64| number.is_finite());
        let one = |condition: &Condition| match number {
            // As it is written, or as a number.
            Some(number) if condition.holds(Scalar::Number(number)) => true,
            Some(_) if condition.is_numeric() => false,
            _ => condition.holds(Scalar::Text(text)),
        };
        self.is_free() || self.0.iter().any(|all| all.iter().all(one))
    }
}

impl Fields {
    /// Of a pattern that begins with a bracket.
    pub(super) fn parse(text: &str) -> Result<Fields, PatternError> {
        let mut reader = Reader::new(text);
        if !reader.take("[") {
            return Err(reader.expected("'['"));
        }
        let mut fields = Fields {
            before: Vec::new(),
            after: None,
        };
        loop {
            if reader.take("...") {
                if fields.after.replace(Vec::new()).is_some() {
                    return Err(PatternError::Ellipsis);
                }
            } else {
                let field = field(&mut reader)?;
                fields.after.as_mut().unwrap_or(&mut fields.before).push(field);
            }
            if !reader.take(",") {
                break;
            }
        }
        if !reader.take("]") {
            return Err(reader.expected("',' or ']'"));
        }
        if !reader.rest().is_empty() {
            return Err(reader.expected("the end"));
        }
        Ok(fields)
    }

    pub(super) fn matches(&self, message: &str) -> bool {
        let texts = split(message);
        let holds = |fields: &[Field], texts: &[&str]| {
            fields.iter().zip(texts).all(|(field, text)| field.holds(text))
        };
        match &self.after {
            Some(after) => {
                let named = self.before.len() + after.len();
                texts.len() >= named
                    && holds(&self.before, &texts)
                    && holds(after, &texts[texts.len() - after.len()..])
            }
            None => {
                // A last field of which nothing is asked is all the rest.
                let rest_is_free = self.before.last().is_some_and(Field::is_free);
                let enough =
                    texts.len() == self.before.len() || (rest_is_free && texts.len() > self.before.len());
                enough && holds(&self.before, &texts)
            }
        }
    }
}

fn field(reader: &mut Reader<'_>) -> Result<Field, PatternError> {
    let mut any = Vec::new();
    let mut all = Vec::new();
    let mut named: Option<&str> = None;
    loop {
        reader.rest();
        let name = reader.take_while(|it| it.is_alphanumeric() || matches!(it, '_' | '-' | '.' | '*'));
        if name.is_empty() {
            return Err(reader.expected("the name of a field"));
        }
        if named.is_some_and(|named| named != name) {
            return Err(PatternError::OtherField(name.to_owned()));
        }
        named = Some(name);
        if let Some(comparison) = reader.comparison() {
            all.push(reader.condition(comparison)?);
        } else if !all.is_empty() || !any.is_empty() {
            return Err(reader.expected("a comparison"));
        }
        if reader.take("&&") {
            continue;
        }
        if !all.is_empty() {
            any.push(std::mem::take(&mut all));
        }
        if !reader.take("||") {
            return Ok(Field(any));
        }
    }
}

/// The fields of a message, without the brackets or quotation marks around them.
fn split(message: &str) -> Vec<&str> {
    let mut fields = Vec::new();
    let mut rest = message.trim();
    while let Some(first) = rest.chars().next() {
        let close = match first {
            '"' => Some('"'),
            '[' => Some(']'),
            _ => None,
        };
        let enclosed = close.and_then(|close| rest[1..].split_once(close));
        let (field, after) = match enclosed {
            Some(found) => found,
            None => rest.split_at(rest.find(char::is_whitespace).unwrap_or(rest.len())),
        };
        fields.push(field);
        rest = after.trim_start();
    }
    fields
}
