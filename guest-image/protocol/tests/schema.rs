//! The JSON form of every message, held against the checked-in snapshot of this protocol version.
//!
//! A failure means that the form on the wire changed. Either undo that, or raise `PROTOCOL_VERSION`, and write the
//! new snapshot with `BERTH_WRITE_SCHEMA=1 cargo test -p berth-protocol --test schema`.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use berth_protocol::PROTOCOL_VERSION;
use berth_protocol::exec::{FromCommand, TerminalSize, ToCommand};
use berth_protocol::message::{
    Condition, ContainerSpec, ContainerState, ContainerStatus, ContainerUsage, Dependency, Health,
    HealthCheck, Mount, NetworkSpec, NetworkUsage, OutputPosition, ResourceLimit, RestartPolicy, Stream,
    SystemControl, TaskSpec, TaskUsage, Tmpfs, ToGuest, ToHost, VolumeDrive,
};
use serde_json::{Value, json};

fn to_guest() -> Vec<ToGuest> {
    vec![
        ToGuest::Hello {
            version: PROTOCOL_VERSION,
            outputs: vec![OutputPosition {
                container: "web".into(),
                stream: Stream::Stdout,
                offset: 4096,
            }],
        },
        ToGuest::Run {
            task: Box::new(task()),
            unix_ms: 1_700_000_000_000,
            seed: std::array::from_fn(|index| index as u8),
        },
        ToGuest::Ack {
            container: "web".into(),
            stream: Stream::Stderr,
            offset: 8192,
        },
        ToGuest::Stop,
        ToGuest::Signal {
            container: "web".into(),
            signal: 1,
        },
        ToGuest::Measure { seconds: 60 },
        ToGuest::PowerOff,
    ]
}

fn task() -> TaskSpec {
    TaskSpec {
        task_id: "0123456789abcdef".into(),
        session: "s3cret".into(),
        hostname: "ip-10-0-0-5".into(),
        network: Some(NetworkSpec {
            mac: [2, 0, 0, 0, 0, 1],
            address: Ipv4Addr::new(10, 0, 0, 5),
            prefix_len: 24,
            gateway: Ipv4Addr::new(10, 0, 0, 1),
            dns_servers: vec![Ipv4Addr::new(10, 0, 0, 2)],
            search_domains: vec!["example.internal".into()],
            mtu: 1500,
        }),
        memory_bytes: 536_870_912,
        pids: 1024,
        scratch_drive: "scratch".into(),
        volumes: vec!["shared".into(), "lasting".into()],
        volume_drives: vec![VolumeDrive {
            volume: "lasting".into(),
            drive: "volume".into(),
        }],
        share_pids: true,
        containers: vec![ContainerSpec {
            name: "web".into(),
            image_drive: "image0".into(),
            argv: vec!["/bin/server".into(), "--listen".into()],
            env: BTreeMap::from([("LANG".into(), "C.UTF-8".into())]),
            working_dir: "/srv".into(),
            user: "www-data:www-data".into(),
            stop_signal: "SIGTERM".into(),
            readonly_root: true,
            capabilities_add: vec!["CAP_SYS_PTRACE".into()],
            capabilities_drop: vec!["CAP_MKNOD".into()],
            limits: vec![ResourceLimit {
                name: "nofile".into(),
                soft: Some(1024),
                hard: None,
            }],
            system_controls: vec![SystemControl {
                name: "net.core.somaxconn".into(),
                value: "1024".into(),
            }],
            memory_bytes: Some(268_435_456),
            memory_reservation_bytes: Some(134_217_728),
            cpu_shares: Some(512),
            init_process: true,
            open_stdin: true,
            terminal: true,
            essential: true,
            depends_on: vec![Dependency {
                container: "migrate".into(),
                condition: Condition::Success,
            }],
            start_timeout_ms: 60_000,
            stop_timeout_ms: 30_000,
            health_check: Some(HealthCheck {
                argv: vec!["/bin/check".into()],
                interval_ms: 30_000,
                timeout_ms: 5_000,
                retries: 3,
                start_period_ms: 0,
            }),
            restart: Some(RestartPolicy {
                ignored_exit_codes: vec![0],
                attempt_period_ms: 300_000,
            }),
            mounts: vec![Mount {
                volume: "shared".into(),
                path: "/data".into(),
                readonly: true,
            }],
            tmpfs: vec![Tmpfs {
                path: "/scratch".into(),
                bytes: 1 << 20,
                options: vec!["noexec".into()],
            }],
            output_buffer_bytes: Some(10_485_760),
        }],
    }
}

