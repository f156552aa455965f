"""Writes `line-0`, `line-1` and so on with one of Python's own clients, and succeeds once all are acknowledged.

Arguments: bootstrap servers, client, topic, number of records.
"""
import asyncio
import sys

from aiokafka import AIOKafkaProducer
from kafka import KafkaProducer

bootstrap, client, topic, count = sys.argv[1:3] + [sys.argv[3], int(sys.argv[4])]
values = [b"line-%d" % number for number in range(count)]


async def with_aiokafka():
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, enable_idempotence=True, request_timeout_ms=60_000)
    await producer.start()
    sent = [await producer.send(topic, value, partition=0) for value in values]
    await asyncio.gather(*sent)
    await producer.stop()


if client == "aiokafka":
    asyncio.run(with_aiokafka())
elif client == "kafka-python":
    producer = KafkaProducer(bootstrap_servers=bootstrap, acks="all")
    futures = [producer.send(topic, value=value, partition=0) for value in values]
    for future in futures:
        future.get(timeout=60)
    producer.close()
else:
    sys.exit(f"no such client: {client}")
