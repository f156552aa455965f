//! Requests that are built before the load begins.

use anyhow::{Context as _, Result, ensure};
use bytes::{Bytes, BytesMut};
use millrace_protocol::frame;
use millrace_protocol::messages::ProduceRequest;
use millrace_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use millrace_protocol::records::{BatchBuilder, Compression, HEADER_LEN, NewRecord};
use rand::RngCore as _;

use super::{CLIENT_ID, PRODUCE_VERSION, Shape};

/// Requests of at most this size are sent from one piece of memory, larger ones share the batch.
const SMALL: usize = 4096;

/// Most bytes that a record takes beside its value: lengths, offset and timestamp deltas as varints.
const RECORD_OVERHEAD: usize = 20;

/// A produce request per partition, each of the same batch.
#[derive(Debug)]
pub struct Requests {
    /// By partition: what to send, length included.
    pub pieces: Vec<Vec<Bytes>>,
    /// Bytes of the batch.
    pub batch_bytes: u64,
    /// Records in it.
    pub records: u64,
}

impl Requests {
    /// Requests with `acks=all` for partitions 0 to `partitions` of `topic`.
    ///
    /// # Errors
    /// The batch has no room for a record.
    pub fn build(topic: &str, partitions: u32, shape: &Shape) -> Result<Self> {
        let (batch, records) = batch(shape)?;
        let pieces =
            (0..partitions).map(|partition| request(topic, partition, &batch)).collect::<Result<_>>()?;
        Ok(Self { pieces, batch_bytes: batch.len() as u64, records })
    }
}

/// A batch of random records, which do not compress, as large as the shape allows.
fn batch(shape: &Shape) -> Result<(Bytes, u64)> {
    let mut value = vec![0; shape.record_bytes];
    rand::rng().fill_bytes(&mut value);
    let timestamp = jiff::Timestamp::now().as_millisecond();
    let mut builder = BatchBuilder::new(Compression::None);
    let mut records = 0;
    loop {
        let room = match shape.batch_bytes {
            None => records == 0,
            Some(most) => HEADER_LEN + builder.uncompressed_len() + value.len() + RECORD_OVERHEAD <= most,
        };
        if !room {
            break;
        }
        builder.push(NewRecord { timestamp, value: Some(&value), ..Default::default() });
        records += 1;
    }
    ensure!(
        records > 0,
        "a batch of {:?} bytes has no room for a record of {}",
        shape.batch_bytes,
        shape.record_bytes
    );
    Ok((builder.build(), records))
}

fn request(topic: &str, partition: u32, batch: &Bytes) -> Result<Vec<Bytes>> {
    let body = ProduceRequest {
        acks: -1,
        timeout_ms: 30_000,
        topic_data: vec![TopicProduceData {
            name: topic.into(),
            partition_data: vec![PartitionProduceData {
                index: i32::try_from(partition)?,
                records: Some(batch.clone().into()),
                ..Default::default()
            }],
            ..Default::default()
        }],
        ..Default::default()
    };
    let mut buffer = BytesMut::new();
    frame::encode_request(&mut buffer, PRODUCE_VERSION, 0, Some(CLIENT_ID), &body)?;
    let whole = buffer.freeze();
    if whole.len() <= SMALL {
        return Ok(vec![whole]);
    }
    // The batch is in memory once for all partitions; only what is around it differs.
    let start = (0..whole.len() - batch.len())
        .find(|&start| whole[start..start + batch.len()] == batch[..])
        .context("the request holds its batch")?;
    let head = Bytes::copy_from_slice(&whole[..start]);
    let tail = Bytes::copy_from_slice(&whole[start + batch.len()..]);
    Ok(vec![head, batch.clone(), tail].into_iter().filter(|piece| !piece.is_empty()).collect())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::*;
    use millrace_protocol::frame::RequestFrame;
    use millrace_protocol::records::batches;

    fn shape(record_bytes: usize, batch_bytes: Option<usize>) -> Shape {
        Shape { record_bytes, batch_bytes, connections: 1, in_flight: 1 }
    }

    fn decode(pieces: &[Bytes]) -> ProduceRequest {
        let whole = Bytes::from(pieces.concat());
        assert_eq!(i32::from_be_bytes(whole[..4].try_into().unwrap()) as usize, whole.len() - 4);
        RequestFrame::parse(whole.slice(4..)).unwrap().decode().unwrap()
    }

    #[test]
    fn batches_fill_their_size_and_do_not_exceed_it() {
        for (record, most) in [(1024, 65_536), (100, 16_384), (1024, 1 << 20)] {
            let requests = Requests::build("t", 1, &shape(record, Some(most))).unwrap();
            let bytes = requests.batch_bytes as usize;
            assert!(bytes <= most && bytes + record + 2 * RECORD_OVERHEAD > most, "{record} {most} {bytes}");
        }
    }

    #[test]
    fn every_partition_gets_a_valid_request_of_its_own() {
        for batch_bytes in [None, Some(65_536)] {
            let requests = Requests::build("t", 3, &shape(1024, batch_bytes)).unwrap();
            for (partition, pieces) in requests.pieces.iter().enumerate() {
                let request = decode(pieces);
                let data = &request.topic_data[0].partition_data[0];
                assert_eq!((request.acks, data.index as usize), (-1, partition));
                let found: Vec<_> =
                    batches(data.records.clone().unwrap().into_bytes()).map(Result::unwrap).collect();
                assert_eq!(found.len(), 1);
                found[0].verify_crc().unwrap();
                assert_eq!(found[0].header().records_count as u64, requests.records);
            }
        }
    }

    #[test]
    fn a_batch_too_small_for_a_record_is_refused() {
        assert!(Requests::build("t", 1, &shape(1024, Some(1000))).is_err());
    }
}