fn to_host() -> Vec<ToHost> {
    let status = |state| ContainerStatus {
        name: "web".into(),
        state,
    };
    let running = status(ContainerState::Running {
        pid: 42,
        started_at_ms: 1_700_000_000_000,
        health: Health::Healthy,
        restarts: 1,
    });
    let exited = status(ContainerState::Exited {
        exit_code: 137,
        signal: Some(9),
        oom_killed: true,
        started_at_ms: 1_700_000_000_000,
        finished_at_ms: 1_700_000_001_000,
        stdout_bytes: 4096,
        stderr_bytes: 12,
    });
    vec![
        ToHost::Hello {
            version: PROTOCOL_VERSION,
            init_version: "0.1.0".into(),
            ready_ms: 120,
            session: Some("s3cret".into()),
            containers: vec![running, exited],
        },
        ToHost::Container {
            status: status(ContainerState::StartFailed {
                reason: "exec: \"nope\": executable file not found in $PATH".into(),
            }),
        },
        ToHost::Container {
            status: status(ContainerState::NotStarted {
                reason: Some("container \"migrate\" ended with the exit code 1".into()),
            }),
        },
        ToHost::Usage { usage: usage() },
        ToHost::Error {
            message: "there is a task already".into(),
        },
    ]
}

fn usage() -> TaskUsage {
    TaskUsage {
        at_ms: 1_700_000_000_000,
        system_cpu_us: 90_000_000,
        disk_used_bytes: 1 << 20,
        disk_bytes: 20 << 30,
        network: NetworkUsage {
            rx_bytes: 1,
            rx_packets: 2,
            rx_errors: 3,
            rx_dropped: 4,
            tx_bytes: 5,
            tx_packets: 6,
            tx_errors: 7,
            tx_dropped: 8,
        },
        containers: vec![ContainerUsage {
            name: "web".into(),
            cpu_us: 1_500_000,
            cpu_user_us: 1_000_000,
            cpu_system_us: 500_000,
            memory_bytes: 10 << 20,
            inactive_file_bytes: 1 << 20,
            memory_peak_bytes: 12 << 20,
            pids: 3,
            read_bytes: 4096,
            read_ops: 1,
            write_bytes: 8192,
            write_ops: 2,
        }],
    }
}

fn to_command() -> Vec<ToCommand> {
    let size = TerminalSize {
        columns: 80,
        rows: 24,
    };
    vec![
        ToCommand::Start {
            container: "web".into(),
            argv: vec!["sh".into()],
            env: BTreeMap::from([("TERM".into(), "xterm".into())]),
            terminal: Some(size),
        },
        ToCommand::StdinEnd,
        ToCommand::Resize { size },
        ToCommand::Signal { signal: 2 },
    ]
}

fn from_command() -> Vec<FromCommand> {
    vec![
        FromCommand::Failed {
            reason: "exec: \"nope\": executable file not found in $PATH".into(),
        },
        FromCommand::Exited { exit_code: 130 },
    ]
}

/// The compiler points here when a variant is added: then the lists above need an example of it.
#[allow(dead_code)]
fn every_variant_has_an_example(guest: &ToGuest, host: &ToHost, state: &ContainerState) {
    match guest {
        ToGuest::Hello { .. } | ToGuest::Run { .. } | ToGuest::Ack { .. } => {}
        ToGuest::Stop | ToGuest::Signal { .. } | ToGuest::Measure { .. } | ToGuest::PowerOff => {}
    }
    match host {
        ToHost::Hello { .. } | ToHost::Container { .. } | ToHost::Usage { .. } | ToHost::Error { .. } => {}
    }
    match state {
        ContainerState::Running { .. }
        | ContainerState::StartFailed { .. }
        | ContainerState::NotStarted { .. } => {}
        ContainerState::Exited { .. } => {}
    }
}

fn snapshot_path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("schema/v{PROTOCOL_VERSION}.json"))
}

fn shape() -> Value {
    json!({
        "version": PROTOCOL_VERSION,
        "to_guest": to_guest(),
        "to_host": to_host(),
        "to_command": to_command(),
        "from_command": from_command(),
    })
}

#[test]
fn the_wire_form_is_that_of_this_version() {
    let path = snapshot_path();
    if std::env::var_os("BERTH_WRITE_SCHEMA").is_some() {
        let text = serde_json::to_string_pretty(&shape()).unwrap();
        std::fs::write(&path, text + "\n").unwrap();
    }
    let snapshot: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(shape(), snapshot, "the wire form differs from {}", path.display());
}

#[test]
fn the_snapshot_reads_back_as_the_messages_it_came_from() {
    let snapshot: Value = serde_json::from_slice(&std::fs::read(snapshot_path()).unwrap()).unwrap();
    let guest: Vec<ToGuest> = serde_json::from_value(snapshot["to_guest"].clone()).unwrap();
    let host: Vec<ToHost> = serde_json::from_value(snapshot["to_host"].clone()).unwrap();
    assert_eq!(guest, to_guest());
    assert_eq!(host, to_host());
    let command: Vec<ToCommand> = serde_json::from_value(snapshot["to_command"].clone()).unwrap();
    let outcome: Vec<FromCommand> = serde_json::from_value(snapshot["from_command"].clone()).unwrap();
    assert_eq!(command, to_command());
    assert_eq!(outcome, from_command());
}
