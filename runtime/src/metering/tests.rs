use proptest::prelude::*;

use super::*;
use crate::model::bill::{Architecture, Closing, Purchase};
use crate::model::task::{Pauses, TaskId};

fn ledger_line(millis: u64) -> LedgerLine {
    LedgerLine {
        task: TaskId::random(),
        cluster: "default".into(),
        family: "web".into(),
        revision: 1,
        region: "us-east-1".into(),
        architecture: Architecture::X86_64,
        purchase: Purchase::OnDemand,
        cpu_units: 256,
        memory_mib: 512,
        ephemeral_storage_gib: 20,
        tags: vec![],
        opened_at: Timestamp(1_000),
        closed: Some(Closing {
            at: Timestamp(1_000 + millis),
            at_last_heartbeat: false,
        }),
        pauses: Pauses::default(),
    }
}

fn billed(line: LedgerLine) -> BilledLine {
    bill(vec![line], &PriceList::built_in().unwrap(), 60, Timestamp(0))
        .unwrap()
        .lines
        .remove(0)
}

#[test]
fn three_seconds_are_billed_as_the_minimum_of_sixty() {
    let line = billed(ledger_line(3_000));
    assert_eq!(line.billed_seconds, 60);
    // 60 s of a quarter of a vCPU at 40,480,000 n$/h, and of half a GB at 4,445,000 n$/h.
    assert_eq!(
        (line.vcpu_nanos, line.memory_nanos, line.storage_nanos),
        (168_667, 37_042, 0)
    );
    assert_eq!(line.total_nanos, 205_709);
}

#[test]
fn a_begun_second_is_billed_whole() {
    assert_eq!(billed(ledger_line(61_200)).billed_seconds, 62);
    assert_eq!(billed(ledger_line(62_000)).billed_seconds, 62);
    assert_eq!(billed(ledger_line(62_001)).billed_seconds, 63);
}

#[test]
fn a_paused_task_costs_its_memory_but_no_processor() {
    let line = billed(LedgerLine {
        pauses: Pauses {
            since: None,
            ended_ms: 1_800_999,
        },
        ..ledger_line(3_600_000)
    });
    assert_eq!((line.billed_seconds, line.paused_seconds), (3600, 1800));
    // Half an hour of a quarter of a vCPU, and an hour of half a GB.
    assert_eq!((line.vcpu_nanos, line.memory_nanos), (5_060_000, 2_222_500));
}

#[test]
fn a_pause_is_billed_at_the_prices_of_its_own() {
    let list = r#"{"currency": "EUR", "prices": [
        {"from_ms": 0, "region": "*", "architecture": "x86_64", "purchase": "on_demand",
         "vcpu_hour_nanos": 4000, "gb_hour_nanos": 2000, "storage_gb_hour_nanos": 0,
         "paused_vcpu_hour_nanos": 400, "paused_gb_hour_nanos": 200}]}"#;
    let line = LedgerLine {
        closed: None,
        pauses: Pauses {
            since: Some(Timestamp(1_801_000)),
            ended_ms: 0,
        },
        ..ledger_line(0)
    };
    let bill = bill(
        vec![line],
        &PriceList::parse(list).unwrap(),
        60,
        Timestamp(3_601_000),
    )
    .unwrap();
    let line = &bill.lines[0];
    assert!(line.open);
    assert_eq!((line.billed_seconds, line.paused_seconds), (3600, 1800));
    assert_eq!((line.vcpu_nanos, line.memory_nanos), (550, 550));
}

#[test]
fn a_short_task_is_billed_the_minimum_however_long_it_was_paused() {
    let line = billed(LedgerLine {
        pauses: Pauses {
            since: None,
            // More than it lived: nothing that is stored may make a bill negative.
            ended_ms: 20_000,
        },
        ..ledger_line(10_000)
    });
    assert_eq!((line.billed_seconds, line.paused_seconds), (60, 10));
}

#[test]
fn only_storage_beyond_the_free_part_costs() {
    let line = LedgerLine {
        ephemeral_storage_gib: 30,
        ..ledger_line(3_600_000)
    };
    assert_eq!(billed(line).storage_nanos, 1_110_000);
}

#[test]
fn a_price_change_holds_for_lines_opened_from_then_on_and_a_region_beats_any() {
    let list = r#"{"currency": "EUR", "prices": [
        {"from_ms": 0, "region": "*", "architecture": "x86_64", "purchase": "on_demand",
         "vcpu_hour_nanos": 1, "gb_hour_nanos": 0, "storage_gb_hour_nanos": 0},
        {"from_ms": 500, "region": "*", "architecture": "x86_64", "purchase": "on_demand",
         "vcpu_hour_nanos": 2, "gb_hour_nanos": 0, "storage_gb_hour_nanos": 0},
        {"from_ms": 2000, "region": "us-east-1", "architecture": "x86_64", "purchase": "on_demand",
         "vcpu_hour_nanos": 3, "gb_hour_nanos": 0, "storage_gb_hour_nanos": 0}]}"#;
    let list = PriceList::parse(list).unwrap();
    let price = |opened| {
        list.at(&LedgerLine {
            opened_at: Timestamp(opened),
            ..ledger_line(1)
        })
        .unwrap()
        .vcpu_hour_nanos
    };
    assert_eq!([price(499), price(500), price(1_999), price(2_000)], [1, 2, 2, 3]);
    let spot = LedgerLine {
        purchase: Purchase::Spot,
        ..ledger_line(1)
    };
    assert!(matches!(list.at(&spot), Err(PriceError::Missing { .. })));
}

proptest! {
    #[test]
    fn a_bill_is_the_sum_of_its_lines_and_the_same_every_time(
        intervals in proptest::collection::vec((0..10_000_000u64, 1..=16u32, 1..=120u32, 20..=200u32), 0..20)
    ) {
        let lines: Vec<_> = intervals.into_iter().map(|(millis, vcpus, gib, storage)| LedgerLine {
            cpu_units: vcpus * 256, memory_mib: gib * 1024, ephemeral_storage_gib: storage, ..ledger_line(millis)
        }).collect();
        let prices = PriceList::built_in().unwrap();
        let first = bill(lines.clone(), &prices, 60, Timestamp(0)).unwrap();
        prop_assert_eq!(&first, &bill(lines, &prices, 60, Timestamp(999)).unwrap());
        let sum: u64 = first.lines.iter().map(|line| line.vcpu_nanos + line.memory_nanos + line.storage_nanos).sum();
        prop_assert_eq!(first.total_nanos, sum);
    }

    #[test]
    fn billed_seconds_cover_the_interval_by_less_than_a_second_over(millis in 0..1_000_000_000u64, minimum in 0..120u64) {
        let seconds = billed_seconds(millis, minimum);
        prop_assert!(seconds >= minimum && seconds * 1000 >= millis);
        prop_assert!(seconds == minimum || seconds * 1000 - millis < 1000);
    }
}
