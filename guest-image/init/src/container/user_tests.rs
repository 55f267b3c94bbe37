//! Users and groups resolve as container engines do, whatever the files hold.

use proptest::prelude::*;

use super::*;

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
    broken line\n\
    ::1:1::/nobody:\n\
    www:x:33:34:web:/var/www:/bin/sh\n\
    bare:x:50:51\n\
    huge:x:4294967295:1::/:\n\
    1000:x:7:8::/odd:\n";
const GROUP: &str = "root:x:0:root\nweb:x:34:\nlogs:x:40:bare,www\ndocker:x:41:www\nbad:x:y:www\n";

fn identity(uid: u32, gid: u32, groups: &[u32], home: &str) -> Result<Identity, UserError> {
    Ok(Identity {
        uid,
        gid,
        groups: groups.to_vec(),
        home: home.to_owned(),
    })
}

#[test]
fn names_take_group_supplementary_groups_and_home_from_the_files() {
    assert_eq!(
        resolve("www", PASSWD, GROUP),
        identity(33, 34, &[34, 40, 41], "/var/www")
    );
    assert_eq!(
        resolve("33", PASSWD, GROUP),
        identity(33, 34, &[34, 40, 41], "/var/www")
    );
    assert_eq!(resolve("bare", PASSWD, GROUP), identity(50, 51, &[51, 40], "/"));
}

#[test]
fn nothing_is_root_even_without_files() {
    assert_eq!(resolve("", PASSWD, GROUP), identity(0, 0, &[0], "/root"));
    assert_eq!(resolve("", "", ""), identity(0, 0, &[0], "/"));
}

#[test]
fn a_given_group_replaces_all_others() {
    assert_eq!(
        resolve("www:logs", PASSWD, GROUP),
        identity(33, 40, &[40], "/var/www")
    );
    assert_eq!(
        resolve("www:999", PASSWD, GROUP),
        identity(33, 999, &[999], "/var/www")
    );
    assert_eq!(resolve(":web", PASSWD, GROUP), identity(0, 34, &[34], "/root"));
}

#[test]
fn numbers_need_no_entry_and_a_numeric_name_wins() {
    assert_eq!(
        resolve("2000:3000", PASSWD, GROUP),
        identity(2000, 3000, &[3000], "/")
    );
    assert_eq!(resolve("2000", PASSWD, GROUP), identity(2000, 0, &[0], "/"));
    assert_eq!(resolve("1000", PASSWD, GROUP), identity(7, 8, &[8], "/odd"));
}

#[test]
fn unknown_names_and_numbers_out_of_range_are_refused() {
    assert_eq!(
        resolve("nobody", PASSWD, GROUP),
        Err(UserError::NoUser("nobody".into()))
    );
    assert_eq!(
        resolve("www:nogroup", PASSWD, GROUP),
        Err(UserError::NoGroup("nogroup".into()))
    );
    assert_eq!(
        resolve("huge", PASSWD, GROUP),
        Err(UserError::NoUser("huge".into()))
    );
    for number in ["2147483648", "4294967296", "-1", "99999999999999999999"] {
        assert_eq!(
            resolve(number, PASSWD, GROUP),
            Err(UserError::IdRange(number.into()))
        );
    }
}

#[test]
fn more_groups_than_the_kernel_takes_are_refused() {
    let group: String = (0..=MAX_GROUPS)
        .map(|gid| format!("g{gid}:x:{gid}:www\n"))
        .collect();
    assert_eq!(
        resolve("www", PASSWD, &group),
        Err(UserError::TooManyGroups { user: "www".into() })
    );
}

proptest! {
    #[test]
    fn garbage_never_panics_and_ids_stay_in_range(
        spec in "[a-c0-9:-]{0,6}", passwd in "[a-c0-9:\n]{0,80}", group in "[a-c0-9:,\n]{0,80}",
    ) {
        if let Ok(identity) = resolve(&spec, &passwd, &group) {
            prop_assert!(identity.uid <= MAX_ID && identity.gid <= MAX_ID);
            prop_assert!(identity.groups.iter().all(|gid| *gid <= MAX_ID));
        }
    }
}
