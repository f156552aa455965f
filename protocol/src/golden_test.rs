//! Against bytes of others: what Kafka's own classes write (`tests/golden/Golden.java`), and what librdkafka sends
//! (`examples/capture.rs`).
#![expect(clippy::unwrap_used, reason = "tests may panic")]

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::arbitrary::Arbitrary;
use crate::frame::RequestFrame;
use crate::message::{Message, MessageVisitor, Request, RequestVisitor};
use crate::messages::{ProduceRequest, visit_messages, visit_requests};
use crate::wire::{Decoder, Encoder};
use crate::{ApiKey, records};

const MESSAGES: &str = include_str!("../tests/golden/messages.txt");

pub(crate) fn from_hex(hex: &str) -> Bytes {
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
}

struct Line<'t> {
    name: &'t str,
    first: i16,
    last: i16,
    variant: &'t str,
    bytes: Bytes,
}

fn lines() -> Vec<Line<'static>> {
    MESSAGES
        .lines()
        .map(|line| {
            let [name, versions, variant, hex] = line.split(' ').collect::<Vec<_>>().try_into().unwrap();
            let (first, last) = versions.split_once('-').unwrap();
            let bytes = from_hex(hex);
            Line { name, first: first.parse().unwrap(), last: last.parse().unwrap(), variant, bytes }
        })
        .collect()
}

struct Golden {
    lines: Vec<Line<'static>>,
    seen: BTreeSet<(&'static str, &'static str, i16)>,
    values: usize,
}

impl MessageVisitor for Golden {
    fn message<M: Message + Arbitrary>(&mut self) {
        for line in self.lines.iter().filter(|line| line.name == M::NAME) {
            for version in line.first..=line.last {
                let what = format!("{} v{version} {}", M::NAME, line.variant);
                let mut d = Decoder::new(line.bytes.clone());
                let message = M::decode(&mut d, version).unwrap_or_else(|error| panic!("{what}: {error}"));
                assert_eq!(d.remaining(), 0, "{what}");
                let mut e = Encoder::new();
                message.encode(&mut e, version).unwrap_or_else(|error| panic!("{what}: {error}"));
                assert_eq!(e.into_bytes(), line.bytes, "{what}");
                if line.variant == "full" {
                    self.values += check_values(&format!("{message:#?}"), &what);
                }
                self.seen.insert((M::NAME, line.variant, version));
            }
        }
        for version in M::MIN_VERSION..=M::MAX_VERSION {
            for variant in ["full", "null"] {
                assert!(
                    self.seen.contains(&(M::NAME, variant, version)),
                    "no {variant} {} v{version}",
                    M::NAME
                );
            }
        }
    }
}

#[test]
fn every_message_is_read_and_written_as_kafka_does() {
    let mut golden = Golden { lines: lines(), seen: BTreeSet::new(), values: 0 };
    visit_messages(&mut golden);
    let names: BTreeSet<_> = golden.lines.iter().map(|line| line.name).collect();
    let seen: BTreeSet<_> = golden.seen.iter().map(|(name, ..)| *name).collect();
    assert_eq!(names, seen);
    assert!(golden.values > 5000, "only {} values were compared", golden.values);
}

/// What fields hold that the version does not have.
const DEFAULTS: &[&str] = &[
    "0",
    "1",
    "3",
    "16",
    "-1",
    "-2",
    "2000",
    "60000",
    "-2147483648",
    "2147483647",
    "9223372036854775807",
    "0.0",
    "\"\"",
    "<0 bytes>",
    "00000000-0000-0000-0000-000000000000",
];

/// Each value of the golden messages follows from the name of its field; `printed` has one value per line.
fn check_values(printed: &str, what: &str) -> usize {
    assert!(!printed.contains("RawTaggedField"), "{what}: a tag is not known\n{printed}");
    let mut name = String::new();
    let mut checked = 0;
    for line in printed.lines() {
        let mut value = line.trim().trim_end_matches(',');
        if let Some((field, rest)) = value.split_once(": ")
            && field.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        {
            name = field.replace('_', "");
            value = rest;
        }
        let is_value = value.starts_with(|c: char| c == '"' || c == '-' || c == '<' || c.is_ascii_digit());
        if !is_value || DEFAULTS.contains(&value) {
            continue;
        }
        assert!(is_expected(value, &name), "{what}: {name} is {value}\n{printed}");
        checked += 1;
    }
    checked
}

