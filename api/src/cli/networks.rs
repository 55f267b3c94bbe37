//! `berth networks`: the ids that `--network-configuration` of the aws CLI needs.

use clap::Args;
use serde_json::{Value, json};

use super::client::{Client, Connection, Service};
use super::{output, table};

#[derive(Args)]
#[command(after_help = "\
Examples:
  berth networks
  aws ecs run-task … --network-configuration 'awsvpcConfiguration={subnets=[subnet-…],assignPublicIp=ENABLED}'")]
pub(super) struct NetworksArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

pub(super) async fn networks(args: NetworksArgs) -> anyhow::Result<()> {
    let client = Client::new(&args.connection)?;
    let networks = client
        .call(Service::Berth, "DescribeNetworks", &json!({}))
        .await?;
    let text = if args.json {
        format!("{networks:#}\n")
    } else {
        shown(&networks)
    };
    Ok(output::print(&text)?)
}

fn shown(networks: &Value) -> String {
    let list = |kind: &str| networks[kind].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let subnets: Vec<Vec<String>> = list("subnets")
        .iter()
        .map(|subnet| {
            ["subnetId", "vpcId", "cidrBlock", "availableIpAddressCount"]
                .map(|name| text(&subnet[name]))
                .to_vec()
        })
        .collect();
    let groups: Vec<Vec<String>> = list("securityGroups")
        .iter()
        .map(|group| {
            ["groupId", "vpcId", "groupName"]
                .map(|name| text(&group[name]))
                .to_vec()
        })
        .collect();
    let subnets = table::columns(&["SUBNET", "VPC", "CIDR", "FREE ADDRESSES"], &subnets, &[3]);
    let groups = table::columns(&["SECURITY GROUP", "VPC", "NAME"], &groups, &[]);
    format!("{subnets}\n{groups}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_and_groups_are_shown_with_their_ids() {
        let text = shown(&json!({
            "subnets": [{"subnetId": "subnet-1", "vpcId": "vpc-1", "cidrBlock": "172.31.0.0/20", "availableIpAddressCount": 4091}],
            "securityGroups": [{"groupId": "sg-1", "vpcId": "vpc-1", "groupName": "default"}],
        }));
        assert!(
            text.contains("subnet-1") && text.contains("4091") && text.contains("sg-1"),
            "{text}"
        );
    }
}
