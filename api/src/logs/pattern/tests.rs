//! Filter patterns, by examples and by whatever a caller may send.

use proptest::prelude::*;

use super::*;

fn matches(pattern: &str, message: &str) -> bool {
    Pattern::parse(pattern).unwrap().matches(message)
}

fn refusal(pattern: &str) -> PatternError {
    Pattern::parse(pattern).unwrap_err()
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
        matches("?ERROR INFO", "INFO x") && matches("?ERROR -WARN", "INFO x"),
        "beside other terms they decide nothing"
    );
}

#[test]
fn a_regular_expression_is_a_term() {
    assert!(matches(r"%10\.0\.0\.[1-9]% GET", "GET / from 10.0.0.7"));
    assert!(!matches(r"%10\.0\.0\.[1-9]%", "10.0.0.x"));
    assert!(!matches("-%a+b%", "xaab"));
}

#[test]
fn members_of_json_are_compared() {
    let message = r#"{"a":"x","n":4.5,"t":true,"z":null,"o":{"l":["p",{"q":7}],"dotted.key":"v"}}"#;
    for pattern in [
        r#"{ $.a = "x" }"#,
        r#"{$.a=x}"#,
        r#"{ $.a = x* && $.n > 4 }"#,
        r#"{ $.n >= 4.5 && $.n <= 4.5e0 && $.n = 4.50 }"#,
        r#"{ $.a = "y" || $.n != 3 }"#,
        r#"{ ($.a = "y" && $.n = 1) || ($.o.l[1].q < 8) }"#,
        r#"{ $.o.l[0] = p }"#,
        r#"{ $.o.l[*] = p && $.o.*  EXISTS }"#,
        r#"{ $.t IS TRUE && $.z IS NULL && $.none NOT EXISTS }"#,
        r#"{ $.o.['dotted.key'] = "v" && $.o["dotted.key"] = %^v$% }"#,
    ] {
        assert!(matches(pattern, message), "{pattern}");
    }
    for pattern in [
        r#"{ $.a = "y" }"#,
        r#"{ $.a = "X" }"#,
        r#"{ $.none != "y" }"#,
        r#"{ $.o = "v" }"#,
        r#"{ $.n > 4 && $.n < 4 }"#,
        r#"{ $.a = "y" || $.n = 3 && $.a = "x" }"#,
        r#"{ $.t IS FALSE }"#,
        r#"{ $.a IS NULL }"#,
        r#"{ $.o.l[2] EXISTS }"#,
        r#"{ $.a > 1 }"#,
    ] {
        assert!(!matches(pattern, message), "{pattern}");
    }
    assert!(!matches(r#"{ $.a NOT EXISTS }"#, "no JSON"));
}

#[test]
fn fields_with_spaces_between_are_compared() {
    let message = r#"127.0.0.1 - frank [10/Oct/2000:13:25:15 -0700] "GET /a b HTTP/1.0" 404 1534"#;
    for pattern in [
        "[ip, id, user, time, request, status, bytes]",
        "[ip, id, user, time, request, status = 4*, bytes > 1000]",
        "[ip, id, user, time = \"10/Oct*\", request = *HTTP*, status = 404, bytes]",
        "[..., status = 404, bytes]",
        "[ip = %127\\.0\\.0\\.[1-9]%, ...]",
        "[ip, ..., status = 500 || status = 404, bytes]",
        "[ip, ..., status != 500 && status < 405, bytes]",
        "[ip = 127.*, rest]",
    ] {
        assert!(matches(pattern, message), "{pattern}");
    }
    for pattern in [
        "[ip, status]x",
        "[ip, id, user, time, request, status = 5*, bytes]",
        "[ip, id = 1]",
        "[..., bytes < 1000]",
        "[a, b, c, d, e, f, g, h]",
        "[ip, ..., status = 500 && status = 404, bytes]",
    ] {
        let found = Pattern::parse(pattern).map(|pattern| pattern.matches(message));
        assert_ne!(found, Ok(true), "{pattern}");
    }
    assert!(matches("[w1 = ERROR, w2]", "ERROR 400 BAD REQUEST"));
    assert!(!matches("[w1 = ERROR, w2]", "INFO 400"));
    assert!(!matches("[w1 != ERROR && w1 != WARN, w2]", "WARN 400"));
}

#[test]
fn what_is_no_pattern_is_refused_with_the_reason() {
    assert_eq!(refusal("a.b"), PatternError::Characters("a.b".to_owned()));
    assert_eq!(refusal("-"), PatternError::Characters(String::new()));
    assert_eq!(refusal("\"open"), PatternError::Quote);
    assert_eq!(refusal("%open"), PatternError::Percent);
    assert_eq!(refusal("%a(b)%"), PatternError::Characters("a(b)".to_owned()));
    assert_eq!(refusal("%[%"), PatternError::Regex("[".to_owned()));
    assert_eq!(
        refusal("%a{1000}{1000}%"),
        PatternError::Regex("a{1000}{1000}".to_owned())
    );
    assert_eq!(refusal("%a% %b% %c%"), PatternError::TooManyRegexes);
    assert_eq!(refusal(&"a".repeat(1025)), PatternError::TooLong);
    assert_eq!(refusal(r#"{ $.a > "x" }"#), PatternError::NotANumber);
    assert_eq!(
        refusal("{ $.a[*].*.*[*] EXISTS }"),
        PatternError::TooManyWildcards
    );
    assert_eq!(refusal(&format!("{{{}", "(".repeat(500))), PatternError::TooDeep);
    assert_eq!(refusal("[..., a, ...]"), PatternError::Ellipsis);
    assert_eq!(
        refusal("[a = 1 && b = 2]"),
        PatternError::OtherField("b".to_owned())
    );
    assert_eq!(
        refusal("{ $.a = 1 & }").to_string(),
        "Invalid filter pattern: expected '&&', '||' or '}', found '& }'"
    );
    assert_eq!(
        refusal("{ a = 1 }").to_string(),
        "Invalid filter pattern: expected a selector, which begins with '$', found 'a = 1 }'"
    );
}

/// A glob, matched by trying everything.
fn slow_glob(pattern: &[char], text: &[char]) -> bool {
    match pattern.split_first() {
        None => text.is_empty(),
        Some(('*', rest)) => (0..=text.len()).any(|skipped| slow_glob(rest, &text[skipped..])),
        Some((first, rest)) => text
            .split_first()
            .is_some_and(|(other, text)| first == other && slow_glob(rest, text)),
    }
}

proptest! {
    #[test]
    fn any_pattern_is_taken_or_refused(
        pattern in prop_oneof!["[a-z\"\\\\?% é-]{0,30}", r#"[{\[][$.a\[\]*=!<>&|() "%0-9,ISNULé]{0,40}[}\]]?"#],
        message: String,
    ) {
        if let Ok(pattern) = Pattern::parse(&pattern) {
            pattern.matches(&message);
            pattern.matches("{\"a\": [1, {\"a\": null}]}");
        }
    }

    #[test]
    fn a_quoted_message_matches_itself(message: String) {
        let quoted = format!("\"{}\"", message.replace('\\', "\\\\").replace('"', "\\\""));
        prop_assume!(quoted.chars().count() <= MAX_PATTERN_CHARS);
        prop_assert!(matches(&quoted, &message));
        let json = serde_json::json!({ "a": message }).to_string();
        if !message.contains('*') && quoted.chars().count() <= 1000 {
            let pattern = format!("{{ $.a = {quoted} }}");
            prop_assert!(matches(&pattern, &json));
        }
    }

    #[test]
    fn a_star_is_any_characters(pattern in "[ab*]{0,8}", text in "[ab]{0,8}") {
        let characters = |text: &str| text.chars().collect::<Vec<_>>();
        let expected = slow_glob(&characters(&pattern), &characters(&text));
        prop_assert_eq!(text::Glob::new(&pattern).matches(&text), expected);
    }

    #[test]
    fn numbers_are_compared_as_numbers(theirs in -1000i32..1000, ours in -1000i32..1000) {
        for (operator, expected) in [
            ("=", theirs == ours), ("!=", theirs != ours), ("<", theirs < ours),
            ("<=", theirs <= ours), (">", theirs > ours), (">=", theirs >= ours),
        ] {
            let json = matches(&format!("{{ $.n {operator} {ours} }}"), &format!("{{\"n\": {theirs}}}"));
            prop_assert_eq!(json, expected, "{} {} {}", theirs, operator, ours);
            let field = matches(&format!("[n {operator} {ours}]"), &theirs.to_string());
            prop_assert_eq!(field, expected, "{} {} {}", theirs, operator, ours);
        }
    }
}
