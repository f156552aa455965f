"""Compacted topics: writes what is to be compacted, waits until it is, and prints what is left.

`write`: topics and records; `expire`: more records, once records without a value have had their time; `read`: prints
topic, offset, timestamp, key and value of every record that is left, as a line each.

The third argument is the timestamp of the first record, in ms: the same wherever the outcome is to be the same.
"""
import sys
import time

from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from kafka import KafkaConsumer
from kafka import TopicPartition as PythonTopicPartition

bootstrap, phase = sys.argv[1:3]
# Far enough in the past for segments to be rolled by timestamps, without waiting: Kafka compacts no active segment.
START = int(sys.argv[3])
CODECS = ["none", "gzip", "snappy", "lz4", "zstd"]
TOPICS = [f"compact-{codec}" for codec in CODECS] + ["expire"]
KEYS = 20
MINUTE = 60_000


def write(topic, codec, records, start):
    """Idempotent, in batches of several records."""
    failed = []
    producer = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True, "compression.type": codec,
                         "linger.ms": 5, "batch.num.messages": 7})
    for number, (key, value) in enumerate(records):
        producer.produce(topic, value, key=key, timestamp=start + number,
                         on_delivery=lambda error, _: failed.append(error) if error else None)
    assert producer.flush(60) == 0 and not failed, failed


def rounds(prefix, count, without_value=()):
    records = [(f"{prefix}-{n % KEYS}".encode(), f"value {n} ".encode() * 5) for n in range(count)]
    return records + [(f"{prefix}-{n}".encode(), None) for n in without_value]


def left(topic):
    """What librdkafka and kafka-python find, which must be the same."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "unused", "enable.auto.commit": False,
                         "enable.partition.eof": True})
    consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])
    found = []
    while True:
        message = consumer.poll(20)
        assert message is not None, f"nothing more of {topic} after {found[-1:]}"
        if message.error():
            break
        found.append((message.offset(), message.timestamp()[1], message.key(), message.value()))
    consumer.close()
    # It lacks the libraries for the other codecs.
    if topic not in ("compact-none", "compact-gzip"):
        return found
    other = KafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False, consumer_timeout_ms=20_000)
    partition = PythonTopicPartition(topic, 0)
    other.assign([partition])
    other.seek_to_beginning(partition)
    end, same = other.end_offsets([partition])[partition], []
    while other.position(partition) < end:
        for records in other.poll(timeout_ms=1000).values():
            same += [(record.offset, record.timestamp, record.key, record.value) for record in records]
    other.close()
    return found if found == same else None


def wait(topic, condition):
    deadline = time.time() + 60
    while True:
        found = left(topic)
        if found is not None and condition(found):
            return found
        assert time.time() < deadline, f"{topic} has {found}"
        time.sleep(0.2)


def compacted(found):
    keys = [key for _, _, key, _ in found]
    return len(keys) == len(set(keys))


if phase == "write":
    config = {"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0.0001", "segment.ms": str(MINUTE)}
    expiring = config | {"delete.retention.ms": "500"}
    admin = AdminClient({"bootstrap.servers": bootstrap})
    topics = [NewTopic(topic, 1, 1, config=expiring if topic == "expire" else config) for topic in TOPICS]
    for future in admin.create_topics(topics).values():
        future.result(30)
    for topic, codec in zip(TOPICS, CODECS + ["lz4"]):
        write(topic, codec, rounds("key", 500, without_value=[3, 7, 8]), START)
        write(topic, codec, [(b"end", b"of the segment")], START + 10 * MINUTE)
elif phase == "expire":
    wait("expire", compacted)
    time.sleep(1)
    write("expire", "gzip", rounds("later", 100), START + 20 * MINUTE)
    write("expire", "gzip", [(b"end-2", b"of the segment")], START + 30 * MINUTE)
elif phase == "read":
    for topic in TOPICS:
        has_tombstones = lambda found: any(value is None for _, _, _, value in found)
        for record in wait(topic, lambda found: compacted(found) and (topic != "expire" or not has_tombstones(found))):
            print(topic, *record)
print("ok")
