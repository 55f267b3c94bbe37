//! Properties of one connection: credit in both directions, and that neither side ever waits for nothing.

use proptest::prelude::*;

use super::connection::{Connection, Violation};
use super::packet::{Credit, Op, SHUTDOWN_BOTH, SHUTDOWN_SEND};

const WINDOW: u32 = 1000;

fn established(peer: Credit) -> Connection {
    let mut connection = Connection::accept(WINDOW, peer).unwrap();
    assert_eq!(
        connection.next_control().map(|control| control.op),
        Some(Op::Response)
    );
    connection.announce();
    connection
}

#[derive(Clone, Copy, Debug)]
enum Step {
    GuestSends(u32),
    HostTakes(u32),
    HostSends(u32),
    GuestTakes(u32),
    GuestResizes(u32),
    GuestSaysOldCredit,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1..2 * WINDOW).prop_map(Step::GuestSends),
        (1..2 * WINDOW).prop_map(Step::HostTakes),
        (1..2 * WINDOW).prop_map(Step::HostSends),
        (1..2 * WINDOW).prop_map(Step::GuestTakes),
        (0..3 * WINDOW).prop_map(Step::GuestResizes),
        Just(Step::GuestSaysOldCredit),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    /// A guest that keeps to the rules is never accused; the host keeps to them; and whoever waits for credit is told.
    #[test]
    fn credit_is_kept_in_both_directions(steps in prop::collection::vec(step(), 1..200)) {
        let mut said = Credit { buf_alloc: 500, fwd_cnt: 0 };
        let mut connection = established(said);
        // The guest's view.
        let (mut guest_sent, mut host_credit) = (0u32, Credit { buf_alloc: WINDOW, fwd_cnt: 0 });
        let (mut guest_received, mut guest_took) = (0u32, 0u32);
        for step in steps {
            match step {
                Step::GuestSends(len) => {
                    let free = host_credit.buf_alloc - guest_sent.wrapping_sub(host_credit.fwd_cnt);
                    let len = len.min(free);
                    prop_assert_eq!(connection.on_data(len), Ok(()));
                    guest_sent += len;
                    prop_assert!(connection.unforwarded() <= WINDOW);
                }
                Step::HostTakes(len) => {
                    connection.forward(len.min(connection.unforwarded()));
                }
                Step::HostSends(len) => {
                    let len = len.min(connection.sendable());
                    if len > 0 {
                        connection.on_sent(len);
                        host_credit = connection.announce();
                        guest_received += len;
                        prop_assert!(guest_received - said.fwd_cnt <= said.buf_alloc);
                    } else if connection.lacks_credit() {
                        connection.request_credit();
                        prop_assert!(!connection.lacks_credit());
                    }
                }
                Step::GuestTakes(len) => {
                    guest_took += len.min(guest_received - guest_took);
                    said.fwd_cnt = guest_took;
                    prop_assert_eq!(connection.on_credit(said), Ok(()));
                }
                Step::GuestResizes(buf_alloc) => {
                    said.buf_alloc = buf_alloc;
                    prop_assert_eq!(connection.on_credit(said), Ok(()));
                }
                Step::GuestSaysOldCredit => {
                    let old = Credit { fwd_cnt: guest_took.saturating_sub(1), ..said };
                    prop_assert_eq!(connection.on_credit(old), Ok(()));
                }
            }
            while let Some(control) = connection.next_control() {
                prop_assert!(matches!(control.op, Op::CreditUpdate | Op::CreditRequest));
                host_credit = connection.announce();
            }
            let guest_free = host_credit.buf_alloc - guest_sent.wrapping_sub(host_credit.fwd_cnt);
            prop_assert!(guest_free > 0 || connection.unforwarded() > 0, "guest waits for nothing");
        }
    }

    /// One byte beyond the window is too much, wherever the counters stand.
    #[test]
    fn data_beyond_the_window_is_a_violation(parts in prop::collection::vec(0..WINDOW, 0..20), over in 1u32..) {
        let mut connection = established(Credit::default());
        for part in parts {
            connection.on_data(part).unwrap();
            connection.forward(part);
        }
        connection.on_data(WINDOW / 2).unwrap();
        let len = (WINDOW - WINDOW / 2).saturating_add(over);
        prop_assert_eq!(connection.on_data(len), Err(Violation::BeyondCredit(len)));
    }

    /// Acknowledging more than was sent is forged.
    #[test]
    fn acknowledging_unsent_bytes_is_a_violation(sent in 0u32..100_000, over in 1u32..1 << 30) {
        let mut connection = established(Credit { buf_alloc: u32::MAX, fwd_cnt: 0 });
        connection.on_sent(sent);
        let forged = Credit { buf_alloc: 1, fwd_cnt: sent + over };
        prop_assert_eq!(connection.on_credit(forged), Err(Violation::AcknowledgedUnsent(sent + over)));
    }
}

