//! Whole frames, from both ends.
#![expect(clippy::unwrap_used, reason = "tests may panic")]

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use crate::arbitrary::Gen;
use crate::frame::*;
use crate::message::{Message, Request, RequestVisitor};
use crate::messages::*;
use crate::wire::Encoder;
use crate::{ApiKey, DecodeError, EncodeError};

const MAX: usize = 1 << 20;

#[test]
fn every_request_and_response_crosses_a_connection_in_every_version() {
    struct Cross;
    impl RequestVisitor for Cross {
        fn request<R: Request>(&mut self) {
            for version in R::KEY.versions() {
                let mut wire = BytesMut::new();
                encode_request(&mut wire, version, 7, Some("me"), &R::default()).unwrap();
                let frame = split(&mut wire, MAX).unwrap().unwrap();
                assert!(wire.is_empty());
                let request = RequestFrame::parse(frame).unwrap();
                assert_eq!((request.key, request.version, request.correlation_id), (R::KEY, version, 7));
                assert_eq!(request.client_id.as_deref(), Some("me"));
                assert_eq!(request.decode::<R>().unwrap(), R::default());

                let body = R::Response::default();
                encode_response(&mut wire, R::KEY, version, 7, &body).unwrap();
                let frame = split(&mut wire, MAX).unwrap().unwrap();
                assert_eq!(response_correlation_id(&frame), Some(7));
                assert_eq!(decode_response::<R>(frame, version).unwrap().0, 7);
            }
        }
    }
    visit_requests(&mut Cross);
}

#[test]
fn requests_and_responses_exist_in_the_same_versions() {
    struct Same;
    impl RequestVisitor for Same {
        fn request<R: Request>(&mut self) {
            assert_eq!(R::KEY.versions(), R::MIN_VERSION..=R::MAX_VERSION, "{}", R::NAME);
            assert_eq!(R::KEY.versions(), R::Response::MIN_VERSION..=R::Response::MAX_VERSION, "{}", R::NAME);
        }
    }
    visit_requests(&mut Same);
}

#[test]
fn a_frame_is_taken_only_when_it_is_whole() {
    let mut wire = BytesMut::new();
    for byte in [0, 0, 0, 2, 8] {
        wire.extend_from_slice(&[byte]);
        assert_eq!(split(&mut wire, MAX), Ok(None));
    }
    wire.extend_from_slice(&[9, 0, 0]);
    assert_eq!(split(&mut wire, MAX), Ok(Some(Bytes::from_static(&[8, 9]))));
    assert_eq!(&wire[..], [0, 0]);
}

#[test]
fn an_oversize_or_negative_length_ends_the_connection() {
    for (len, max) in [(i32::MAX, MAX), (-1, MAX), (i32::MIN, MAX), (11, 10)] {
        let mut wire = BytesMut::from(len.to_be_bytes().as_slice());
        assert_eq!(split(&mut wire, max), Err(FrameError::Length { len, max }));
    }
}

#[test]
fn v1_the_header_of_a_future_api_versions_request_is_readable() {
    let mut wire = BytesMut::new();
    encode_request(&mut wire, 4, 5, None, &ApiVersionsRequest::default()).unwrap();
    wire[6..8].copy_from_slice(&99_i16.to_be_bytes());
    let request = RequestFrame::parse(split(&mut wire, MAX).unwrap().unwrap()).unwrap();
    assert_eq!((request.key, request.version, request.correlation_id), (ApiKey::ApiVersions, 99, 5));
    assert!(request.decode::<ApiVersionsRequest>().is_err());
}

#[test]
fn v2_unknown_keys_are_told_apart_from_garbage() {
    let frame = Bytes::from_static(&[0x03, 0xe8, 0, 1, 0, 0, 0, 9, 0xff, 0xff]);
    assert_eq!(RequestFrame::parse(frame).unwrap_err(), FrameError::UnknownApiKey { key: 1000, version: 1 });
    for garbage in [&b""[..], b"\x00", b"\x00\x03\x00\x01", b"\x00\x03\x00\x01\x00\x00\x00\x09\x7f\xff"] {
        let error = RequestFrame::parse(Bytes::from_static(garbage)).unwrap_err();
        assert!(matches!(error, FrameError::Header(DecodeError { .. })), "{garbage:?}: {error}");
    }
}

#[test]
fn a_body_that_does_not_fit_leaves_the_buffer_as_it_was() {
    let mut wire = BytesMut::from(&b"before"[..]);
    let body = InitProducerIdResponse { producer_id: 1, ongoing_txn_producer_id: 5, ..Default::default() };
    let error = encode_response(&mut wire, ApiKey::InitProducerId, 1, 1, &body);
    assert!(matches!(error, Err(EncodeError::NotInVersion { .. })), "{error:?}");
    assert_eq!(wire, "before");
}

#[test]
fn segments_are_the_same_bytes_without_a_copy_of_the_records() {
    let records = Bytes::from(vec![3; 100_000]);
    let partition =
        fetch_response::PartitionData { records: Some(records.clone().into()), ..Default::default() };
    let topic =
        fetch_response::FetchableTopicResponse { partitions: vec![partition; 3], ..Default::default() };
    let body = FetchResponse { responses: vec![topic], ..Default::default() };
    let segments = encode_response_segments(ApiKey::Fetch, 13, 1, &body).unwrap();
    assert_eq!(segments.iter().filter(|s| s.as_ptr() == records.as_ptr()).count(), 3);
    let mut whole = BytesMut::new();
    encode_response(&mut whole, ApiKey::Fetch, 13, 1, &body).unwrap();
    assert_eq!(segments.concat(), whole);
}

proptest! {
    #[test]
    fn any_bytes_are_a_request_or_an_error(key in 0_i16..93, version in 0_i16..20, rest: Vec<u8>) {
        struct Decode(RequestFrame);
        impl RequestVisitor for Decode {
            fn request<R: Request>(&mut self) {
                if R::KEY == self.0.key {
                    let _ = self.0.clone().decode::<R>();
                }
            }
        }
        let mut e = Encoder::new();
        e.i16(key);
        e.i16(version);
        e.i32(1);
        e.i16(-1);
        if version > 5 {
            e.u8(0);
        }
        e.slice(&rest);
        if let Ok(request) = RequestFrame::parse(e.into_bytes()) {
            visit_requests(&mut Decode(request));
        }
    }

    #[test]
    fn frames_are_found_however_they_arrive(seed: u64) {
        let mut g = Gen::new(seed);
        let frames: Vec<Bytes> = g.value(0);
        let stream: Vec<u8> = frames
            .iter()
            .flat_map(|frame| [&u32::try_from(frame.len()).unwrap().to_be_bytes()[..], frame].concat())
            .collect();
        let mut wire = BytesMut::new();
        let mut found = Vec::new();
        for chunk in stream.chunks(usize::try_from(g.below(9)).unwrap() + 1) {
            wire.extend_from_slice(chunk);
            while let Some(frame) = split(&mut wire, MAX).unwrap() {
                found.push(frame);
            }
        }
        prop_assert_eq!(found, frames);
    }
}
