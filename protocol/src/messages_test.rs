//! What holds for every message in every version, and the rules of versions, defaults and tags one by one.
#![expect(clippy::unwrap_used, reason = "tests may panic")]

use bytes::Bytes;
use proptest::prelude::*;

use crate::arbitrary::{Arbitrary, Gen};
use crate::message::{Message, MessageVisitor};
use crate::messages::*;
use crate::wire::{DecodeErrorKind, Decoder, EncodeError, Encoder, RawTaggedField};

/// Runs a check on every message type in every version.
struct ForAll<F>(F);

trait Check {
    fn check<M: Message + Arbitrary>(&mut self, version: i16);
}

impl<F: Check> MessageVisitor for ForAll<F> {
    fn message<M: Message + Arbitrary>(&mut self) {
        for version in M::MIN_VERSION..=M::MAX_VERSION {
            self.0.check::<M>(version);
        }
    }
}

fn encode<M: Message>(message: &M, version: i16) -> Bytes {
    let mut e = Encoder::new();
    message
        .encode(&mut e, version)
        .unwrap_or_else(|error| panic!("{} v{version}: {error}\n{message:?}", M::NAME));
    e.into_bytes()
}

#[test]
fn the_visitor_sees_every_message() {
    struct Count(usize);
    impl MessageVisitor for Count {
        fn message<M: Message + Arbitrary>(&mut self) {
            self.0 += 1;
        }
    }
    let mut count = Count(0);
    visit_messages(&mut count);
    let data_and_headers = 6;
    assert_eq!(count.0, 2 * crate::ApiKey::ALL.len() + data_and_headers);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn every_message_round_trips_in_every_version(seed: u64) {
        struct RoundTrip(Gen);
        impl Check for RoundTrip {
            fn check<M: Message + Arbitrary>(&mut self, version: i16) {
                let message = M::arbitrary(&mut self.0, version);
                let bytes = encode(&message, version);
                let mut d = Decoder::new(bytes.clone());
                let decoded = M::decode(&mut d, version);
                assert_eq!(decoded.as_ref(), Ok(&message), "{} v{version}", M::NAME);
                assert_eq!(d.remaining(), 0, "{} v{version}", M::NAME);

                let mut segmented = Encoder::segmented();
                message.encode(&mut segmented, version).unwrap();
                assert_eq!(segmented.len(), bytes.len(), "{} v{version}", M::NAME);
                assert_eq!(segmented.into_bytes(), bytes, "{} v{version}", M::NAME);
            }
        }
        visit_messages(&mut ForAll(RoundTrip(Gen::new(seed))));
    }

    #[test]
    fn cut_off_and_damaged_messages_never_panic(seed: u64) {
        struct Damage(Gen);
        impl Check for Damage {
            fn check<M: Message + Arbitrary>(&mut self, version: i16) {
                let bytes = encode(&M::arbitrary(&mut self.0, version), version);
                let step = bytes.len() / 64 + 1;
                for end in (0..bytes.len()).step_by(step) {
                    let decoded = M::decode(&mut Decoder::new(bytes.slice(..end)), version);
                    assert!(decoded.is_err(), "{} v{version} cut off at {end}", M::NAME);
                }
                for _ in 0..4 {
                    let mut damaged = bytes.to_vec();
                    for _ in 0..=self.0.below(3) {
                        if let Some(at) = self.0.bits().checked_rem(damaged.len() as u64) {
                            damaged[at as usize] = self.0.value::<i8>(0).cast_unsigned();
                        }
                    }
                    let _ = M::decode(&mut Decoder::new(damaged.into()), version);
                }
            }
        }
        visit_messages(&mut ForAll(Damage(Gen::new(seed))));
    }
}

#[test]
fn defaults_can_be_sent_in_every_version() {
    struct Defaults;
    impl Check for Defaults {
        fn check<M: Message + Arbitrary>(&mut self, version: i16) {
            let bytes = encode(&M::default(), version);
            assert!(M::decode(&mut Decoder::new(bytes), version).is_ok(), "{} v{version}", M::NAME);
        }
    }
    visit_messages(&mut ForAll(Defaults));
}

#[test]
fn versions_that_do_not_exist_are_refused() {
    let mut d = Decoder::new(Bytes::from_static(&[0; 64]));
    let expected = DecodeErrorKind::UnsupportedVersion { message: "ProduceRequest", version: 14 };
    assert_eq!(ProduceRequest::decode(&mut d, 14).unwrap_err().kind, expected);
    let error = ProduceRequest::default().encode(&mut Encoder::new(), 2);
    assert_eq!(error, Err(EncodeError::UnsupportedVersion { message: "ProduceRequest", version: 2 }));
}

#[test]
fn a_small_frame_cannot_claim_a_large_array() {
    // Produce v9: no transactional id, acks, timeout, then topics: 0xffff_fffe of them.
    let body = Bytes::from_static(&[0, 0, 1, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, 0x0f]);
    assert_eq!(body.len(), 12);
    let error = ProduceRequest::decode(&mut Decoder::new(body), 9).unwrap_err();
    assert_eq!(error.kind, DecodeErrorKind::ArrayTooLong { len: 0xffff_fffe, left: 0 });

    // Metadata v0: topics, 0x7fff_ffff of them.
    let error =
        MetadataRequest::decode(&mut Decoder::new(Bytes::from_static(&[0x7f, 255, 255, 255, 0, 0])), 0);
    assert!(matches!(error.unwrap_err().kind, DecodeErrorKind::ArrayTooLong { .. }));
}