#[test]
fn counters_go_on_past_four_gibibytes() {
    let mut connection = established(Credit {
        buf_alloc: 1 << 30,
        fwd_cnt: 0,
    });
    for round in 1..=9u32 {
        connection.on_sent(1 << 29);
        let fwd_cnt = round.wrapping_mul(1 << 29);
        assert_eq!(
            connection.on_credit(Credit {
                buf_alloc: 1 << 30,
                fwd_cnt
            }),
            Ok(())
        );
        assert_eq!(connection.sendable(), 1 << 30);
    }
}

#[test]
fn connecting_connection_sends_only_its_request_and_takes_only_an_answer() {
    let mut connection = Connection::request(WINDOW);
    assert_eq!(
        connection.on_response(),
        Err(Violation::OutOfTurn),
        "an answer before the question"
    );
    assert_eq!(
        connection.next_control().map(|control| control.op),
        Some(Op::Request)
    );
    assert_eq!(connection.sendable(), 0);
    assert!(!connection.lacks_credit());
    assert_eq!(connection.on_data(1), Err(Violation::OutOfTurn));
    assert_eq!(connection.on_shutdown(SHUTDOWN_BOTH), Err(Violation::OutOfTurn));
    assert_eq!(connection.on_response(), Ok(()));
    assert_eq!(connection.on_response(), Err(Violation::OutOfTurn));
}

#[test]
fn reset_waits_until_the_last_byte_was_handed_on() {
    let mut connection = established(Credit::default());
    connection.on_data(10).unwrap();
    connection.on_shutdown(SHUTDOWN_BOTH).unwrap();
    let control = connection.next_control().unwrap();
    assert_eq!((control.op, control.flags), (Op::Shutdown, SHUTDOWN_SEND));
    connection.forward(9);
    assert_eq!(connection.next_control(), None);
    connection.forward(1);
    assert_eq!(
        connection.next_control().map(|control| control.op),
        Some(Op::Reset)
    );
}

#[test]
fn credit_is_asked_for_before_it_is_gone_and_not_over_and_over() {
    let said = |fwd_cnt| Credit {
        buf_alloc: 1000,
        fwd_cnt,
    };
    let mut connection = established(said(0));
    let mut asked_after = |answer: Option<u32>, len| {
        if let Some(fwd_cnt) = answer {
            connection.on_credit(said(fwd_cnt)).unwrap();
        }
        connection.on_sent(len);
        connection.next_control().map(|control| control.op) == Some(Op::CreditRequest)
    };
    assert!(!asked_after(None, 500), "half of the buffer is free");
    assert!(asked_after(None, 100));
    assert!(!asked_after(None, 50), "the answer is still to come");
    assert!(!asked_after(Some(0), 100), "it was asked less than a quarter ago");
    assert!(asked_after(Some(0), 100));
    assert!(!asked_after(Some(600), 200), "more than half is free again");
}
