"""kafka-python: admin calls, a producer, a consumer with assigned partitions."""
import sys

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient, NewTopic

servers = sys.argv[1].split(",")
admin = KafkaAdminClient(bootstrap_servers=servers)
admin.create_topics([NewTopic("kpy", 3, 1)])
assert "kpy" in admin.list_topics()

producer = KafkaProducer(bootstrap_servers=servers, acks="all")
futures = [producer.send("kpy", key=b"%d" % n, value=b"value-%d" % n, partition=n % 3) for n in range(3000)]
offsets = [future.get(timeout=30).offset for future in futures]
assert sorted(offsets) == sorted(list(range(1000)) * 3)
producer.close()

consumer = KafkaConsumer(bootstrap_servers=servers, enable_auto_commit=False, auto_offset_reset="earliest",
                         consumer_timeout_ms=20000)
partitions = [TopicPartition("kpy", p) for p in range(3)]
consumer.assign(partitions)
consumer.seek_to_beginning(*partitions)
assert consumer.end_offsets(partitions) == {p: 1000 for p in partitions}
read = {p.partition: [] for p in partitions}
for record in consumer:
    read[record.partition].append(int(record.key))
    if sum(map(len, read.values())) == 3000:
        break
assert read == {p: list(range(p, 3000, 3)) for p in range(3)}
consumer.close()
admin.delete_topics(["kpy"])
assert "kpy" not in admin.list_topics()
admin.close()
print("ok")
