//! Each operation's arguments against bytes written by hand from the XDR of RFC 8881, 7862 and 8276 (RFC 5662, 7863).

use super::*;
use crate::client::arguments::{Claim, Creation};
use crate::v4::attributes::number as n;
use crate::v4::compound::{Compound, Step};
use crate::xdr::Decoder;

const STATEID: Stateid = Stateid { seqid: 7, other: *b"abcdefghijkl" };
/// It as hexadecimal.
const S: &str = "00000007 61626364 65666768 696a6b6c";
const SESSION: &str = "00010203 04050607 08090a0b 0c0d0e0f";

/// Bytes of a text in hexadecimal; `S` stands for the stateid, `N` for the session.
fn bytes(text: &str) -> Vec<u8> {
    let text = text.replace('S', S).replace('N', SESSION);
    let digits: Vec<u32> = text.chars().filter_map(|digit| digit.to_digit(16)).collect();
    digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
}

fn session() -> SessionId {
    SessionId::from_bytes(std::array::from_fn(|at| at as u8))
}

fn new() -> Request {
    Request::new(2)
}

fn check(table: Vec<(Request, &str)>) {
    for (request, expected) in table {
        let numbers: Vec<u32> = request.operations.iter().map(|(number, _)| *number).collect();
        let body = request.body.to_bytes();
        assert_eq!(body, bytes(expected), "operation {numbers:?}");
        // And the server reads it as just that operation, to its end.
        let mut out = Encoder::new();
        out.opaque(b"");
        out.u32(2);
        out.u32(numbers.len() as u32);
        out.encoded(&body);
        let mut decoder = Decoder::new(out.to_bytes());
        let compound = Compound::decode(&mut decoder).unwrap();
        assert_eq!(decoder.finish(), Ok(()), "operation {numbers:?}");
        let read: Vec<u32> = compound.steps.iter().map(Step::number).collect();
        assert_eq!(read, numbers);
        assert!(compound.steps.iter().all(|step| matches!(step, Step::Do(_))), "{compound:?}");
    }
}

#[test]
fn operations_on_names_and_handles() {
    let mode = AttributesToSet::mode(0o755);
    let mode_bytes = "00000002 00000000 00000002 00000004 000001ed";
    let handle = Handle(Bytes::from_static(b"handle"));
    check(vec![
        (new().access(0x1f), "00000003 0000001f"),
        (new().create(&NewKind::Directory, b"d", &mode), &format!("00000006 00000002 00000001 64000000 {mode_bytes}")),
        (
            new().create(&NewKind::Symlink(Bytes::from_static(b"to")), b"l", &AttributesToSet::default()),
            "00000006 00000005 00000002 746f0000 00000001 6c000000 00000000 00000000",
        ),
        (
            new().create(&NewKind::CharacterDevice(1, 3), b"null", &mode),
            &format!("00000006 00000004 00000001 00000003 00000004 6e756c6c {mode_bytes}"),
        ),
        (
            new().create(&NewKind::BlockDevice(8, 0), b"s", &mode),
            &format!("00000006 00000003 00000008 00000000 00000001 73000000 {mode_bytes}"),
        ),
        (new().create(&NewKind::Socket, b"s", &mode), &format!("00000006 00000006 00000001 73000000 {mode_bytes}")),
        (new().create(&NewKind::Fifo, b"s", &mode), &format!("00000006 00000007 00000001 73000000 {mode_bytes}")),
        // Bits 1 and 33.
        (new().getattr(Bitmap::of(&[n::TYPE, n::MODE])), "00000009 00000002 00000002 00000002"),
        (new().getfh(), "0000000a"),
        (new().link(b"name"), "0000000b 00000004 6e616d65"),
        (new().lookup(b"abcde"), "0000000f 00000005 61626364 65000000"),
        (new().lookupp(), "00000010"),
        (new().verify(&mode.to_raw()), &format!("00000025 {mode_bytes}")),
        (new().nverify(&mode.to_raw()), &format!("00000011 {mode_bytes}")),
        (new().putfh(&handle), "00000016 00000006 68616e64 6c650000"),
        (new().putpubfh(), "00000017"),
        (new().putrootfh(), "00000018"),
        (
            new().readdir(0x0102_0304_0506_0708, *b"verifier", 0x1000, Bitmap::of(&[n::TYPE])),
            "0000001a 01020304 05060708 76657269 66696572 00001000 00001000 00000001 00000002",
        ),
        (new().readlink(), "0000001b"),
        (new().remove(b"x"), "0000001c 00000001 78000000"),
        (new().rename(b"x", b"yy"), "0000001d 00000001 78000000 00000002 79790000"),
        (new().restorefh(), "0000001f"),
        (new().savefh(), "00000020"),
        (new().secinfo(b"x"), "00000021 00000001 78000000"),
        (new().secinfo_no_name(true), "00000034 00000001"),
        (new().setattr(STATEID, &mode), &format!("00000022 S {mode_bytes}")),
    ]);
}