fn is_expected(value: &str, name: &str) -> bool {
    let hash = java_hash(name);
    if let Some(text) = value.strip_prefix('"') {
        return text.strip_suffix('"') == Some(name);
    }
    if value.starts_with('<') {
        return value == format!("<{} bytes>", name.len());
    }
    if value.len() == 36 && value.matches('-').count() == 4 {
        let half = i64::from(hash).cast_unsigned();
        return value == uuid::Uuid::from_u64_pair(half, half).to_string();
    }
    let number: f64 = value.parse().unwrap();
    #[expect(clippy::cast_possible_truncation, reason = "as Golden.java does")]
    let narrowed = [
        f64::from(hash),
        f64::from(hash as i16),
        f64::from(hash as i8),
        f64::from(hash as u16),
        f64::from(hash.cast_unsigned()),
    ];
    narrowed.contains(&number)
}

/// `String.hashCode`.
fn java_hash(text: &str) -> i32 {
    text.bytes().fold(0, |hash: i32, byte| hash.wrapping_mul(31).wrapping_add(byte.into()))
}

const LIBRDKAFKA: &str = include_str!("../tests/golden/librdkafka.txt");

fn requests_of_librdkafka() -> impl Iterator<Item = RequestFrame> {
    LIBRDKAFKA.lines().map(|line| {
        let hex = line.split(' ').next_back().unwrap();
        RequestFrame::parse(from_hex(hex)).unwrap()
    })
}

#[test]
fn requests_of_librdkafka_are_read_and_written_alike() {
    struct Same(RequestFrame, bool);
    impl RequestVisitor for Same {
        fn request<R: Request>(&mut self) {
            if R::KEY != self.0.key {
                return;
            }
            let request: R = self.0.clone().decode().unwrap();
            let mut e = Encoder::new();
            request.encode(&mut e, self.0.version).unwrap();
            assert_eq!(e.into_bytes(), self.0.body(), "{} v{}", R::NAME, self.0.version);
            self.1 = true;
        }
    }
    let mut count = 0;
    for frame in requests_of_librdkafka() {
        assert_eq!(frame.client_id.as_deref(), Some("rdkafka"));
        let mut same = Same(frame, false);
        visit_requests(&mut same);
        assert!(same.1);
        count += 1;
    }
    assert_eq!(count, LIBRDKAFKA.lines().count());
}

#[test]
fn batches_of_librdkafka_are_read_in_every_codec() {
    let mut batches_seen = BTreeSet::new();
    for frame in requests_of_librdkafka().filter(|frame| frame.key == ApiKey::Produce) {
        let version = frame.version;
        let request: ProduceRequest = frame.decode().unwrap();
        let topic = &request.topic_data[0];
        let payload = topic.partition_data[0].records.clone().unwrap();
        let batches: Vec<_> = records::batches(payload.into_bytes()).collect::<Result<_, _>>().unwrap();
        let [batch] = &batches[..] else { panic!("{} batches", batches.len()) };
        batch.verify_crc().unwrap();
        let body = batch.decompress(1 << 20).unwrap();
        let records: Vec<_> = body.records().collect::<Result<_, _>>().unwrap();
        if topic.name == "idempotent" {
            assert_eq!((batch.header().producer_id, batch.header().base_sequence), (4711, 0));
            assert_eq!(records[0].value, Some(&b"x"[..]));
        } else {
            assert_eq!(batch.header().attributes.compression().unwrap().name(), topic.name.as_str());
            assert_eq!(records.len(), 200);
            for (i, record) in (0..).zip(&records) {
                assert_eq!((record.offset, record.key), (i, Some(&b"key"[..])));
                assert_eq!(record.value, Some((i + 1).to_string().as_bytes()));
                let header = record.headers().next().unwrap();
                assert_eq!((header.key, header.value), (&b"trace"[..], Some(&b"1"[..])));
            }
        }
        batches_seen.insert((version, topic.name.as_str().to_owned()));
    }
    assert_eq!(batches_seen.len(), 12, "five codecs and an idempotent one, of two versions");
}
