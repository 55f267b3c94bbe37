//! What a thousand tasks that do nothing cost the daemon: its own part, since their machines are simulated, in this process.

use std::fs;

use nix::sys::resource::{UsageWho, getrusage};

use super::*;

const TASKS: usize = 1000;
/// Of one processor.
const MOST_CPU: f64 = 0.02;
const MOST_RESIDENT_BYTES: u64 = 100 << 20;
const WATCHED: Duration = Duration::from_secs(10);

/// Processor seconds of this process so far.
fn cpu_seconds() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    [usage.user_time(), usage.system_time()]
        .into_iter()
        .map(|time| Duration::new(time.tv_sec() as u64, time.tv_usec() as u32 * 1000).as_secs_f64())
        .sum()
}

fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.unwrap().trim().strip_suffix(" kB").unwrap();
    kib.parse::<u64>().unwrap() << 10
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_idle_tasks_cost_next_to_nothing() {
    let mut world = World::new(b"ready\n", None);
    Arc::get_mut(&mut world.host).unwrap().resources.memory_bytes = 1 << 40;
    Arc::get_mut(&mut world.host).unwrap().resources.cpu_units = 1 << 20;
    Arc::get_mut(&mut world.host).unwrap().resources.disk_bytes = 1 << 50;
    let runtime = world.daemon().await;
    let before = resident_bytes();
    let request = request(&runtime, 10).await;
    let mut ids = Vec::new();
    while ids.len() < TASKS {
        let tasks = runtime.run_task(request.clone()).await.unwrap();
        ids.extend(tasks.into_iter().map(|task| task.id));
    }
    for id in &ids {
        until(&runtime, id, TaskStatus::Running).await;
    }

    let busy = cpu_seconds();
    tokio::time::sleep(WATCHED).await;
    let share = (cpu_seconds() - busy) / WATCHED.as_secs_f64();
    let resident = resident_bytes() - before;
    println!(
        "{TASKS} idle tasks: {:.2} % of a processor, {} KiB",
        share * 100.0,
        resident >> 10
    );
    assert!(share < MOST_CPU, "{share} of a processor");
    assert!(resident < MOST_RESIDENT_BYTES, "{resident} bytes");

    // They are followed all the same.
    world.host.exit(&ids[TASKS - 1], 3, world.clock.now());
    let task = until(&runtime, &ids[TASKS - 1], TaskStatus::Stopped).await;
    assert_eq!(task.containers[0].exit_code, Some(3));
}
