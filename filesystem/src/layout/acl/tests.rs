//! ACLs: their forms, their rules, and damaged bytes.

use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Acl, AclEntry, AclError, Guard, Inherited, Permissions, Subject, Tag};

fn acl(entries: &[(Tag, u16)]) -> Result<Acl, AclError> {
    Acl::new(entries.iter().map(|(tag, bits)| AclEntry { tag: *tag, permissions: Permissions::new(*bits).unwrap() }))
}

/// Owner 1: rwx, user 1000: rw, group 10: r, group 20: rw, mask rw, others x.
fn rich() -> Acl {
    let entries = [
        (Tag::Owner, 7),
        (Tag::User(1000), 6),
        (Tag::OwningGroup, 4),
        (Tag::Group(20), 6),
        (Tag::Mask, 6),
        (Tag::Other, 1),
    ];
    acl(&entries).unwrap()
}

#[test]
fn both_forms_are_read_as_written() {
    for acl in [rich(), Acl::of_mode(0o751)] {
        assert_eq!(Acl::from_disk(&acl.to_disk()), Ok(acl.clone()));
        assert_eq!(Acl::from_xattr(&acl.to_xattr()), Ok(Some(acl)));
    }
    assert_eq!((rich().to_disk().len(), rich().to_xattr().len()), (4 + 4 * 4 + 2 * 8, 4 + 6 * 8));
    assert_eq!(Acl::from_xattr(&2u32.to_le_bytes()), Ok(None));
    assert_eq!(Acl::from_disk(&1u32.to_le_bytes()), Err(AclError::Rules));
    assert_eq!(Acl::from_disk(&rich().to_xattr()), Err(AclError::Version));
    let disk = rich().to_disk();
    assert_eq!(Acl::from_disk(&disk[..disk.len() - 1]), Err(AclError::Length));
    assert_eq!(Acl::from_disk(&[&disk[..], &[3, 0, 0, 0]].concat()), Err(AclError::Unknown));
}

#[test]
fn lists_that_break_the_rules_are_refused() {
    use Tag::{Group, Mask, Other, Owner, OwningGroup, User};
    let wrong: [&[(Tag, u16)]; 9] = [
        &[(Owner, 7), (OwningGroup, 7)],
        &[(Owner, 7), (Owner, 7), (OwningGroup, 7), (Other, 7)],
        &[(OwningGroup, 7), (Owner, 7), (Other, 7)],
        &[(Owner, 7), (User(1), 7), (OwningGroup, 7), (Other, 7)],
        &[(Owner, 7), (OwningGroup, 7), (Group(1), 7), (Other, 7)],
        &[(Owner, 7), (OwningGroup, 7), (User(1), 7), (Mask, 7), (Other, 7)],
        &[(Owner, 7), (OwningGroup, 7), (Mask, 7), (Mask, 7), (Other, 7)],
        &[(Owner, 7), (User(u32::MAX), 7), (OwningGroup, 7), (Mask, 7), (Other, 7)],
        &[(Owner, 7), (OwningGroup, 7), (Other, 7), (Mask, 7)],
    ];
    for entries in wrong {
        assert_eq!(acl(entries), Err(AclError::Rules), "{entries:?}");
    }
    assert!(acl(&[(Owner, 7), (OwningGroup, 7), (Mask, 7), (Other, 7)]).unwrap().is_extended());
}

#[test]
fn a_mode_and_its_acl_say_the_same() {
    for mode in 0..0o1000 {
        let acl = Acl::of_mode(mode);
        assert!(!acl.is_extended());
        assert_eq!(acl.mode(0o102000), 0o102000 | mode);
        assert_eq!(rich().with_mode(mode).mode(0), mode);
    }
    assert_eq!(rich().mode(0o100644), 0o100761);
    let changed = rich().with_mode(0o640);
    let bits: Vec<u16> = changed.entries().iter().map(|entry| entry.permissions.bits()).collect();
    assert_eq!(bits, [6, 6, 4, 6, 4, 0], "chmod changes the mask and leaves the groups");
}

#[test]
fn inheritance_takes_the_mode_and_not_the_umask() {
    let file = Inherited::new(Some(&rich()), 0o100666, 0o077, false);
    let bits: Vec<u16> = file.access.unwrap().entries().iter().map(|entry| entry.permissions.bits()).collect();
    assert_eq!((file.mode, bits, file.default), (0o100660, vec![6, 6, 4, 6, 6, 0], None));
    let directory = Inherited::new(Some(&Acl::of_mode(0o750)), 0o040777, 0o022, true);
    let expected = Inherited { mode: 0o040750, access: None, default: Some(Acl::of_mode(0o750)) };
    assert_eq!(directory, expected);
    let plain = Inherited::new(None, 0o102666, 0o022, false);
    assert_eq!(plain, Inherited { mode: 0o102644, access: None, default: None });
}

#[test]
fn the_first_entry_that_applies_decides() {
    let rich = rich();
    let guard = Guard { owner: 1, group: 10, mode: 0o761, acl: Some(&rich) };
    let table: [(u32, &[u32], u16); 8] = [
        (1, &[20], 7),
        (1000, &[], 6),
        (1000, &[99], 6),
        (5, &[10], 4),
        (5, &[20], 6),
        (5, &[10, 20], 6),
        (5, &[], 1),
        (5, &[30], 1),
    ];
    for (user, groups, granted) in table {
        let who = Subject { user, group: 7, groups };
        for wanted in 0..8 {
            let permitted = guard.permits(who, Permissions::new(wanted).unwrap());
            assert_eq!(permitted, wanted & granted == wanted, "{user} {groups:?} wants {wanted}");
        }
    }
    let primary = Subject { user: 5, group: 20, groups: &[] };
    assert!(guard.permits(primary, Permissions::new(6).unwrap()));
    let without = Guard { acl: None, ..guard };
    assert!(without.permits(Subject { user: 5, group: 10, groups: &[] }, Permissions::new(6).unwrap()));
}

#[test]
fn damaged_bytes_never_panic() {
    let seed = 0xAC1;
    println!("seed {seed:#x}");
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    for _ in 0..50_000 {
        let mut disk = rich().to_disk();
        let bit = random.random_range(0..disk.len() * 8);
        disk[bit / 8] ^= 1 << (bit % 8);
        let _ = Acl::from_disk(&disk);
        disk.truncate(random.random_range(0..disk.len()));
        let _ = Acl::from_disk(&disk);
        random.fill_bytes(disk.get_mut(4..).unwrap_or(&mut []));
        let _ = (Acl::from_disk(&disk), Acl::from_xattr(&disk));
    }
}
