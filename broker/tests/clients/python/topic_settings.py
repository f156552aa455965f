"""Settings of topics as librdkafka meets them: whose clock dates records, which timestamps and sizes are refused.

`check` does all that needs no other tool; `fits TOPIC BYTES` and `refused TOPIC BYTES` write one record of that size.
"""
import sys
import time

from confluent_kafka import (OFFSET_BEGINNING, TIMESTAMP_CREATE_TIME, TIMESTAMP_LOG_APPEND_TIME, Consumer, KafkaError,
                             KafkaException, Producer, TopicPartition)
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

bootstrap, phase = sys.argv[1:3]
admin = AdminClient({"bootstrap.servers": bootstrap})
HOUR = 3_600_000


def create(name, **config):
    config = {key.replace("_", "."): value for key, value in config.items()}
    admin.create_topics([NewTopic(name, 1, 1, config=config)])[name].result(30)


def write(topic, value, timestamp=0):
    """The code of the error that comes of it, 0 if none does."""
    codes = []
    # The client's own limit is not what is looked at here.
    producer = Producer({"bootstrap.servers": bootstrap, "acks": "all", "message.max.bytes": 10_000_000})
    producer.produce(topic, value, timestamp=timestamp,
                     on_delivery=lambda error, _: codes.append(error.code() if error else 0))
    assert producer.flush(30) == 0
    return codes[0]


def timestamps(topic, count):
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "unused", "enable.auto.commit": False})
    consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])
    found = []
    while len(found) < count:
        message = consumer.poll(20)
        assert message is not None and message.error() is None, message and message.error()
        found.append(message.timestamp())
    consumer.close()
    return found


def check():
    now = int(time.time() * 1000)
    create("by-producer")
    create("by-broker", message_timestamp_type="LogAppendTime")
    for topic in ["by-producer", "by-broker"]:
        assert write(topic, b"old", 1_000) == 0
    assert timestamps("by-producer", 1) == [(TIMESTAMP_CREATE_TIME, 1_000)]
    (kind, timestamp), = timestamps("by-broker", 1)
    assert kind == TIMESTAMP_LOG_APPEND_TIME and now <= timestamp <= now + HOUR, (kind, timestamp, now)

    create("narrow", message_timestamp_before_max_ms=str(2 * HOUR), message_timestamp_after_max_ms=str(3 * HOUR))
    refused = KafkaError.INVALID_TIMESTAMP
    for hours, expected in [(-2.1, refused), (-1.9, 0), (0, 0), (2.9, 0), (3.1, refused)]:
        assert write("narrow", b"v", now + int(hours * HOUR)) == expected, hours
    # Kafka's default: an hour into the future, and any time into the past.
    assert write("by-producer", b"v", now + 2 * HOUR) == refused
    # Where the broker dates records, nobody looks at what the producer says.
    assert write("by-broker", b"v", now + 2 * HOUR) == 0

    for durability in ["fsync", "written"]:
        create(f"durable-{durability}", log_durability=durability)
        resource = ConfigResource(ResourceType.TOPIC, f"durable-{durability}")
        described = admin.describe_configs([resource])[resource].result(30)
        assert described["log.durability"].value == durability
        assert write(f"durable-{durability}", b"v") == 0
    for key, value in [("log_durability", "sometimes"), ("message_timestamp_type", "Never"),
                       ("compression_type", "rar"), ("max_message_bytes", "-1")]:
        try:
            create("refused", **{key: value})
            sys.exit(f"{key} took {value}")
        except KafkaException as error:
            name = key.replace("_", ".")
            assert error.args[0].code() == KafkaError.INVALID_CONFIG and name in error.args[0].str(), error


if phase == "check":
    check()
else:
    topic, size = sys.argv[3], int(sys.argv[4])
    expected = {"fits": 0, "refused": KafkaError.MSG_SIZE_TOO_LARGE}[phase]
    code = write(topic, b"x" * size)
    assert code == expected, code
print("ok")
