//! Records what a real client sends, for golden files.
//!
//! Serves the least of a broker on `localhost:<port>`, answers every request it gets with success, and appends each frame
//! as `<API> <version> <hex>` to a file. `tests/golden/librdkafka.txt` is from kcat 1.7.1 (librdkafka 2.0.2), and the same
//! done with confluent-kafka-python 2.16.1 (librdkafka 2.16.0). For maintainers:
//!
//! ```text
//! cargo run -p millrace-protocol --example capture -- 19092 captured.txt &
//! for codec in none gzip snappy lz4 zstd; do
//!     seq 200 | kcat -b localhost:19092 -P -t $codec -z $codec -k key -H trace=1 -X linger.ms=300
//! done
//! echo x | kcat -b localhost:19092 -P -t idempotent -X enable.idempotence=true
//! timeout 3 kcat -b localhost:19092 -C -t none -c 1
//! awk '{k = $1 " " $2} $1 == "Produce" || !(k in seen) {print} {seen[k] = 1}' captured.txt
//! ```

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use anyhow::Context as _;
use bytes::BytesMut;
use millrace_protocol::ApiKey;
use millrace_protocol::frame::{self, RequestFrame};
use millrace_protocol::messages::{
    ApiVersionsResponse, FetchRequest, FetchResponse, InitProducerIdResponse, ListOffsetsRequest,
    ListOffsetsResponse, MetadataRequest, MetadataResponse, ProduceRequest, ProduceResponse,
    api_versions_response::ApiVersion, fetch_response as fetch, list_offsets_response as offsets,
    metadata_response as metadata, produce_response as produce,
};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let port: u16 = arguments.next().context("first argument: port")?.parse()?;
    let mut out =
        File::options().create(true).append(true).open(arguments.next().context("second argument: file")?)?;
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    std::thread::scope(|threads| {
        for connection in listener.incoming() {
            let mut out = out.try_clone()?;
            threads.spawn(move || serve(connection?, port, &mut out));
        }
        out.flush()?;
        Ok(())
    })
}

fn serve(mut connection: TcpStream, port: u16, out: &mut File) -> anyhow::Result<()> {
    let (mut received, mut chunk) = (BytesMut::new(), [0; 4096]);
    loop {
        let Some(frame) = frame::split(&mut received, 1 << 20)? else {
            match connection.read(&mut chunk)? {
                0 => return Ok(()),
                len => received.extend_from_slice(&chunk[..len]),
            }
            continue;
        };
        let request = RequestFrame::parse(frame.clone())?;
        let hex: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
        out.write_all(format!("{} {} {hex}\n", request.key.name(), request.version).as_bytes())?;
        let mut answer = BytesMut::new();
        respond(request, port, &mut answer)?;
        connection.write_all(&answer)?;
    }
}

fn respond(request: RequestFrame, port: u16, answer: &mut BytesMut) -> anyhow::Result<()> {
    let (key, version, id) = (request.key, request.version, request.correlation_id);
    match key {
        ApiKey::ApiVersions => {
            let api = |key: &ApiKey| ApiVersion {
                api_key: key.code(),
                // librdkafka takes a broker without Produce v0 for one that cannot compress (KAFKA-18659).
                min_version: if *key == ApiKey::Produce { 0 } else { *key.versions().start() },
                max_version: *key.versions().end(),
                ..Default::default()
            };
            // Without FindCoordinator v0 librdkafka does not compress with lz4 either.
            let served = [
                ApiKey::FindCoordinator,
                ApiKey::Produce,
                ApiKey::Fetch,
                ApiKey::ListOffsets,
                ApiKey::Metadata,
                ApiKey::ApiVersions,
                ApiKey::InitProducerId,
            ];
            let body =
                ApiVersionsResponse { api_keys: served.iter().map(api).collect(), ..Default::default() };
            frame::encode_response(answer, key, version, id, &body)?;
        }
        ApiKey::Metadata => {
            let request: MetadataRequest = request.decode()?;
            let broker = metadata::MetadataResponseBroker {
                node_id: 1,
                host: "localhost".into(),
                port: port.into(),
                ..Default::default()
            };
            let partition = metadata::MetadataResponsePartition {
                leader_id: 1,
                replica_nodes: vec![1],
                isr_nodes: vec![1],
                ..Default::default()
            };
            let topics = request.topics.into_iter().flatten().map(|topic| metadata::MetadataResponseTopic {
                name: topic.name,
                partitions: vec![partition.clone()],
                ..Default::default()
            });
            let body = MetadataResponse {
                brokers: vec![broker],
                controller_id: 1,
                topics: topics.collect(),
                ..Default::default()
            };
            frame::encode_response(answer, key, version, id, &body)?;
        }
        ApiKey::InitProducerId => {
            let body = InitProducerIdResponse { producer_id: 4711, producer_epoch: 0, ..Default::default() };
            frame::encode_response(answer, key, version, id, &body)?;
        }
        ApiKey::Produce => {
            let request: ProduceRequest = request.decode()?;
            let responses = request.topic_data.into_iter().map(|topic| produce::TopicProduceResponse {
                name: topic.name,
                topic_id: topic.topic_id,
                partition_responses: vec![produce::PartitionProduceResponse::default()],
                ..Default::default()
            });
            let body = ProduceResponse { responses: responses.collect(), ..Default::default() };
            frame::encode_response(answer, key, version, id, &body)?;
        }
        ApiKey::ListOffsets => {
            let request: ListOffsetsRequest = request.decode()?;
            let topics = request.topics.into_iter().map(|topic| offsets::ListOffsetsTopicResponse {
                name: topic.name,
                partitions: vec![offsets::ListOffsetsPartitionResponse { offset: 0, ..Default::default() }],
                ..Default::default()
            });
            let body = ListOffsetsResponse { topics: topics.collect(), ..Default::default() };
            frame::encode_response(answer, key, version, id, &body)?;
        }
        ApiKey::Fetch => {
            let request: FetchRequest = request.decode()?;
            let responses = request.topics.into_iter().map(|topic| fetch::FetchableTopicResponse {
                topic: topic.topic,
                topic_id: topic.topic_id,
                partitions: vec![fetch::PartitionData {
                    records: Some(Default::default()),
                    ..Default::default()
                }],
                ..Default::default()
            });
            let body = FetchResponse { responses: responses.collect(), ..Default::default() };
            std::thread::sleep(std::time::Duration::from_millis(500));
            frame::encode_response(answer, key, version, id, &body)?;
        }
        other => anyhow::bail!("no answer to {}", other.name()),
    }
    Ok(())
}
