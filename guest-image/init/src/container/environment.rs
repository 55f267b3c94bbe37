//! The environment of a container's program.

use std::collections::BTreeMap;
use std::ffi::{CString, NulError};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the task says, and what every program may count on: `PATH`, `HOME`, `HOSTNAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Environment(BTreeMap<String, String>);

impl Environment {
    pub(crate) fn new(given: &BTreeMap<String, String>, home: &str, hostname: &str) -> Self {
        let mut variables = given.clone();
        for (name, value) in [("PATH", DEFAULT_PATH), ("HOSTNAME", hostname)] {
            variables
                .entry(name.to_owned())
                .or_insert_with(|| value.to_owned());
        }
        let home_variable = variables.entry("HOME".to_owned()).or_default();
        if home_variable.is_empty() {
            *home_variable = home.to_owned();
        }
        Self(variables)
    }

    pub(crate) fn path(&self) -> &str {
        self.0.get("PATH").map_or("", String::as_str)
    }

    /// As execve(2) takes it.
    pub(crate) fn strings(&self) -> Result<Vec<CString>, NulError> {
        self.0
            .iter()
            .map(|(name, value)| CString::new(format!("{name}={value}")))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect()
    }

    #[test]
    fn what_is_missing_is_filled_in() {
        let environment = Environment::new(&given(&[("A", "b=c")]), "/root", "box");
        let strings: Vec<_> = environment
            .strings()
            .unwrap()
            .into_iter()
            .map(|s| s.into_string().unwrap())
            .collect();
        assert_eq!(
            strings,
            [
                "A=b=c",
                "HOME=/root",
                "HOSTNAME=box",
                &format!("PATH={DEFAULT_PATH}")
            ]
        );
    }

    #[test]
    fn what_is_given_stays() {
        let variables = given(&[("HOME", "/x"), ("HOSTNAME", "y"), ("PATH", "")]);
        assert_eq!(Environment::new(&variables, "/root", "box").0, variables);
        assert_eq!(Environment::new(&variables, "/root", "box").path(), "");
    }

    #[test]
    fn an_empty_home_is_as_none() {
        let environment = Environment::new(&given(&[("HOME", "")]), "/root", "box");
        assert_eq!(environment.0["HOME"], "/root");
    }

    #[test]
    fn a_nul_is_refused() {
        assert!(
            Environment::new(&given(&[("A", "b\0c")]), "/", "box")
                .strings()
                .is_err()
        );
    }
}
