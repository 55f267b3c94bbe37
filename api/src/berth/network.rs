//! DescribeNetworks: the ids that `networkConfiguration` needs.

use serde_json::{Value, json};

use crate::app::App;
use crate::error::{ApiError, unexpected};

pub(super) async fn describe(app: &App) -> Result<Value, ApiError> {
    let vpcs = app.runtime.vpcs().await.map_err(|error| unexpected(&error))?;
    let vpcs: Vec<Value> = vpcs
        .iter()
        .map(|vpc| json!({ "vpcId": vpc.id, "cidrBlock": vpc.cidr.to_string(), "isDefault": vpc.is_default }))
        .collect();
    let mut subnets = Vec::new();
    for subnet in app.runtime.subnets().await.map_err(|error| unexpected(&error))? {
        let free = app
            .runtime
            .available_addresses(&subnet.id)
            .await
            .map_err(|error| unexpected(&error))?;
        subnets.push(json!({
            "subnetId": subnet.id,
            "vpcId": subnet.vpc_id,
            "cidrBlock": subnet.cidr.to_string(),
            "availabilityZone": subnet.availability_zone,
            "availableIpAddressCount": free,
            "isDefault": subnet.is_default,
        }));
    }
    let groups = app
        .runtime
        .security_groups()
        .await
        .map_err(|error| unexpected(&error))?;
    let groups = groups.iter().map(|group| {
        json!({
            "groupId": group.id,
            "groupName": group.name,
            "description": group.description,
            "vpcId": group.vpc_id,
            "isDefault": group.is_default,
        })
    });
    Ok(json!({
        "vpcs": vpcs,
        "subnets": subnets,
        "securityGroups": groups.collect::<Vec<_>>(),
        "dnsServers": app.runtime.dns_servers(),
    }))
}
