//! Everything that is wrong with what a caller sent, as one text. Pure.

use std::collections::BTreeSet;
use std::fmt::Write;

/// More than these are counted and not told.
const MOST_TOLD: usize = 40;
/// What one of them may have of the text; the first is told as it is.
const MOST_CHARS: usize = 500;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Flaw {
    pub(crate) text: String,
    /// Whose it is, such as `container 'web'`.
    pub(crate) of: Option<String>,
}

impl Flaw {
    /// Of nobody in particular.
    pub(crate) fn all(texts: Vec<String>) -> Vec<Flaw> {
        texts.into_iter().map(|text| Flaw { text, of: None }).collect()
    }
}

/// The text of the first alone if there is no other one; else it leads, and each of the others has a line of its own below
/// it. None without any.
pub(crate) fn message(flaws: &[Flaw]) -> Option<String> {
    let (first, others) = flaws.split_first()?;
    let mut seen = BTreeSet::from([(&first.text, &first.of)]);
    let others: Vec<&Flaw> = others
        .iter()
        .filter(|flaw| seen.insert((&flaw.text, &flaw.of)))
        .collect();
    let mut message = first.text.clone();
    for flaw in others.iter().take(MOST_TOLD) {
        let text: String = flaw.text.chars().take(MOST_CHARS).collect();
        // Writing to a string does not fail.
        let _ = match &flaw.of {
            Some(of) => write!(message, "\nAlso, {of}: {text}"),
            None => write!(message, "\nAlso: {text}"),
        };
    }
    if others.len() > MOST_TOLD {
        let _ = write!(message, "\nAnd {} more.", others.len() - MOST_TOLD);
    }
    Some(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flaw(text: &str, of: Option<&str>) -> Flaw {
        Flaw {
            text: text.to_owned(),
            of: of.map(str::to_owned),
        }
    }

    #[test]
    fn one_flaw_is_told_in_its_own_words_alone() {
        assert_eq!(message(&[]), None);
        let twice = [
            flaw("A.", Some("container 'a'")),
            flaw("A.", Some("container 'a'")),
        ];
        assert_eq!(message(&twice[..1]).as_deref(), Some("A."));
        assert_eq!(message(&twice).as_deref(), Some("A."));
    }

    #[test]
    fn the_first_leads_and_the_others_follow_in_order() {
        let flaws = [
            flaw("A.", None),
            flaw("C.", Some("container 'a'")),
            flaw("B.", None),
        ];
        assert_eq!(
            message(&flaws).as_deref(),
            Some("A.\nAlso, container 'a': C.\nAlso: B.")
        );
    }

    #[test]
    fn a_thousand_flaws_are_counted_and_not_told() {
        let flaws: Vec<Flaw> = (0..1000)
            .map(|number| flaw(&format!("{number} {}", "x".repeat(10_000)), None))
            .collect();
        let message = message(&flaws).unwrap();
        assert!(
            message.ends_with("\nAnd 959 more.") && message.len() < 40_000,
            "{}",
            message.len()
        );
    }
}
