//! A schema of another crate: records with an enum over them.
#![expect(clippy::unwrap_used, reason = "tests may panic")]

use millrace_protocol::wire::DecodeErrorKind;
use millrace_protocol::{Decoder, Encoder, Message as _};

mod hand_written {
    #![allow(clippy::all, unreachable_pub, dead_code, reason = "generated code")]
    include!(concat!(env!("OUT_DIR"), "/hand_written.rs"));
}

use hand_written::{AnyRecord, RemoveTopicRecord, TopicRecord, TopicState, topic_record::Config};

fn topic() -> TopicRecord {
    TopicRecord {
        name: "orders".into(),
        configs: vec![Config { key: "retention.ms".into(), value: None, ..Default::default() }],
        owner: Some("team".into()),
        ..Default::default()
    }
}

#[test]
fn records_are_told_apart_by_their_id() {
    let records: [AnyRecord; 2] = [topic().into(), RemoveTopicRecord::default().into()];
    let mut e = Encoder::new();
    for record in &records {
        record.encode(&mut e).unwrap();
    }
    let bytes = e.into_bytes();
    assert_eq!(bytes[..2], [2, 1], "id and version come first");
    let mut d = Decoder::new(bytes);
    assert_eq!([AnyRecord::decode(&mut d).unwrap(), AnyRecord::decode(&mut d).unwrap()], records);
    assert_eq!(d.remaining(), 0);
    assert_eq!((records[0].id(), records[0].name()), (2, "TopicRecord"));
}

#[test]
fn an_older_version_is_still_read() {
    let mut e = Encoder::new();
    e.unsigned_varint(2);
    e.unsigned_varint(0);
    TopicRecord { owner: None, ..topic() }.encode(&mut e, 0).unwrap();
    let record = AnyRecord::decode(&mut Decoder::new(e.into_bytes())).unwrap();
    assert_eq!(record, AnyRecord::Topic(TopicRecord { owner: None, ..topic() }));
}

#[test]
fn unknown_ids_and_versions_are_refused() {
    let decode = |bytes: &'static [u8]| AnyRecord::decode(&mut Decoder::new(bytes.into())).unwrap_err().kind;
    assert_eq!(decode(&[9, 0]), DecodeErrorKind::UnknownRecord(9));
    let version = DecodeErrorKind::UnsupportedVersion { message: "TopicRecord", version: 2 };
    assert_eq!(decode(&[2, 2]), version);
    assert!(matches!(decode(&[2]), DecodeErrorKind::Truncated { .. }));
}

#[test]
fn defaults_of_every_type_are_the_schemas() {
    let state = TopicState::default();
    assert_eq!((state.weight, state.bits), (0.5, u32::MAX));
}
