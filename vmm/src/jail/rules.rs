//! The lists of `filters.json` as rules, and rules as filters. Of the library only its tests have this file, and of the build
//! the script that makes the filters.

use std::collections::BTreeMap;
use std::error::Error;

use seccompiler::{BpfProgram, compile_from_json};
use serde_json::{Value, json};

/// What every kind of thread is allowed, besides its own.
const EVERY: &str = "every";
/// What a rule may say of itself for the test that looks which rules are needed (`tests/e2e/test_filters.py`): why it stays
/// though nothing there uses it, or uses it now and then. Of a rule for every thread it may be said by kinds of threads.
const MARKS: [&str; 2] = ["unused", "at_times"];

/// The rules of each kind of thread, those of every thread first.
pub fn lists(source: &str) -> Result<BTreeMap<String, Vec<Value>>, Box<dyn Error>> {
    let mut kinds: BTreeMap<String, Vec<Value>> = serde_json::from_str(source)?;
    let every = kinds.remove(EVERY).ok_or("it has no list for every thread")?;
    check_marks(&every, &kinds)?;
    for list in kinds.values_mut() {
        list.splice(0..0, every.iter().cloned());
    }
    Ok(kinds)
}

/// Marks have reasons, and name kinds of threads that there are, each once.
fn check_marks(every: &[Value], kinds: &BTreeMap<String, Vec<Value>>) -> Result<(), String> {
    for rule in kinds.values().flatten() {
        let marks: Vec<&Value> = MARKS.iter().filter_map(|mark| rule.get(mark)).collect();
        if marks.len() > 1 || !marks.iter().all(|mark| is_reason(mark)) {
            return Err(format!("more or less than one reason for {rule}"));
        }
    }
    for rule in every {
        let mut named = Vec::new();
        for mark in MARKS.iter().filter_map(|mark| rule.get(mark)) {
            // A reason alone is one for every kind.
            if is_reason(mark) {
                named.extend(kinds.keys().map(String::as_str));
                continue;
            }
            let reasons = mark.as_object().ok_or_else(|| format!("no reason for {rule}"))?;
            if !reasons.values().all(is_reason) {
                return Err(format!("no reason for {rule}"));
            }
            named.extend(reasons.keys().flat_map(|names| names.split(' ')));
        }
        named.sort_unstable();
        if named.windows(2).any(|two| two.first() == two.last()) {
            return Err(format!("two reasons for one kind of thread in {rule}"));
        }
        if let Some(unknown) = named.iter().find(|name| !kinds.contains_key(**name)) {
            return Err(format!("no thread is a {unknown:?}, in {rule}"));
        }
    }
    Ok(())
}

fn is_reason(mark: &Value) -> bool {
    mark.as_str().is_some_and(|reason| !reason.is_empty())
}

/// A filter that lets through what any of the rules says, and ends the process at anything else.
pub fn compile(rules: &[Value], arch: &str) -> Result<BpfProgram, Box<dyn Error>> {
    let mut rules = rules.to_vec();
    for rule in rules.iter_mut().filter_map(Value::as_object_mut) {
        rule.retain(|member, _| !MARKS.contains(&member.as_str()));
    }
    let filter = json!({
        "filter": {"mismatch_action": "kill_process", "match_action": "allow", "filter": rules}
    });
    let mut compiled = compile_from_json(filter.to_string().as_bytes(), arch.try_into()?)?;
    Ok(compiled.remove("filter").ok_or("a filter is missing")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_of_every_thread_are_in_each_list() {
        let lists = lists(include_str!("filters.json")).unwrap();
        assert_eq!(lists.len(), 7);
        for rules in lists.values() {
            assert_eq!(rules[0]["syscall"], "read");
            assert!(rules.len() > 24);
        }
    }

    #[test]
    fn no_rule_is_in_a_list_twice() {
        for (kind, rules) in lists(include_str!("filters.json")).unwrap() {
            let mut said: Vec<String> = rules
                .iter()
                .map(|rule| format!("{} {}", rule["syscall"], rule["args"]))
                .collect();
            said.sort();
            let rules = said.len();
            said.dedup();
            assert_eq!(said.len(), rules, "{kind}");
        }
    }

    #[test]
    fn a_mark_has_a_reason_for_threads_that_there_are() {
        let with = |rule: &str| {
            let source = format!(r#"{{"every": [{{"syscall": "read"{rule}}}], "main": [], "net": []}}"#);
            lists(&source).map(drop).map_err(|error| error.to_string())
        };
        assert_eq!(with(""), Ok(()));
        assert_eq!(with(r#", "unused": "why""#), Ok(()));
        assert_eq!(with(r#", "unused": {"main net": "why"}"#), Ok(()));
        assert_eq!(
            with(r#", "unused": {"main": "why"}, "at_times": {"net": "why"}"#),
            Ok(())
        );
        for (rule, error) in [
            (r#", "unused": {"mian": "why"}"#, "no thread is a \"mian\""),
            (r#", "unused": {"": "why"}"#, "no thread is a \"\""),
            (r#", "unused": {"main": ""}"#, "no reason"),
            (r#", "unused": """#, "no reason"),
            (r#", "unused": 1"#, "no reason"),
            (r#", "unused": "why", "at_times": {"main": "why"}"#, "two reasons"),
            (r#", "unused": {"main": "why", "net main": "why"}"#, "two reasons"),
            (
                r#", "unused": {"main": "why"}, "at_times": {"main": "why"}"#,
                "two reasons",
            ),
        ] {
            let said = with(rule).unwrap_err();
            assert!(said.contains(error), "{rule}: {said}");
        }
        let own = |rule: &str| {
            lists(&format!(
                r#"{{"every": [], "main": [{{"syscall": "read"{rule}}}]}}"#
            ))
            .is_ok()
        };
        assert!(own("") && own(r#", "at_times": "why""#));
        for rule in [
            r#", "unused": """#,
            r#", "unused": {"main": "why"}"#,
            r#", "unused": "why", "at_times": "why""#,
        ] {
            assert!(!own(rule), "{rule}");
        }
    }

    #[test]
    fn a_mark_is_no_part_of_a_filter() {
        let rule = json!({"syscall": "read"});
        let marked = json!({"syscall": "read", "unused": "why"});
        assert_eq!(
            compile(&[rule], "x86_64").unwrap(),
            compile(&[marked], "x86_64").unwrap()
        );
    }
}
