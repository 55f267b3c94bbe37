//! The names that the network's parts have on the host: who owns a namespace, bridge or tap follows from its name alone.
//!
//! A namespace and a host link carry the prefix; what lies inside a namespace needs none.

use sha2::{Digest, Sha256};

use super::NetworkError;

/// The VPC's end of its link to the host.
pub(super) const TRANSIT: &str = "transit";
/// How the name of every tap begins.
pub(super) const TAP: &str = "bt";
/// How the name of every bridge begins.
pub(super) const BRIDGE: &str = "bb";

/// The part of every name by which two daemons on one host are told apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Prefix(String);

impl Prefix {
    /// Eight characters at most, so that a host link's name fits the kernel's 15. Never a dash, which ends the prefix.
    pub(super) fn new(prefix: &str) -> Result<Self, NetworkError> {
        let fine = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        if prefix.is_empty() || prefix.len() > 8 || !prefix.bytes().all(fine) {
            return Err(NetworkError::Prefix(prefix.to_owned()));
        }
        Ok(Self(prefix.to_owned()))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn namespace(&self, vpc_id: &str) -> String {
        format!("{}-{vpc_id}", self.0)
    }

    /// How the names of all namespaces begin.
    pub(super) fn namespaces(&self) -> String {
        format!("{}-", self.0)
    }

    /// The host's end of the link to a VPC.
    pub(super) fn host_link(&self, index: u16) -> String {
        format!("{}-v{index}", self.0)
    }

    /// How the names of all host links begin.
    pub(super) fn host_links(&self) -> String {
        format!("{}-v", self.0)
    }
}

/// The tap of a network interface.
pub(super) fn tap(eni_id: &str) -> String {
    format!("{TAP}{}", digest(eni_id))
}

/// The bridge of a subnet.
pub(super) fn bridge(subnet_id: &str) -> String {
    format!("{BRIDGE}{}", digest(subnet_id))
}

/// Ids become parts of file names, rule set names and messages, so they are bound before use.
pub(super) fn check_id(id: &str) -> Result<(), NetworkError> {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if id.is_empty() || id.len() > 64 || !id.bytes().all(fine) {
        return Err(NetworkError::Id(id.chars().take(80).collect()));
    }
    Ok(())
}

fn digest(id: &str) -> String {
    hex::encode(&Sha256::digest(id.as_bytes())[..5])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_fits_an_interface_name() {
        let prefix = Prefix::new("berth012").unwrap();
        assert!(prefix.host_link(u16::MAX).len() <= 15);
        assert_eq!(tap("eni-0123456789abcdef0").len(), 12);
        assert_eq!(bridge("subnet-0123456789abcdef0").len(), 12);
    }

    #[test]
    fn no_prefix_owns_what_another_owns() {
        let (short, long) = (Prefix::new("ber").unwrap(), Prefix::new("berth").unwrap());
        assert!(!long.namespace("vpc-1").starts_with(&short.namespaces()));
        assert!(!long.host_link(1).starts_with(&short.host_links()));
        assert!(Prefix::new("a-b").is_err());
        assert!(Prefix::new("").is_err());
        assert!(Prefix::new("nine00000").is_err());
    }

    #[test]
    fn ids_that_could_leave_their_folder_are_refused() {
        for id in ["", ".", "..", "a/b", "a b", "a_b", "é", &"x".repeat(65)] {
            assert!(check_id(id).is_err(), "{id:?} was taken");
        }
        assert!(check_id("eni-0123456789abcdef0").is_ok());
    }
}
