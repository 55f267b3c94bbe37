//! Rule sets against a model of the kernel's tables, and messages against the bytes that the kernel wants.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use proptest::prelude::*;

use super::{
    message::{Answer, Writer, answers},
    ruleset::*,
    *,
};

/// What the kernel would hold: tables with the elements of their sets and the rules of their chains.
type Model = BTreeMap<String, (BTreeMap<String, BTreeSet<Key>>, BTreeMap<String, Vec<Rule>>)>;

/// Does what the kernel does, and is as strict about what must or must not be there.
fn apply(model: &mut Model, operations: &[Operation<'_>]) {
    for operation in operations {
        match operation {
            Operation::AddTable(_, name) => {
                model.entry((*name).to_owned()).or_default();
            }
            Operation::DeleteTable(_, name) => assert!(model.remove(*name).is_some()),
            Operation::AddSet { table, name, .. } => {
                let sets = &mut model.get_mut(&table.name).unwrap().0;
                assert!(sets.insert((*name).to_owned(), BTreeSet::new()).is_none());
            }
            Operation::AddElements { table, set, elements } => {
                assert!(!elements.is_empty() && elements.len() <= 1024);
                let held = model.get_mut(&table.name).unwrap().0.get_mut(*set).unwrap();
                held.extend(elements.iter().map(|key| (*key).clone()));
            }
            Operation::DeleteElements { table, set, elements } => {
                let held = model.get_mut(&table.name).unwrap().0.get_mut(*set).unwrap();
                assert!(elements.iter().all(|key| held.remove(key)));
            }
            Operation::AddChain { table, chain } => {
                let chains = &mut model.get_mut(&table.name).unwrap().1;
                assert!(chains.insert(chain.name.clone(), Vec::new()).is_none());
            }
            Operation::AddRule { table, chain, rule } => {
                model
                    .get_mut(&table.name)
                    .unwrap()
                    .1
                    .get_mut(*chain)
                    .unwrap()
                    .push((*rule).clone());
            }
        }
    }
}

fn model_of(ruleset: &Ruleset) -> Model {
    let table = |table: &Table| {
        let sets = table
            .sets
            .iter()
            .map(|(name, set)| (name.clone(), set.elements.clone()));
        let chains = table
            .chains
            .iter()
            .map(|chain| (chain.name.clone(), chain.rules.clone()));
        (table.name.clone(), (sets.collect(), chains.collect()))
    };
    ruleset.tables.iter().map(table).collect()
}

fn ruleset() -> impl Strategy<Value = Ruleset> {
    let addresses = prop::collection::btree_set(0_u32..40, 0..20);
    let sets = prop::collection::vec(addresses, 1..3);
    (sets, prop::collection::vec(1_u16..4, 0..3)).prop_map(|(sets, ports)| {
        let set = |addresses: BTreeSet<u32>| Set {
            key_type: KeyType::Address,
            elements: addresses
                .into_iter()
                .map(|address| Key::address(Ipv4Addr::from(address)))
                .collect(),
        };
        let rules = ports
            .into_iter()
            .map(|port| Rule::new().source_port(port).accept())
            .collect();
        Ruleset {
            tables: vec![Table {
                family: Family::Ipv4,
                name: "table".to_owned(),
                sets: sets
                    .into_iter()
                    .enumerate()
                    .map(|(n, addresses)| (format!("set{n}"), set(addresses)))
                    .collect(),
                chains: vec![Chain {
                    name: "chain".to_owned(),
                    hook: None,
                    rules,
                }],
            }],
        }
    })
}

proptest! {
    #[test]
    fn a_transaction_turns_the_old_rules_into_the_new(old in ruleset(), new in ruleset(), known: bool) {
        let mut kernel = model_of(&old);
        apply(&mut kernel, &transaction(known.then_some(&old), &new));
        prop_assert_eq!(&kernel, &model_of(&new));
        prop_assert!(transaction(Some(&new), &new).is_empty());
        apply(&mut kernel, &removal(&new));
        prop_assert!(kernel.is_empty());
        apply(&mut kernel, &removal(&new));
        prop_assert!(kernel.is_empty());
    }

    #[test]
    fn any_datagram_can_be_read(datagram in prop::collection::vec(any::<u8>(), 0..200)) {
        answers(&datagram);
    }
}

#[test]
fn a_long_set_goes_in_pieces_that_fit_their_messages() {
    let elements: BTreeSet<_> = (0..3_000)
        .map(|n| Key::sender("bt0123456789", [2; 6], Ipv4Addr::from(n)))
        .collect();
    let set = Set {
        key_type: KeyType::Sender,
        elements,
    };
    let sets = BTreeMap::from([("set".to_owned(), set)]);
    let table = Table {
        family: Family::Bridge,
        name: "table".to_owned(),
        sets,
        chains: Vec::new(),
    };
    let ruleset = Ruleset { tables: vec![table] };
    let mut kernel = Model::new();
    let operations = transaction(None, &ruleset);
    apply(&mut kernel, &operations);
    assert_eq!(kernel, model_of(&ruleset));
    for operation in operations {
        let mut writer = Writer::default();
        operation.write(&mut writer, 1, false);
        assert!(
            writer.finish().len() < usize::from(u16::MAX),
            "{} does not fit",
            operation.describe()
        );
    }
}

#[test]
fn a_message_is_laid_out_as_the_kernel_reads_it() {
    let mut writer = Writer::default();
    writer.message(0x0a06, 0x0c01, 7, 2, 0, |writer| {
        writer.text(1, "berth");
        writer.nested(4, |writer| writer.number(2, 0x0102_0304));
    });
    let mut expected = Vec::new();
    expected.extend_from_slice(&44_u32.to_ne_bytes());
    expected.extend_from_slice(&0x0a06_u16.to_ne_bytes());
    expected.extend_from_slice(&0x0c01_u16.to_ne_bytes());
    expected.extend_from_slice(&7_u32.to_ne_bytes());
    expected.extend_from_slice(&[0, 0, 0, 0, 2, 0, 0, 0]);
    expected.extend_from_slice(&10_u16.to_ne_bytes());
    expected.extend_from_slice(&1_u16.to_ne_bytes());
    expected.extend_from_slice(b"berth\0\0\0");
    expected.extend_from_slice(&12_u16.to_ne_bytes());
    expected.extend_from_slice(&0x8004_u16.to_ne_bytes());
    expected.extend_from_slice(&8_u16.to_ne_bytes());
    expected.extend_from_slice(&2_u16.to_ne_bytes());
    expected.extend_from_slice(&[1, 2, 3, 4]);
    assert_eq!(writer.finish(), expected);
}

#[test]
fn answers_tell_which_message_failed_and_why() {
    let mut datagram = Vec::new();
    for (kind, sequence, code) in [(2_u16, 5_u32, 0_i32), (3, 6, -1), (2, 7, -17)] {
        datagram.extend_from_slice(&36_u32.to_ne_bytes());
        datagram.extend_from_slice(&kind.to_ne_bytes());
        datagram.extend_from_slice(&[0; 2]);
        datagram.extend_from_slice(&sequence.to_ne_bytes());
        datagram.extend_from_slice(&[0; 4]);
        datagram.extend_from_slice(&code.to_ne_bytes());
        datagram.extend_from_slice(&[0; 16]);
    }
    let expected = [
        Answer {
            sequence: 5,
            errno: 0,
        },
        Answer {
            sequence: 7,
            errno: 17,
        },
    ];
    assert_eq!(answers(&datagram), expected);
}
