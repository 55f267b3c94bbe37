//! A command line as words, as Session Manager's agent splits it before it runs the first one: no shell is asked, so there are
//! no variables, patterns, pipes or redirections. Pure.

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WordsError {
    #[error("a {0} is not closed")]
    Open(char),
    #[error("nothing follows the last backslash")]
    Backslash,
}

/// Words are parted by blanks. In '…' all is as it is, in "…" a backslash takes the next character as it is, as it does
/// outside of both. A word that begins with # begins a comment, up to the end of the line.
pub(crate) fn split(line: &str) -> Result<Vec<String>, WordsError> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            ' ' | '\t' | '\r' | '\n' => words.extend(word.take()),
            '#' if word.is_none() => {
                let _ = characters.by_ref().find(|it| *it == '\n');
            }
            '\'' | '"' => quoted(&mut characters, character, word.get_or_insert_default())?,
            '\\' => {
                let next = characters.next().ok_or(WordsError::Backslash)?;
                word.get_or_insert_default().push(next);
            }
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    Ok(words)
}

fn quoted(rest: &mut std::str::Chars<'_>, quote: char, word: &mut String) -> Result<(), WordsError> {
    loop {
        match rest.next().ok_or(WordsError::Open(quote))? {
            end if end == quote => return Ok(()),
            '\\' if quote == '"' => word.push(rest.next().ok_or(WordsError::Open(quote))?),
            other => word.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn words_are_parted_as_the_agent_parts_them() {
        let words = |line: &str| split(line).unwrap().join("|");
        assert_eq!(words("/bin/sh"), "/bin/sh");
        assert_eq!(words("  ls  -l\t/tmp \n"), "ls|-l|/tmp");
        assert_eq!(
            words(r#"sh -c "echo \"a b\" $HOME | wc""#),
            r#"sh|-c|echo "a b" $HOME | wc"#
        );
        assert_eq!(words(r"sh -c 'a \n b'"), r"sh|-c|a \n b");
        assert_eq!(words(r"a\ b c\\d"), r"a b|c\d");
        assert_eq!(words(r#"a"b"'c'd "" e"#), "abcd||e");
        assert_eq!(words("a b#c # d 'e\nf"), "a|b#c|f");
        assert_eq!(words(" # all\t"), "");
        assert_eq!(split("a 'b"), Err(WordsError::Open('\'')));
        assert_eq!(split("a \"b\\"), Err(WordsError::Open('"')));
        assert_eq!(split("a \\"), Err(WordsError::Backslash));
    }

    proptest! {
        #[test]
        fn quoted_words_come_back(words in proptest::collection::vec("\\PC{0,8}", 0..6)) {
            let line: Vec<String> = words.iter().map(|word| format!("'{}'", word.replace('\'', r"'\''"))).collect();
            prop_assert_eq!(split(&line.join(" ")), Ok(words));
        }

        #[test]
        fn any_line_is_taken_or_refused(line in "[ab #'\"\\\\\n\t]{0,24}") {
            if let Ok(words) = split(&line) {
                prop_assert!(words.iter().map(String::len).sum::<usize>() <= line.len());
            }
        }
    }
}