#[test]
fn operations_on_data() {
    let data = Bytes::from_static(b"data!");
    check(vec![
        (new().commit(5, 6), "00000005 00000000 00000005 00000006"),
        (new().read(STATEID, 1 << 32, 9), "00000019 S 00000001 00000000 00000009"),
        (new().read_plus(STATEID, 1 << 32, 9), "00000044 S 00000001 00000000 00000009"),
        (
            new().write(STATEID, 2, Stable::File, data),
            "00000026 S 00000000 00000002 00000002 00000005 64617461 21000000",
        ),
        (new().allocate(STATEID, 2, 3), "0000003b S 00000000 00000002 00000000 00000003"),
        (new().deallocate(STATEID, 2, 3), "0000003e S 00000000 00000002 00000000 00000003"),
        (
            new().copy((STATEID, 1), (STATEID, 2), 3),
            "0000003c S S 00000000 00000001 00000000 00000002 00000000 00000003 00000000 00000001 00000000",
        ),
        (new().seek(STATEID, 4, true), "00000045 S 00000000 00000004 00000001"),
        (new().getxattr(b"a"), "00000048 00000001 61000000"),
        (new().setxattr(1, b"a", b"bc"), "00000049 00000001 00000001 61000000 00000002 62630000"),
        (new().listxattrs(3, 100), "0000004a 00000000 00000003 00000064"),
        (new().removexattr(b"a"), "0000004b 00000001 61000000"),
    ]);
}

fn open(creation: Creation, claim: Claim) -> Open {
    Open { access: 3, deny: 0, owner: Bytes::from_static(b"own"), creation, claim }
}

#[test]
fn every_way_to_open() {
    let name = Bytes::from_static(b"f");
    let mode = AttributesToSet::mode(0o600);
    let attributes = "00000002 00000000 00000002 00000004 00000180";
    let head = "00000012 00000000 00000003 00000000 00000000 00000000 00000003 6f776e00";
    let null = "00000000 00000001 66000000";
    let table = [
        (Creation::No, Claim::Null(name.clone()), format!("00000000 {null}")),
        (
            Creation::Unchecked(mode.clone()),
            Claim::Null(name.clone()),
            format!("00000001 00000000 {attributes} {null}"),
        ),
        (Creation::Guarded(mode.clone()), Claim::Null(name.clone()), format!("00000001 00000001 {attributes} {null}")),
        (
            Creation::Exclusive(*b"verifier"),
            Claim::Null(name.clone()),
            format!("00000001 00000002 76657269 66696572 {null}"),
        ),
        (
            Creation::ExclusiveWith(*b"verifier", mode),
            Claim::Null(name.clone()),
            format!("00000001 00000003 76657269 66696572 {attributes} {null}"),
        ),
        (Creation::No, Claim::Previous(1), "00000000 00000001 00000001".to_owned()),
        (
            Creation::No,
            Claim::DelegateCurrent(STATEID, name.clone()),
            "00000000 00000002 S 00000001 66000000".to_owned(),
        ),
        (Creation::No, Claim::DelegatePrevious(name), "00000000 00000003 00000001 66000000".to_owned()),
        (Creation::No, Claim::File, "00000000 00000004".to_owned()),
        (Creation::No, Claim::DelegateCurrentFile(STATEID), "00000000 00000005 S".to_owned()),
        (Creation::No, Claim::DelegatePreviousFile, "00000000 00000006".to_owned()),
    ];
    for (creation, claim, rest) in table {
        check(vec![(new().open(&open(creation, claim)), &format!("{head} {rest}"))]);
    }
}

