//! VPCs, subnets and security groups.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use super::{Runtime, RuntimeError};
use crate::model::network::{SecurityGroup, Subnet, Vpc};
use crate::network::ipam;
use crate::state::keys;
use crate::store::StoreError;

impl Runtime {
    pub async fn vpcs(&self) -> Result<Vec<Vpc>, RuntimeError> {
        let records = self.shared.context.records.list(keys::VPCS).await?;
        Ok(records.into_iter().map(|record| record.value).collect())
    }

    pub async fn subnets(&self) -> Result<Vec<Subnet>, RuntimeError> {
        let records = self.shared.context.records.list(keys::SUBNETS).await?;
        Ok(records.into_iter().map(|record| record.value).collect())
    }

    pub async fn security_groups(&self) -> Result<Vec<SecurityGroup>, RuntimeError> {
        let records = self.shared.context.records.list(keys::SECURITY_GROUPS).await?;
        Ok(records.into_iter().map(|record| record.value).collect())
    }

    /// Addresses that the subnet could still give.
    pub async fn available_addresses(&self, subnet_id: &str) -> Result<u64, RuntimeError> {
        let subnet = self
            .subnets()
            .await?
            .into_iter()
            .find(|subnet| subnet.id == subnet_id);
        let subnet = subnet.ok_or_else(|| RuntimeError::SubnetNotFound(subnet_id.to_owned()))?;
        let taken = self.taken_addresses(subnet_id).await?.len() as u64;
        Ok(u64::from(ipam::capacity(subnet.cidr)).saturating_sub(taken))
    }

    /// The resolvers that tasks are told to use.
    pub fn dns_servers(&self) -> Vec<Ipv4Addr> {
        self.shared.context.host.dns_servers()
    }

    pub(super) async fn taken_addresses(&self, subnet_id: &str) -> Result<BTreeSet<Ipv4Addr>, RuntimeError> {
        let prefix = keys::addresses_of(subnet_id);
        let entries = self.shared.context.records.store().list(&prefix).await?;
        let address = |key: &str| key.strip_prefix(&prefix).and_then(|text| text.parse().ok());
        let taken = entries.iter().map(|entry| {
            address(&entry.key).ok_or_else(|| StoreError::Corrupt {
                key: entry.key.clone(),
                cause: "it does not end in an address".to_owned(),
            })
        });
        Ok(taken.collect::<Result<_, _>>()?)
    }
}
