"""Writes numbered records, idempotent and with acks=all, until a file appears; then reads everything back.

Every acknowledged record must be there once, in the order of its partition.

usage: ledger.py BOOTSTRAP TOPIC STOP_FILE
"""
import os
import sys
import time

from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

PER_SECOND = 400
# Nobody stops it: the test has ended in another way.
MOST_SECONDS = 150

bootstrap, topic, stop_file = sys.argv[1], sys.argv[2], sys.argv[3]

producer = Producer({
    "bootstrap.servers": bootstrap,
    "enable.idempotence": True,
    "acks": "all",
    "linger.ms": 0,
})
partitions = sorted(producer.list_topics(topic, 10).topics[topic].partitions)
sent = dict.fromkeys(partitions, 0)
acknowledged = dict.fromkeys(partitions, 0)
last = dict.fromkeys(partitions, time.monotonic())
failed = []
longest = 0.0


def delivered(error, message):
    global longest
    if error is not None:
        failed.append(error)
        return
    partition, now = message.partition(), time.monotonic()
    acknowledged[partition] += 1
    longest = max(longest, now - last[partition])
    last[partition] = now


start = time.monotonic()
while not os.path.exists(stop_file):
    now = time.monotonic()
    if now - start > MOST_SECONDS:
        sys.exit("nobody said stop")
    while sum(sent.values()) < (now - start) * PER_SECOND:
        partition = min(partitions, key=sent.get)
        producer.produce(topic, b"%d" % sent[partition], partition=partition, on_delivery=delivered)
        sent[partition] += 1
    producer.poll(0.005)
left = producer.flush(60)
if failed or left:
    sys.exit(f"{len(failed)} records failed, first: {failed[:1]}; {left} were not delivered in time")

consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "not-used", "enable.auto.commit": False})
consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in partitions])
read = dict.fromkeys(partitions, 0)
last_read = time.monotonic()
while read != acknowledged:
    for message in consumer.consume(10000, 1.0):
        if message.error():
            sys.exit(f"consumer: {message.error()}")
        partition, number = message.partition(), int(message.value())
        if number != read[partition]:
            sys.exit(f"partition {partition}: expected {read[partition]}, read {number}")
        read[partition] += 1
        last_read = time.monotonic()
    if time.monotonic() - last_read > 60:
        sys.exit(f"acknowledged: {acknowledged}, came back: {read}")
print(f"{sum(read.values())} records acknowledged and read back, longest wait for an acknowledgement "
      f"of a partition {longest * 1000:.0f} ms")
