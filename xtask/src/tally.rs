//! Counting tests by what their runners report: nextest's and libtest's summary lines, pytest's JUnit file. Runs nothing.

use std::fmt;
use std::ops::AddAssign;
use std::sync::LazyLock;

use anyhow::{Context, Result};
use regex::Regex;

/// How many tests ended how. A test that timed out or broke in its set-up counts as failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

#[expect(
    clippy::expect_used,
    reason = "each pattern is a constant, compiled by a test"
)]
fn pattern(pattern: &str) -> Regex {
    Regex::new(pattern).expect("a constant pattern compiles")
}

static COLOR: LazyLock<Regex> = LazyLock::new(|| pattern(r"\x1b\[[0-9;]*m"));
static NEXTEST: LazyLock<Regex> = LazyLock::new(|| pattern(r"^\s*Summary \[.*\] +[0-9/]+ tests? run: (.*)$"));
static LIBTEST: LazyLock<Regex> = LazyLock::new(|| pattern(r"^test result: \w+\. (.*)$"));
static COUNT: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"(\d+) (passed|failed|exec failed|timed out|skipped|ignored)"));
static SUITE: LazyLock<Regex> = LazyLock::new(|| pattern(r"<testsuite\s([^>]*)>"));
static NAME: LazyLock<Regex> = LazyLock::new(|| pattern(r#"\bname="([^"]*)""#));
static ATTRIBUTE: LazyLock<Regex> = LazyLock::new(|| pattern(r#"\b(tests|failures|errors|skipped)="(\d+)""#));

/// What a line of a Rust test runner adds, if it is a summary.
pub(crate) fn summary_line(line: &str) -> Option<Tally> {
    let line = COLOR.replace_all(line, "");
    let counts = NEXTEST.captures(&line).or_else(|| LIBTEST.captures(&line))?;
    let mut tally = Tally::default();
    for count in COUNT.captures_iter(&counts[1]) {
        let number: u64 = count[1].parse().ok()?;
        match &count[2] {
            "passed" => tally.passed += number,
            "skipped" | "ignored" => tally.skipped += number,
            _ => tally.failed += number,
        }
    }
    Some(tally)
}

/// The totals of a JUnit file.
pub(crate) fn junit(xml: &str) -> Result<Tally> {
    let mut sum = Tally::default();
    let mut suites = SUITE.captures_iter(xml).peekable();
    suites.peek().context("no test suite in the JUnit file")?;
    for suite in suites {
        let (mut tests, mut failed, mut skipped) = (0u64, 0u64, 0u64);
        for attribute in ATTRIBUTE.captures_iter(&suite[1]) {
            let number: u64 = attribute[2]
                .parse()
                .context("a count of the JUnit file is out of range")?;
            match &attribute[1] {
                "tests" => tests += number,
                "skipped" => skipped += number,
                _ => failed += number,
            }
        }
        sum += Tally {
            passed: tests.saturating_sub(failed.saturating_add(skipped)),
            failed,
            skipped,
        };
    }
    Ok(sum)
}

/// The tests of a JUnit file that passed although they could do nothing here, which they say in a line with `SKIPPED`.
pub(crate) fn passed_idly(xml: &str) -> Vec<String> {
    let cases = xml.split("<testcase ").skip(1);
    cases
        .map(|case| case.split("</testcase>").next().unwrap_or(case))
        .filter(|case| case.contains("SKIPPED") && !case.contains("<failure") && !case.contains("<error"))
        .filter_map(|case| Some(NAME.captures(case)?[1].to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(passed: u64, failed: u64, skipped: u64) -> Option<Tally> {
        Some(Tally {
            passed,
            failed,
            skipped,
        })
    }

    #[test]
    fn summaries_of_nextest_are_counted() {
        let line = "     Summary [   0.010s] 12 tests run: 12 passed, 0 skipped";
        assert_eq!(summary_line(line), tally(12, 0, 0));
        let line = "     Summary [  10.5s] 9/12 tests run: 5 passed (1 slow, 1 flaky), 2 failed, 1 exec failed, 1 timed out, 3 skipped";
        assert_eq!(summary_line(line), tally(5, 4, 3));
        let line = "\x1b[32;1m     Summary\x1b[0m [   0.2s] \x1b[1m1\x1b[0m test run: \x1b[1m1\x1b[0m \x1b[32;1mpassed\x1b[0m, \x1b[1m0\x1b[0m \x1b[33;1mskipped\x1b[0m";
        assert_eq!(summary_line(line), tally(1, 0, 0));
    }

    #[test]
    fn summaries_of_libtest_are_counted() {
        let line = "test result: FAILED. 3 passed; 1 failed; 2 ignored; 0 measured; 7 filtered out; finished in 0.00s";
        assert_eq!(summary_line(line), tally(3, 1, 2));
    }

    #[test]
    fn other_lines_count_nothing() {
        assert_eq!(summary_line("test the_3_passed_and_4_failed ... ok"), None);
        assert_eq!(
            summary_line("        PASS [   0.004s] xtask tally::tests::x"),
            None
        );
    }

    #[test]
    fn errors_of_pytest_are_failures() {
        let xml = r#"<?xml version="1.0"?><testsuites name="pytest tests"><testsuite name="pytest" errors="1" failures="2" skipped="3" tests="10" time="0.1"><testcase/></testsuite></testsuites>"#;
        assert_eq!(junit(xml).ok(), tally(4, 3, 3));
        assert!(junit("").is_err());
    }

    #[test]
    fn a_test_that_says_it_could_not_run_is_found() {
        let xml = r#"<testsuite name="a"><testcase name="ran" classname="a"><system-err>fine</system-err></testcase>
            <testcase name="could_not" classname="a"><system-err>SKIPPED: no tool
            </system-err></testcase><testcase name="failed" classname="a"><failure/><system-err>SKIPPED</system-err></testcase></testsuite>"#;
        assert_eq!(passed_idly(xml), ["could_not"]);
    }
}
