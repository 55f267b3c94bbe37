//! The keys of the store. A name that a caller chose comes last or is followed by a character that no name holds.

use std::net::Ipv4Addr;

use crate::model::definition::DefinitionId;
use crate::model::task::TaskId;
use crate::model::volume::VolumeId;

/// Stands between two names that a caller chose.
const SEPARATOR: char = '\u{1f}';

pub const CLUSTERS: &str = "cluster/";
pub const DEFINITIONS: &str = "definition/";
pub const TASKS: &str = "task/";
pub const LEDGER: &str = "ledger/";
pub const VPCS: &str = "vpc/";
pub const SUBNETS: &str = "subnet/";
pub const SECURITY_GROUPS: &str = "security-group/";
pub const LOG_GROUPS: &str = "log-group/";
pub const LOG_STREAMS: &str = "log-stream/";
pub const CLIENT_TOKENS: &str = "client-token/";
pub const PARAMETERS: &str = "parameter/";
pub const SECRETS: &str = "secret/";
pub const VOLUMES: &str = "volume/";
pub const ATTACHMENTS: &str = "attachment/";
pub const BUCKETS: &str = "bucket/";
pub const OBJECTS: &str = "object/";
pub const SEALED_OBJECTS: &str = "sealed/object/";
/// When the daemon was last alive.
pub const HEARTBEAT: &str = "heartbeat";

pub fn cluster(name: &str) -> String {
    format!("{CLUSTERS}{name}")
}
/// The last revision number given to a family.
pub fn family(name: &str) -> String {
    format!("family/{name}")
}
pub fn definition(id: &DefinitionId) -> String {
    // Ten digits keep revisions in order.
    format!("{DEFINITIONS}{}{SEPARATOR}{:010}", id.family, id.revision)
}
pub fn definitions_of(family: &str) -> String {
    format!("{DEFINITIONS}{family}{SEPARATOR}")
}
pub fn task(id: &TaskId) -> String {
    format!("{TASKS}{id}")
}
pub fn ledger(id: &TaskId) -> String {
    format!("{LEDGER}{id}")
}
/// What was settled before the task's machine was started.
pub fn prepared(id: &TaskId) -> String {
    format!("prepared/{id}")
}
/// That a machine of the task was given it, or was about to be.
pub fn handed_over(id: &TaskId) -> String {
    format!("handed-over/{id}")
}
pub fn vpc(id: &str) -> String {
    format!("{VPCS}{id}")
}
pub fn subnet(id: &str) -> String {
    format!("{SUBNETS}{id}")
}
pub fn security_group(id: &str) -> String {
    format!("{SECURITY_GROUPS}{id}")
}
/// Who holds an address of a subnet.
pub fn address(subnet: &str, address: Ipv4Addr) -> String {
    format!("{}{address}", addresses_of(subnet))
}
pub fn addresses_of(subnet: &str) -> String {
    format!("address/{subnet}/")
}
pub fn log_group(name: &str) -> String {
    format!("{LOG_GROUPS}{name}")
}
pub fn log_stream(group: &str, stream: &str) -> String {
    format!("{}{stream}", log_streams_of(group))
}
pub fn log_streams_of(group: &str) -> String {
    format!("{LOG_STREAMS}{group}{SEPARATOR}")
}
pub fn client_token(cluster: &str, token: &str) -> String {
    format!("{CLIENT_TOKENS}{cluster}{SEPARATOR}{token}")
}
pub fn parameter(name: &str) -> String {
    format!("{PARAMETERS}{name}")
}
/// The sealed value of a version.
pub fn sealed_parameter(name: &str, version: u64) -> String {
    // Twenty digits keep versions in order.
    format!("{}{version:020}", sealed_parameters_of(name))
}
pub fn sealed_parameters_of(name: &str) -> String {
    format!("sealed/parameter/{name}{SEPARATOR}")
}
pub fn secret(name: &str) -> String {
    format!("{SECRETS}{name}")
}
/// The sealed value of a version of the secret with this name and suffix.
pub fn sealed_secret(resource: &str, version: &str) -> String {
    format!("{}{version}", sealed_secrets_of(resource))
}
pub fn sealed_secrets_of(resource: &str) -> String {
    format!("sealed/secret/{resource}{SEPARATOR}")
}
pub fn bucket(name: &str) -> String {
    format!("{BUCKETS}{name}")
}
pub fn object(bucket: &str, key: &str) -> String {
    format!("{}{key}", objects_of(bucket))
}
pub fn objects_of(bucket: &str) -> String {
    format!("{OBJECTS}{bucket}{SEPARATOR}")
}
/// The sealed content.
pub fn sealed_object(bucket: &str, key: &str) -> String {
    format!("{SEALED_OBJECTS}{bucket}{SEPARATOR}{key}")
}
pub fn volume(id: &VolumeId) -> String {
    format!("{VOLUMES}{id}")
}
/// The id of the volume or snapshot with this name.
pub fn volume_name(name: &str) -> String {
    format!("volume-name/{name}")
}
/// Who has a volume for itself.
pub fn attachment(id: &VolumeId) -> String {
    format!("{ATTACHMENTS}{id}")
}