#[test]
fn operations_on_states() {
    let range = LockRange { exclusive: true, offset: 1, length: u64::MAX };
    let shared = LockRange { exclusive: false, ..range };
    check(vec![
        (new().close(STATEID), "00000004 00000000 S"),
        (new().delegreturn(STATEID), "00000008 S"),
        (
            new().lock(range, true, false, &Locker::New(STATEID, Bytes::from_static(b"own"))),
            "0000000c 00000004 00000000 00000000 00000001 ffffffff ffffffff 00000001 00000000 S 00000000
             00000000 00000000 00000003 6f776e00",
        ),
        (
            new().lock(shared, false, true, &Locker::Known(STATEID)),
            "0000000c 00000001 00000001 00000000 00000001 ffffffff ffffffff 00000000 S 00000000",
        ),
        (
            new().lockt(range, b"own"),
            "0000000d 00000002 00000000 00000001 ffffffff ffffffff 00000000 00000000 00000003 6f776e00",
        ),
        (new().locku(range, STATEID), "0000000e 00000002 00000000 S 00000000 00000001 ffffffff ffffffff"),
        (new().open_downgrade(STATEID, 1, 0), "00000015 S 00000000 00000001 00000000"),
        (new().test_stateid(&[STATEID, STATEID]), "00000037 00000002 S S"),
        (new().free_stateid(STATEID), "0000002d S"),
    ]);
}

#[test]
fn operations_on_clients_and_sessions() {
    let credential = SysCredential { machine: Bytes::from_static(b"box"), user: 5, group: 6, groups: vec![7] };
    let sys = "40000000 00000001 00000001 00000000 00000003 626f7800 00000005 00000006 00000001 00000007";
    let fore = Channel {
        request_bytes_max: 0x10,
        reply_bytes_max: 0x20,
        cached_reply_bytes_max: 0x30,
        operations_max: 0x40,
        requests_max: 0x50,
    };
    let channel = "00000000 00000010 00000020 00000030 00000040 00000050 00000000";
    check(vec![
        (new().backchannel_ctl((0x4000_0000, &credential)), &format!("00000028 {sys}")),
        (new().bind_conn_to_session(session(), 7), "00000029 N 00000007 00000000"),
        (
            new().exchange_id(*b"verifier", b"own", 0x1_0001),
            "0000002a 76657269 66696572 00000003 6f776e00 00010001 00000000 00000000",
        ),
        (
            new().create_session(ClientId(9), 4, 3, (&fore, &fore), (0x4000_0000, &credential)),
            &format!("0000002b 00000000 00000009 00000004 00000003 {channel} {channel} {sys}"),
        ),
        (new().destroy_session(session()), "0000002c N"),
        (new().sequence(session(), 1, (2, 3), true), "00000035 N 00000001 00000002 00000003 00000001"),
        (new().destroy_clientid(ClientId(9)), "00000039 00000000 00000009"),
        (new().reclaim_complete(false), "0000003a 00000000"),
    ]);
}

#[test]
fn what_may_change_something_is_known() {
    let harmless = new().putrootfh().lookup(b"a").getfh().getattr(Bitmap::of(&[1])).read(STATEID, 0, 1);
    assert!(!harmless.is_changing());
    assert_eq!(harmless.operations(), 5);
    assert!(new().putrootfh().remove(b"a").getattr(Bitmap::of(&[1])).is_changing());
    assert!(
        !new().write(STATEID, 0, Stable::Unstable, Bytes::new()).is_changing(),
        "the same bytes at the same place, however often"
    );
}
