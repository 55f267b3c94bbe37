//! Counting tests by what their runners report: nextest's and libtest's summary lines, nextest's JUnit
//! file, the journal of the end-to-end suite. Runs nothing.

use std::fmt;
use std::ops::AddAssign;
use std::sync::LazyLock;

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
static NAME: LazyLock<Regex> = LazyLock::new(|| pattern(r#"\bname="([^"]*)""#));

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

/// The totals of the end-to-end suite's journal: a line for each test that ended, its outcome first; a try that another
/// one followed has a line too, and counts for nothing.
pub(crate) fn journal(lines: &str) -> Tally {
    let mut sum = Tally::default();
    for line in lines.lines() {
        match line.split(' ').next() {
            Some("passed") => sum.passed += 1,
            Some("skipped") => sum.skipped += 1,
            Some("rerun") => {}
            _ => sum.failed += 1,
        }
    }
    sum
}

/// What the journal tells of tests that failed, at last or at first: a line each, with the reason.
pub(crate) fn journal_failures(lines: &str) -> Vec<String> {
    let told = lines.lines().filter_map(|line| {
        let (outcome, rest) = line.split_once(' ')?;
        let what = match outcome {
            "failed" => "FAILED",
            "rerun" => "failed at its first try",
            _ => return None,
        };
        Some(format!("{what}: {}", rest.replacen('\t', ": ", 1)))
    });
    told.collect()
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
    fn every_line_of_a_journal_counts_and_a_broken_one_as_failed() {
        let lines =
            "passed a.py::t[1 2]\nskipped b.py::t\nfailed b.py::u\nrerun b.py::v\tlate\npassed b.py::v\npas";
        assert_eq!(Some(journal(lines)), tally(2, 2, 1));
        assert_eq!(journal(""), Tally::default());
    }

    #[test]
    fn a_journal_tells_why_a_test_failed_at_last_or_at_first() {
        let lines = "passed a.py::t\nrerun b.py::t[1 2]\tassert 1 == 2\nfailed b.py::t[1 2]\tlate\n";
        assert_eq!(
            journal_failures(lines),
            [
                "failed at its first try: b.py::t[1 2]: assert 1 == 2",
                "FAILED: b.py::t[1 2]: late"
            ]
        );
    }

    #[test]
    fn a_test_that_says_it_could_not_run_is_found() {
        let xml = r#"<testsuite name="a"><testcase name="ran" classname="a"><system-err>fine</system-err></testcase>
            <testcase name="could_not" classname="a"><system-err>SKIPPED: no tool
            </system-err></testcase><testcase name="failed" classname="a"><failure/><system-err>SKIPPED</system-err></testcase></testsuite>"#;
        assert_eq!(passed_idly(xml), ["could_not"]);
    }
}
