"""librdkafka while a volume is full: writes until it is refused, does everything else meanwhile, and goes on by itself
once a topic has been deleted.

The second argument is the port of the broker's probes, the third is a size that the volume cannot hold, in bytes.
"""
import json
import os
import sys
import time
import urllib.request

from confluent_kafka import (OFFSET_BEGINNING, Consumer, KafkaError, Producer, TopicCollection, TopicPartition)
from confluent_kafka.admin import AdminClient, NewTopic

bootstrap, probes, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
admin = AdminClient({"bootstrap.servers": bootstrap})
RECORD = 500_000


def create(name):
    admin.create_topics([NewTopic(name, 1, 1)])[name].result(30)


def read(topic, count):
    """The first records of a topic, from the beginning."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "unused", "enable.auto.commit": False,
                         "auto.offset.reset": "error"})
    low, _ = consumer.get_watermark_offsets(TopicPartition(topic, 0), 20)
    consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])
    found = []
    while len(found) < count:
        message = consumer.poll(20)
        assert message is not None and message.error() is None, message and message.error()
        assert message.offset() == low + len(found), (message.offset(), low)
        found.append(message.value())
    consumer.close()
    return found


def check_ready():
    """Whoever asks sends clients here: what can be read and deleted is served."""
    assert urllib.request.urlopen(f"http://127.0.0.1:{probes}/readyz", timeout=10).status == 200


def write(producer, topic, values):
    outcomes = []
    for value in values:
        producer.produce(topic, value, on_delivery=lambda error, message: outcomes.append(error))
    assert producer.flush(60) == 0
    return outcomes


def fill(topic):
    """Writes until a record is refused; returns those that were taken, by their beginnings."""
    producer = Producer({"bootstrap.servers": bootstrap, "acks": "all", "retries": 0, "linger.ms": 0})
    taken = []
    for _ in range(size // RECORD):
        value = os.urandom(RECORD)
        error, = write(producer, topic, [value])
        if error is not None:
            assert error.code() == KafkaError.KAFKA_STORAGE_ERROR, error
            return taken
        taken.append(value[:100])
    sys.exit("the volume does not fill up")


class Patient:
    """Writes one record after the other, until one is sent again and again."""

    def __init__(self):
        self.producer = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True, "linger.ms": 0,
                                  "retry.backoff.ms": 50, "retry.backoff.max.ms": 100,
                                  "statistics.interval.ms": 50, "stats_cb": self.note})
        self.values = []
        # Requests of producers when they were first counted after the last record was taken, and since then.
        self.before, self.again = None, 0

    def note(self, statistics):
        brokers = json.loads(statistics)["brokers"].values()
        requests = sum(broker["req"].get("Produce", 0) for broker in brokers)
        self.before = requests if self.before is None else self.before
        self.again = requests - self.before

    def taken(self, error, _):
        assert error is None, error
        self.before, self.again = None, 0

    def write_until_refused(self):
        deadline = time.time() + 30
        while self.again < 5:
            assert time.time() < deadline, "a refused request is not sent again"
            if len(self.producer) == 0:
                self.values.append(b"more-%d " % len(self.values) + os.urandom(10_000))
                self.producer.produce("kept", self.values[-1], on_delivery=self.taken)
            self.producer.poll(0.05)


kept = [b"kept-%d" % number for number in range(100)]
create("bulk")
create("kept")
producer = Producer({"bootstrap.servers": bootstrap, "acks": "all"})
assert not any(write(producer, "kept", kept))
check_ready()
taken = fill("bulk")
assert len(taken) > 50, len(taken)

check_ready()
assert [value[:100] for value in read("bulk", len(taken))] == taken
assert {"bulk", "kept"} <= set(admin.list_topics(timeout=20).topics)
described = admin.describe_topics(TopicCollection(["bulk"]))["bulk"].result(30)
assert described.partitions[0].leader is not None
create("made-meanwhile")
start = TopicPartition("kept", 0, 40)
assert admin.delete_records([start])[start].result(30).low_watermark == 40
assert read("kept", 60) == kept[40:]

patient = Patient()
patient.write_until_refused()
check_ready()

began = time.time()
admin.delete_topics(["bulk"])["bulk"].result(30)
assert patient.producer.flush(30) == 0
print(f"{len(taken)} records taken, went on {time.time() - began:.1f} s after the topic was deleted")
values = kept[40:] + patient.values
assert read("kept", len(values)) == values
assert not any(write(producer, "made-meanwhile", kept))
check_ready()
print("ok")