#[test]
fn many_tiny_elements_hit_the_memory_limit_instead_of_multiplying_the_frame() {
    // Metadata v0 with a million empty names: 2 bytes each, many times that when decoded.
    let mut body = vec![0x00, 0x0f, 0x42, 0x40];
    body.resize(4 + 2 * 1_000_000, 0);
    let body = Bytes::from(body);
    let error = MetadataRequest::decode(&mut Decoder::new(body.clone()), 0).unwrap_err();
    assert_eq!(error.kind, DecodeErrorKind::MemoryLimit);
    let mut roomy = Decoder::with_memory_limit(body, 1 << 30);
    assert_eq!(MetadataRequest::decode(&mut roomy, 0).unwrap().topics.unwrap().len(), 1_000_000);
}

#[test]
fn what_a_version_cannot_carry_is_refused_unless_it_may_be_ignored() {
    let request = InitProducerIdRequest { producer_id: 7, ..Default::default() };
    let error = request.encode(&mut Encoder::new(), 2);
    let field = "InitProducerIdRequest.producer_id";
    assert_eq!(error, Err(EncodeError::NotInVersion { field, version: 2 }));
    assert_eq!(error.unwrap_err().to_string(), format!("{field} is set, version 2 cannot carry it"));

    let request = FetchRequest { rack_id: "a".into(), ..Default::default() };
    let decoded = FetchRequest::decode(&mut Decoder::new(encode(&request, 10)), 10).unwrap();
    assert_eq!(decoded.rack_id, "", "ignorable");
}

#[test]
fn null_is_refused_where_a_version_does_not_allow_it() {
    let all_topics = MetadataRequest { topics: None, ..Default::default() };
    let error = all_topics.encode(&mut Encoder::new(), 0);
    assert_eq!(error, Err(EncodeError::Null { field: "MetadataRequest.topics", version: 0 }));
    let null = Bytes::from_static(&[0xff, 0xff, 0xff, 0xff]);
    assert_eq!(MetadataRequest::decode(&mut Decoder::new(null.clone()), 1).unwrap().topics, None);
    let error = MetadataRequest::decode(&mut Decoder::new(null), 0).unwrap_err();
    assert_eq!(error.kind, DecodeErrorKind::UnexpectedNull);
}

#[test]
fn defaults_are_kafkas() {
    let fetch = FetchRequest::default();
    assert_eq!((fetch.replica_id, fetch.max_bytes, fetch.session_epoch), (-1, i32::MAX, -1));
    assert_eq!(fetch.replica_state.replica_id, -1);
    assert_eq!(fetch_request::FetchPartition::default().high_watermark, i64::MAX);
    assert_eq!(MetadataRequest::default().topics, Some(Vec::new()));
    assert!(MetadataRequest::default().allow_auto_topic_creation);
    assert_eq!(ProduceRequest::default().transactional_id, None);
    // v0 to v3 have no field for it and mean "yes" (rule M1).
    let old = MetadataRequest::decode(&mut Decoder::new(Bytes::from_static(&[0, 0, 0, 0])), 0).unwrap();
    assert!(old.allow_auto_topic_creation);
}

#[test]
fn v5_unknown_tags_survive() {
    let field = RawTaggedField { tag: 9, data: Bytes::from_static(b"later") };
    let request = FetchRequest {
        cluster_id: Some("c".into()),
        unknown_tagged_fields: vec![field.clone()],
        ..Default::default()
    };
    let bytes = encode(&request, 12);
    let decoded = FetchRequest::decode(&mut Decoder::new(bytes.clone()), 12).unwrap();
    assert_eq!(decoded.unknown_tagged_fields, [field]);
    assert_eq!(encode(&decoded, 12), bytes);
    let error = request.encode(&mut Encoder::new(), 11);
    assert_eq!(error, Err(EncodeError::Tag(9)), "version 11 has no tagged fields");
}

#[test]
fn decoding_borrows_from_the_frame() {
    let partition = produce_request::PartitionProduceData {
        records: Some(Bytes::from_static(b"rrrr").into()),
        ..Default::default()
    };
    let topic = produce_request::TopicProduceData {
        name: "orders".into(),
        partition_data: vec![partition],
        ..Default::default()
    };
    let frame = encode(&ProduceRequest { topic_data: vec![topic], ..Default::default() }, 9);
    let decoded = ProduceRequest::decode(&mut Decoder::new(frame.clone()), 9).unwrap();
    let range = frame.as_ptr_range();
    assert!(range.contains(&decoded.topic_data[0].name.as_bytes().as_ptr()));
    let records = decoded.topic_data[0].partition_data[0].records.as_ref().unwrap();
    assert!(range.contains(&records.pieces()[0].as_ptr()));
}

#[test]
fn payloads_and_secrets_are_not_printed() {
    let request =
        SaslAuthenticateRequest { auth_bytes: Bytes::from_static(b"hunter2"), ..Default::default() };
    let printed = format!("{request:?}");
    assert!(!printed.contains("hunter2") && printed.contains("<7 bytes>"), "{printed}");
}
