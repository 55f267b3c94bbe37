//! Rule sets as values, and the operations that turn one into another in a single transaction.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use super::{
    message::Writer,
    rule::{self, Rule},
};

/// Elements in one message: an attribute's length has 16 bits, and an element takes at most 44 bytes.
const ELEMENTS_PER_MESSAGE: usize = 1024;

/// What a host or a namespace filters: tables in the order in which they are made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::network) struct Ruleset {
    pub(in crate::network) tables: Vec<Table>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::network) struct Table {
    pub(in crate::network) family: Family,
    pub(in crate::network) name: String,
    pub(in crate::network) sets: BTreeMap<String, Set>,
    /// A chain comes after those that jump to it are told of, never before: all chains are made before any rule.
    pub(in crate::network) chains: Vec<Chain>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::network) enum Family {
    Ipv4 = 2,
    Bridge = 7,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::network) struct Set {
    pub(in crate::network) key_type: KeyType,
    pub(in crate::network) elements: BTreeSet<Key>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::network) enum KeyType {
    Interface,
    Address,
    /// Interface, MAC address and IPv4 address.
    Sender,
}

/// An element of a set, as it lies in registers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::network) struct Key(Vec<u8>);

impl Key {
    pub(in crate::network) fn interface(name: &str) -> Self {
        Self(rule::interface(name).to_vec())
    }

    pub(in crate::network) fn address(address: Ipv4Addr) -> Self {
        Self(address.octets().to_vec())
    }

    pub(in crate::network) fn sender(interface: &str, mac: [u8; 6], address: Ipv4Addr) -> Self {
        Self(rule::sender(interface, mac, address))
    }
}

impl KeyType {
    /// The length of a key, and its type as `nft` numbers types: only for `nft list` to print it readably.
    fn len_and_type(self) -> (u32, u32) {
        const ADDRESS: u32 = 7;
        const MAC: u32 = 9;
        const INTERFACE: u32 = 41;
        match self {
            Self::Interface => (16, INTERFACE),
            Self::Address => (4, ADDRESS),
            Self::Sender => (28, (INTERFACE << 12) | (MAC << 6) | ADDRESS),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::network) struct Chain {
    pub(in crate::network) name: String,
    /// None for a chain that is only jumped to.
    pub(in crate::network) hook: Option<Hook>,
    pub(in crate::network) rules: Vec<Rule>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::network) struct Hook {
    pub(in crate::network) point: HookPoint,
    pub(in crate::network) priority: i32,
    pub(in crate::network) nat: bool,
    /// Whether what no rule decides is dropped.
    pub(in crate::network) drop: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::network) enum HookPoint {
    Prerouting = 0,
    Input = 1,
    Forward = 2,
    Postrouting = 4,
}

/// One message of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::network) enum Operation<'a> {
    AddTable(Family, &'a str),
    DeleteTable(Family, &'a str),
    AddSet {
        table: &'a Table,
        name: &'a str,
        id: u32,
        key_type: KeyType,
    },
    AddElements {
        table: &'a Table,
        set: &'a str,
        elements: Vec<&'a Key>,
    },
    DeleteElements {
        table: &'a Table,
        set: &'a str,
        elements: Vec<&'a Key>,
    },
    AddChain {
        table: &'a Table,
        chain: &'a Chain,
    },
    AddRule {
        table: &'a Table,
        chain: &'a str,
        rule: &'a Rule,
    },
}

/// What turns `old` into `new`; all of `new` from nothing if what is there is not known. Empty if nothing changes.
///
/// A change of set elements alone, which is what every attached or detached interface makes, touches only those.
pub(in crate::network) fn transaction<'a>(old: Option<&'a Ruleset>, new: &'a Ruleset) -> Vec<Operation<'a>> {
    match old {
        Some(old) if same_but_for_elements(old, new) => old
            .tables
            .iter()
            .zip(&new.tables)
            .flat_map(|(old, new)| element_changes(old, new))
            .collect(),
        _ => new.tables.iter().flat_map(replacement).collect(),
    }
}

/// What removes the tables of a rule set, there or not.
pub(in crate::network) fn removal(ruleset: &Ruleset) -> Vec<Operation<'_>> {
    ruleset.tables.iter().flat_map(clearing).collect()
}

fn same_but_for_elements(old: &Ruleset, new: &Ruleset) -> bool {
    let same_sets = |a: &Table, b: &Table| {
        a.sets.len() == b.sets.len()
            && a.sets
                .iter()
                .zip(&b.sets)
                .all(|((x, s), (y, t))| x == y && s.key_type == t.key_type)
    };
    old.tables.len() == new.tables.len()
        && old
            .tables
            .iter()
            .zip(&new.tables)
            .all(|(a, b)| a.family == b.family && a.name == b.name && a.chains == b.chains && same_sets(a, b))
}

fn element_changes<'a>(old: &'a Table, new: &'a Table) -> Vec<Operation<'a>> {
    let mut operations = Vec::new();
    for ((name, before), after) in old.sets.iter().zip(new.sets.values()) {
        let gone: Vec<_> = before.elements.difference(&after.elements).collect();
        let come: Vec<_> = after.elements.difference(&before.elements).collect();
        operations.extend(pieces(&gone).map(|elements| Operation::DeleteElements {
            table: new,
            set: name,
            elements,
        }));
        operations.extend(pieces(&come).map(|elements| Operation::AddElements {
            table: new,
            set: name,
            elements,
        }));
    }
    operations
}

fn pieces<'a, 'b>(elements: &'b [&'a Key]) -> impl Iterator<Item = Vec<&'a Key>> + use<'a, 'b> {
    elements.chunks(ELEMENTS_PER_MESSAGE).map(<[&Key]>::to_vec)
}

