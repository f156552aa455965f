"""aiokafka: a producer and a consumer with assigned partitions."""
import asyncio
import sys

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic


async def main(bootstrap):
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic("aio", 2, 1)])
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", compression_type="gzip")
    await producer.start()
    sent = [await producer.send("aio", b"value-%d" % n, partition=n % 2) for n in range(2000)]
    await asyncio.gather(*sent)
    await producer.stop()

    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False)
    await consumer.start()
    partitions = [TopicPartition("aio", p) for p in range(2)]
    consumer.assign(partitions)
    await consumer.seek_to_beginning(*partitions)
    read = {0: [], 1: []}
    while sum(map(len, read.values())) < 2000:
        record = await asyncio.wait_for(consumer.getone(), 20)
        read[record.partition].append(record.value)
    assert read == {p: [b"value-%d" % n for n in range(p, 2000, 2)] for p in range(2)}
    await consumer.stop()
    await admin.delete_topics(["aio"])
    await admin.close()
    print("ok")


asyncio.run(main(sys.argv[1]))
