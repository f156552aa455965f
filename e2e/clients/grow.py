"""Grows a topic as any admin client does.

usage: grow.py BOOTSTRAP TOPIC PARTITIONS
"""
import sys

from confluent_kafka.admin import AdminClient, NewPartitions

bootstrap, topic, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
admin = AdminClient({"bootstrap.servers": bootstrap})
for future in admin.create_partitions([NewPartitions(topic, count)]).values():
    future.result(30)
