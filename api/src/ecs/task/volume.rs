//! `volumeConfigurations` of a RunTask: what a task says of the volume that its definition leaves to it. Pure.

use berth_runtime::model::Tag;
use berth_runtime::model::definition::TaskDefinition;
use berth_runtime::runtime::LaunchVolume;

use crate::decode::says_nothing;
use crate::ecs::shapes::{ManagedEbsVolume, RunTaskShape, TagShape, VolumeTagSpecification};
use crate::ecs::values::{tags, unsigned};
use crate::error::ApiError;

/// What AWS has for general purposes; the others promise a speed, or the lack of one.
const VOLUME_TYPES: [&str; 2] = ["gp2", "gp3"];
const MAX_TEXT_CHARS: usize = 2048;

/// The volume of the tasks, or what is wrong with it.
pub(super) fn launch_volume(
    input: &RunTaskShape,
    definition: &TaskDefinition,
) -> Result<Option<LaunchVolume>, ApiError> {
    let given = input.volume_configurations.as_deref().unwrap_or_default();
    let wanted = definition.spec.launch_volume.as_deref();
    let (configuration, name) = match (given, wanted) {
        ([], None) => return Ok(None),
        ([], Some(name)) => {
            return refuse(format!(
                "volumeConfigurations must have volume '{name}', which is configuredAtLaunch in the task definition."
            ));
        }
        (_, None) => {
            return refuse(
                "volumeConfigurations can only be given for a task definition that has a volume with \
                 configuredAtLaunch."
                    .to_owned(),
            );
        }
        ([configuration], Some(name)) if configuration.name.as_deref() == Some(name) => (configuration, name),
        (_, Some(name)) => {
            return refuse(format!(
                "volumeConfigurations must have one item, named '{name}' as the volume with configuredAtLaunch in \
                 the task definition."
            ));
        }
    };
    let Some(volume) = &configuration.managed_ebs_volume else {
        return refuse(format!("volume '{name}' must have a managedEBSVolume."));
    };
    senseless(volume)?;
    bounded("snapshotId", volume.snapshot_id.as_deref())?;
    let role_arn = volume.role_arn.clone().filter(|role| !role.is_empty());
    let Some(role_arn) = role_arn else {
        return refuse("managedEBSVolume.roleArn can not be blank.".to_owned());
    };
    bounded("roleArn", Some(&role_arn))?;
    let from = volume.snapshot_id.clone().filter(|from| !from.is_empty());
    if from.is_none() && volume.size_in_gib.is_none() {
        return refuse("managedEBSVolume must have sizeInGiB or snapshotId.".to_owned());
    }
    let termination = volume.termination_policy.as_ref();
    Ok(Some(LaunchVolume {
        name: name.to_owned(),
        from,
        size_gib: unsigned("sizeInGiB", volume.size_in_gib)?,
        delete_on_termination: termination.and_then(|policy| policy.delete_on_termination),
        tags: volume_tags(volume.tag_specifications.as_deref(), definition)?,
        role_arn: Some(role_arn),
    }))
}

/// What a file on the host's disk cannot promise is refused, by its name.
fn senseless(volume: &ManagedEbsVolume) -> Result<(), ApiError> {
    if volume.encrypted == Some(true) {
        return refuse(
            "Berth does not support managedEBSVolume.encrypted: volumes are as the host's disk is. Leave it out, and \
             encrypt the disk of the data directory."
                .to_owned(),
        );
    }
    let members = [
        (
            "kmsKeyId",
            &volume.kms_key_id,
            "volumes are not encrypted one by one",
        ),
        (
            "iops",
            &volume.iops,
            "a volume has the speed of the task's other disk",
        ),
        (
            "throughput",
            &volume.throughput,
            "a volume has the speed of the task's other disk",
        ),
        (
            "volumeInitializationRate",
            &volume.volume_initialization_rate,
            "a copy of a snapshot is whole from the start",
        ),
    ];
    if let Some((member, _, why)) = members.into_iter().find(|(_, value, _)| !says_nothing(value)) {
        return refuse(format!(
            "Berth does not support managedEBSVolume.{member}: {why}. Leave it out."
        ));
    }
    let volume_type = volume.volume_type.as_deref().unwrap_or("gp3");
    if !VOLUME_TYPES.contains(&volume_type) {
        return refuse(format!(
            "Berth does not support managedEBSVolume.volumeType '{}': it must be gp2 or gp3, or left out.",
            shortened(volume_type)
        ));
    }
    let filesystem = volume.filesystem_type.as_deref().unwrap_or("ext4");
    if filesystem != "ext4" {
        return refuse(format!(
            "Berth does not support managedEBSVolume.filesystemType '{}': it must be ext4, or left out.",
            shortened(filesystem)
        ));
    }
    Ok(())
}

/// Those that are given, and those of the definition where they are asked for.
fn volume_tags(
    specifications: Option<&[VolumeTagSpecification]>,
    definition: &TaskDefinition,
) -> Result<Vec<Tag>, ApiError> {
    let mut all: Vec<TagShape> = Vec::new();
    for specification in specifications.unwrap_or_default() {
        if specification.resource_type.as_deref() != Some("volume") {
            return refuse("resourceType in tagSpecifications must be volume.".to_owned());
        }
        all.extend(specification.tags.iter().flatten().cloned());
        match specification.propagate_tags.as_deref() {
            None | Some("NONE") => {}
            Some("TASK_DEFINITION") => {
                for tag in &definition.tags {
                    if !all.iter().any(|own| own.key.as_ref() == Some(&tag.key)) {
                        all.push(TagShape {
                            key: Some(tag.key.clone()),
                            value: Some(tag.value.clone()),
                        });
                    }
                }
            }
            Some(_) => {
                return refuse(
                    "propagateTags in tagSpecifications must be TASK_DEFINITION or NONE for a task that no service \
                     starts."
                        .to_owned(),
                );
            }
        }
    }
    tags(Some(&all))
}

fn bounded(member: &str, text: Option<&str>) -> Result<(), ApiError> {
    let text = text.unwrap_or_default();
    if text.chars().count() > MAX_TEXT_CHARS || text.chars().any(char::is_control) {
        return refuse(format!(
            "managedEBSVolume.{member} must have at most {MAX_TEXT_CHARS} printable characters."
        ));
    }
    Ok(())
}

fn shortened(text: &str) -> String {
    text.chars().take(100).collect()
}

fn refuse<T>(text: String) -> Result<T, ApiError> {
    Err(ApiError::InvalidParameter(text))
}