/// Deleting a table that is not there is an error; adding one that is there is none.
fn clearing(table: &Table) -> [Operation<'_>; 2] {
    [
        Operation::AddTable(table.family, &table.name),
        Operation::DeleteTable(table.family, &table.name),
    ]
}

fn replacement(table: &Table) -> Vec<Operation<'_>> {
    let mut operations = clearing(table).to_vec();
    operations.push(Operation::AddTable(table.family, &table.name));
    for ((name, set), id) in table.sets.iter().zip(1..) {
        operations.push(Operation::AddSet {
            table,
            name,
            id,
            key_type: set.key_type,
        });
        let elements: Vec<_> = set.elements.iter().collect();
        operations.extend(pieces(&elements).map(|elements| Operation::AddElements {
            table,
            set: name,
            elements,
        }));
    }
    operations.extend(
        table
            .chains
            .iter()
            .map(|chain| Operation::AddChain { table, chain }),
    );
    for chain in &table.chains {
        operations.extend(chain.rules.iter().map(|rule| Operation::AddRule {
            table,
            chain: &chain.name,
            rule,
        }));
    }
    operations
}

impl Operation<'_> {
    /// For a person, in the message of an error.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::AddTable(family, name) => format!("add table {family:?} {name}"),
            Self::DeleteTable(family, name) => format!("delete table {family:?} {name}"),
            Self::AddSet { table, name, .. } => {
                format!("add set {name} to table {:?} {}", table.family, table.name)
            }
            Self::AddElements { set, elements, .. } => {
                format!("add {} elements to set {set}", elements.len())
            }
            Self::DeleteElements { set, elements, .. } => {
                format!("delete {} elements of set {set}", elements.len())
            }
            Self::AddChain { table, chain } => {
                format!(
                    "add chain {} to table {:?} {}",
                    chain.name, table.family, table.name
                )
            }
            Self::AddRule { table, chain, .. } => {
                format!(
                    "add a rule to chain {chain} of table {:?} {}",
                    table.family, table.name
                )
            }
        }
    }

    pub(super) fn write(&self, writer: &mut Writer, sequence: u32, acknowledge: bool) {
        const SUBSYSTEM: u16 = 10 << 8;
        const REQUEST: u16 = 0x1;
        const ACKNOWLEDGE: u16 = 0x4;
        const CREATE: u16 = 0x400;
        const APPEND: u16 = 0x800;
        let (kind, flags, family) = match self {
            Self::AddTable(family, _) => (0, CREATE, *family),
            Self::DeleteTable(family, _) => (2, 0, *family),
            Self::AddSet { table, .. } => (9, CREATE, table.family),
            Self::AddElements { table, .. } => (12, CREATE, table.family),
            Self::DeleteElements { table, .. } => (14, 0, table.family),
            Self::AddChain { table, .. } => (3, CREATE, table.family),
            Self::AddRule { table, .. } => (6, CREATE | APPEND, table.family),
        };
        let flags = REQUEST | flags | if acknowledge { ACKNOWLEDGE } else { 0 };
        writer.message(SUBSYSTEM | kind, flags, sequence, family as u8, 0, |writer| {
            self.write_body(writer)
        });
    }

    fn write_body(&self, writer: &mut Writer) {
        const LIST_ELEMENT: u16 = 1;
        match self {
            Self::AddTable(_, name) | Self::DeleteTable(_, name) => writer.text(1, name),
            Self::AddSet {
                table,
                name,
                id,
                key_type,
            } => {
                let (len, kind) = key_type.len_and_type();
                writer.text(1, &table.name);
                writer.text(2, name);
                writer.number(3, 0);
                writer.number(4, kind);
                writer.number(5, len);
                writer.number(10, *id);
            }
            Self::AddElements { table, set, elements } | Self::DeleteElements { table, set, elements } => {
                const DATA_VALUE: u16 = 1;
                writer.text(1, &table.name);
                writer.text(2, set);
                writer.nested(3, |writer| {
                    for Key(key) in elements {
                        writer.nested(LIST_ELEMENT, |writer| {
                            writer.nested(1, |writer| writer.bytes(DATA_VALUE, key));
                        });
                    }
                });
            }
            Self::AddChain { table, chain } => write_chain(writer, &table.name, chain),
            Self::AddRule { table, chain, rule } => {
                writer.text(1, &table.name);
                writer.text(2, chain);
                writer.nested(4, |writer| {
                    for expr in rule.exprs() {
                        writer.nested(LIST_ELEMENT, |writer| expr.write(writer));
                    }
                });
            }
        }
    }
}

fn write_chain(writer: &mut Writer, table: &str, chain: &Chain) {
    writer.text(1, table);
    writer.text(3, &chain.name);
    let Some(hook) = chain.hook else { return };
    writer.nested(4, |writer| {
        writer.number(1, hook.point as u32);
        writer.number(2, hook.priority.cast_unsigned());
    });
    writer.number(5, u32::from(!hook.drop));
    writer.text(7, if hook.nat { "nat" } else { "filter" });
}
