//! The input shapes of the ECS operations that are answered here, with the API's own member names. A member that only
//! has to be noticed, so that it can be refused, is a bare JSON value.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// Declares shapes: every member is optional, because the API answers a missing one with a text of its own.
macro_rules! shapes {
    ($($(#[$meta:meta])* $name:ident { $($(#[$member_meta:meta])* $member:ident: $type:ty,)* })*) => {$(
        $(#[$meta])*
        #[derive(Clone, Debug, Default, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        pub(crate) struct $name { $($(#[$member_meta])* pub(crate) $member: Option<$type>,)* }
    )*};
}

shapes! {
    KeyValue { name: String, value: String, }
    EnvironmentFileShape {
        value: String,
        #[serde(rename = "type")]
        kind: String,
    }
    TagShape { key: String, value: String, }

    CreateCluster {
        cluster_name: String,
        tags: Vec<TagShape>,
        settings: Vec<KeyValue>,
        configuration: Value,
        capacity_providers: Vec<String>,
        default_capacity_provider_strategy: Vec<CapacityProviderStrategyItem>,
        service_connect_defaults: Value,
    }
    DescribeClusters { clusters: Vec<String>, include: Vec<String>, }
    ListClusters { next_token: String, max_results: i32, }
    DeleteCluster { cluster: String, }
    ListTagsForResource { resource_arn: String, }
    TagResource { resource_arn: String, tags: Vec<TagShape>, }
    UntagResource { resource_arn: String, tag_keys: Vec<String>, }

    RegisterTaskDefinition {
        family: String,
        task_role_arn: String,
        execution_role_arn: String,
        network_mode: String,
        container_definitions: Vec<ContainerShape>,
        volumes: Vec<Volume>,
        placement_constraints: Value,
        requires_compatibilities: Vec<String>,
        cpu: String,
        memory: String,
        tags: Vec<TagShape>,
        pid_mode: String,
        ipc_mode: String,
        proxy_configuration: Value,
        inference_accelerators: Value,
        ephemeral_storage: EphemeralStorage,
        runtime_platform: RuntimePlatform,
        enable_fault_injection: Value,
        trusted_execution_configuration: Value,
    }
    EphemeralStorage {
        #[serde(rename = "sizeInGiB")]
        size_in_gib: i32,
    }
    RuntimePlatform { cpu_architecture: String, operating_system_family: String, }
    Volume {
        name: String,
        host: HostVolume,
        docker_volume_configuration: Value,
        efs_volume_configuration: Value,
        s3files_volume_configuration: Value,
        fsx_windows_file_server_volume_configuration: Value,
        configured_at_launch: bool,
    }
    HostVolume { source_path: String, }
    ContainerShape {
        name: String,
        image: String,
        repository_credentials: RepositoryCredentialsShape,
        cpu: i32,
        memory: i32,
        memory_reservation: i32,
        links: Value,
        port_mappings: Vec<PortMappingShape>,
        essential: bool,
        restart_policy: RestartPolicy,
        entry_point: Vec<String>,
        command: Vec<String>,
        environment: Vec<KeyValue>,
        environment_files: Vec<EnvironmentFileShape>,
        mount_points: Vec<MountPointShape>,
        volumes_from: Vec<VolumeFromShape>,
        linux_parameters: LinuxParameters,
        secrets: Vec<SecretShape>,
        depends_on: Vec<DependsOn>,
        start_timeout: i32,
        stop_timeout: i32,
        version_consistency: String,
        hostname: String,
        user: String,
        working_directory: String,
        disable_networking: Value,
        privileged: Value,
        readonly_root_filesystem: bool,
        dns_servers: Value,
        dns_search_domains: Value,
        extra_hosts: Value,
        docker_security_options: Value,
        interactive: bool,
        pseudo_terminal: bool,
        docker_labels: BTreeMap<String, String>,
        ulimits: Vec<UlimitShape>,
        log_configuration: LogConfigurationShape,
        health_check: HealthCheckShape,
        system_controls: Vec<SystemControlShape>,
        resource_requirements: Vec<ResourceRequirement>,
        firelens_configuration: Value,
        credential_specs: Value,
    }
    PortMappingShape {
        container_port: i32,
        host_port: i32,
        protocol: String,
        name: String,
        app_protocol: String,
        container_port_range: String,
    }
    RepositoryCredentialsShape { credentials_parameter: String, }
    SecretShape { name: String, value_from: String, }
    RestartPolicy { enabled: bool, ignored_exit_codes: Vec<i32>, restart_attempt_period: i32, }
    HealthCheckShape { command: Vec<String>, interval: i32, timeout: i32, retries: i32, start_period: i32, }
    MountPointShape { source_volume: String, container_path: String, read_only: bool, }
    VolumeFromShape { source_container: String, read_only: bool, }
    TmpfsShape { container_path: String, size: i32, mount_options: Vec<String>, }
    DependsOn { container_name: String, condition: String, }
    ResourceRequirement {
        #[serde(rename = "type")]
        kind: String,
    }
    LinuxParameters {
        capabilities: Capabilities,
        devices: Value,
        init_process_enabled: bool,
        shared_memory_size: Value,
        tmpfs: Vec<TmpfsShape>,
        max_swap: Value,
        swappiness: Value,
    }
    Capabilities { add: Vec<String>, drop: Vec<String>, }
    SystemControlShape { namespace: String, value: String, }
    UlimitShape { name: String, soft_limit: i32, hard_limit: i32, }
    LogConfigurationShape { log_driver: String, options: BTreeMap<String, String>, secret_options: Value, }

    DescribeTaskDefinition { task_definition: String, include: Vec<String>, }
    DeregisterTaskDefinition { task_definition: String, }
    ListTaskDefinitions {
        family_prefix: String,
        status: String,
        sort: String,
        next_token: String,
        max_results: i32,
    }
    ListTaskDefinitionFamilies { family_prefix: String, status: String, next_token: String, max_results: i32, }

    RunTaskShape {
        capacity_provider_strategy: Vec<CapacityProviderStrategyItem>,
        cluster: String,
        count: i32,
        #[serde(rename = "enableECSManagedTags")]
        enable_ecs_managed_tags: bool,
        enable_execute_command: bool,
        group: String,
        launch_type: String,
        network_configuration: NetworkConfiguration,
        overrides: TaskOverride,
        placement_constraints: Value,
        placement_strategy: Value,
        platform_version: String,
        propagate_tags: String,
        started_by: String,
        tags: Vec<TagShape>,
        task_definition: String,
        client_token: String,
        volume_configurations: Vec<VolumeConfiguration>,
    }
    VolumeConfiguration {
        name: String,
        #[serde(rename = "managedEBSVolume")]
        managed_ebs_volume: ManagedEbsVolume,
    }
    ManagedEbsVolume {
        encrypted: bool,
        kms_key_id: Value,
        volume_type: String,
        #[serde(rename = "sizeInGiB")]
        size_in_gib: i32,
        snapshot_id: String,
        volume_initialization_rate: Value,
        iops: Value,
        throughput: Value,
        tag_specifications: Vec<VolumeTagSpecification>,
        role_arn: String,
        termination_policy: TerminationPolicy,
        filesystem_type: String,
    }
    VolumeTagSpecification { resource_type: String, tags: Vec<TagShape>, propagate_tags: String, }
    TerminationPolicy { delete_on_termination: bool, }
    CapacityProviderStrategyItem { capacity_provider: String, weight: i32, base: i32, }
    NetworkConfiguration { awsvpc_configuration: AwsVpcConfiguration, }
    AwsVpcConfiguration { subnets: Vec<String>, security_groups: Vec<String>, assign_public_ip: String, }
    TaskOverride {
        container_overrides: Vec<ContainerOverrideShape>,
        cpu: String,
        memory: String,
        inference_accelerator_overrides: Value,
        execution_role_arn: String,
        task_role_arn: String,
        ephemeral_storage: EphemeralStorage,
    }
    ContainerOverrideShape {
        name: String,
        command: Vec<String>,
        environment: Vec<KeyValue>,
        environment_files: Vec<EnvironmentFileShape>,
        cpu: i32,
        memory: i32,
        memory_reservation: i32,
        resource_requirements: Value,
    }
    ExecuteCommand { cluster: String, container: String, command: String, interactive: bool, task: String, }
    StopTask { cluster: String, task: String, reason: String, }
    DescribeTasks { cluster: String, tasks: Vec<String>, include: Vec<String>, }
    TaskProtection { cluster: String, tasks: Vec<String>, protection_enabled: bool, expires_in_minutes: i64, }
    ListTasks {
        cluster: String,
        container_instance: String,
        family: String,
        next_token: String,
        max_results: i32,
        started_by: String,
        service_name: String,
        desired_status: String,
        launch_type: String,
        daemon_name: String,
    }
}
