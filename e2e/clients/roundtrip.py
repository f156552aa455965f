"""Writes numbered records to every partition of a topic and reads them back, complete and in order.

usage: roundtrip.py BOOTSTRAP TOPIC RECORDS
"""
import sys
import time

from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

SIZE = 100

bootstrap, topic, count = sys.argv[1], sys.argv[2], int(sys.argv[3])

failed = []
producer = Producer({
    "bootstrap.servers": bootstrap,
    "enable.idempotence": True,
    "linger.ms": 20,
    "batch.size": 262144,
    "queue.buffering.max.messages": 200000,
})
partitions = sorted(producer.list_topics(topic, 10).topics[topic].partitions)
leaders = {p.leader for p in producer.list_topics(topic, 10).topics[topic].partitions.values()}


def delivered(error, _message):
    if error is not None:
        failed.append(error)


start = time.monotonic()
for number in range(count):
    partition = partitions[number % len(partitions)]
    value = b"%0*d" % (SIZE, number)
    while True:
        try:
            producer.produce(topic, value, partition=partition, on_delivery=delivered)
            break
        except BufferError:
            producer.poll(0.1)
    if number % 10000 == 0:
        producer.poll(0)
left = producer.flush(120)
if failed or left:
    sys.exit(f"{len(failed)} records failed, first: {failed[:1]}; {left} were not delivered in time")
written = time.monotonic()

consumer = Consumer({
    "bootstrap.servers": bootstrap,
    "group.id": "not-used",
    "enable.auto.commit": False,
    "fetch.wait.max.ms": 100,
})
consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in partitions])
expected = {p: index for index, p in enumerate(partitions)}
read = 0
last = time.monotonic()
while read < count:
    for message in consumer.consume(10000, 1.0):
        if message.error():
            sys.exit(f"consumer: {message.error()}")
        number, partition = int(message.value()), message.partition()
        if len(message.value()) != SIZE or number != expected[partition]:
            sys.exit(f"partition {partition}: expected {expected[partition]}, read {message.value()!r}")
        expected[partition] = number + len(partitions)
        read += 1
        last = time.monotonic()
    if time.monotonic() - last > 60:
        sys.exit(f"only {read} of {count} records came back in 60 s")
done = time.monotonic()
print(f"{count} records, {len(partitions)} partitions, {len(leaders)} leaders, "
      f"written in {written - start:.1f} s, read in {done - written:.1f} s")
