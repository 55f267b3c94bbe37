//! VPCs, subnets and security groups, as stored.

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vpc {
    /// `vpc-` and 17 hex digits.
    pub id: String,
    /// Small number, unique on this host; shapes the host's side of the VPC.
    pub index: u16,
    pub cidr: Ipv4Net,
    pub is_default: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    /// `subnet-` and 17 hex digits.
    pub id: String,
    pub vpc_id: String,
    pub cidr: Ipv4Net,
    pub availability_zone: String,
    pub is_default: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecurityGroup {
    /// `sg-` and 17 hex digits.
    pub id: String,
    pub vpc_id: String,
    pub name: String,
    pub description: String,
    /// The VPC's own default group: members reach each other, and everything outward is allowed.
    pub is_default: bool,
}
