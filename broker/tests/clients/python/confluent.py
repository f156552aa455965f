"""librdkafka through Python: admin calls, an idempotent producer, a consumer with assigned partitions."""
import sys

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import (AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewPartitions,
                                   NewTopic, ResourceType)

bootstrap = sys.argv[1]
admin = AdminClient({"bootstrap.servers": bootstrap})
admin.create_topics([NewTopic("confluent", 3, 1)])["confluent"].result(30)
try:
    admin.create_topics([NewTopic("confluent", 3, 1)])["confluent"].result(30)
    sys.exit("a topic was made twice")
except KafkaException as error:
    assert error.args[0].code() == KafkaError.TOPIC_ALREADY_EXISTS, error
admin.create_partitions([NewPartitions("confluent", 5)])["confluent"].result(30)

resource = ConfigResource(ResourceType.TOPIC, "confluent", incremental_configs=[
    ConfigEntry("retention.ms", "120000", incremental_operation=AlterConfigOpType.SET)])
admin.incremental_alter_configs([resource])[resource].result(30)
resource = ConfigResource(ResourceType.TOPIC, "confluent")
assert admin.describe_configs([resource])[resource].result(30)["retention.ms"].value == "120000"

failed = []
for codec in ["none", "gzip", "snappy", "lz4", "zstd"]:
    producer = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True, "compression.type": codec})
    for number in range(1000):
        producer.produce("confluent", b"%s-%d" % (codec.encode(), number), key=b"%d" % number,
                         headers={"n": b"%d" % number},
                         on_delivery=lambda error, _: failed.append(error) if error else None)
    assert producer.flush(30) == 0 and not failed, failed

consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "unused", "enable.auto.commit": False})
consumer.assign([TopicPartition("confluent", p, OFFSET_BEGINNING) for p in range(5)])
seen = {}
while sum(map(len, seen.values())) < 5000:
    message = consumer.poll(20)
    assert message is not None and message.error() is None, message and message.error()
    codec, number = message.value().decode().split("-")
    assert message.key() == number.encode() and dict(message.headers())["n"] == number.encode()
    seen.setdefault((message.partition(), codec), []).append(int(number))
assert all(numbers == sorted(numbers) for numbers in seen.values())
low, high = consumer.get_watermark_offsets(TopicPartition("confluent", 0), 20)
assert low == 0 and high == sum(len(n) for (p, _), n in seen.items() if p == 0), (low, high)
consumer.close()
admin.delete_topics(["confluent"])["confluent"].result(30)
assert "confluent" not in admin.list_topics(timeout=20).topics
print("ok")
