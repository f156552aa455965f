// Writes messages.txt and batches.txt beside itself: what Kafka's own Java classes put on the wire.
//
// For maintainers, after `protocol/schema/kafka.schema` was imported from a newer jar. With Java 17 or newer:
//
//   mvn dependency:get -Dartifact=org.apache.kafka:kafka-clients:4.3.1   (brings the codecs' jars too)
//   cd protocol/tests/golden
//   java -cp "$(find ~/.m2 -name 'kafka-clients-4.3.1.jar' -o -name 'zstd-jni-*.jar' -o -name 'lz4-java-*.jar' \
//       -o -name 'snappy-java-*.jar' -o -name 'slf4j-api-1*.jar' -o -name 'slf4j-nop-1*.jar' | tr '\n' ':')" Golden.java
//
// messages.txt: `<message> <first version>-<last version> <variant> <hex>`. Every value follows from the name of its field
// (see `hash`), so that a reader which mixes fields up is found out. Variants: `full` has no null, two elements in the
// outermost arrays and one further in; `null` has null wherever that is allowed.
// batches.txt: `<codec> <hex>` of one batch per codec, and `append-time` and `commit-marker`.

import java.io.PrintWriter;
import java.lang.reflect.Constructor;
import java.lang.reflect.Field;
import java.lang.reflect.ParameterizedType;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collection;
import java.util.List;
import org.apache.kafka.common.Uuid;
import org.apache.kafka.common.compress.Compression;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.header.internals.RecordHeader;
import org.apache.kafka.common.protocol.Message;
import org.apache.kafka.common.protocol.MessageUtil;
import org.apache.kafka.common.protocol.types.BoundField;
import org.apache.kafka.common.protocol.types.Schema;
import org.apache.kafka.common.protocol.types.TaggedFields;
import org.apache.kafka.common.protocol.types.Type;
import org.apache.kafka.common.record.TimestampType;
import org.apache.kafka.common.record.internal.ControlRecordType;
import org.apache.kafka.common.record.internal.EndTransactionMarker;
import org.apache.kafka.common.record.internal.MemoryRecords;
import org.apache.kafka.common.record.internal.MemoryRecordsBuilder;
import org.apache.kafka.common.record.internal.RecordBatch;

public class Golden {
    public static void main(String[] args) throws Exception {
        try (PrintWriter out = new PrintWriter("messages.txt")) {
            for (String line : Files.readAllLines(Path.of("../../schema/kafka.schema"))) {
                if (line.matches("(header|request|response|data) .*")) {
                    String[] words = line.split(" ");
                    message(out, words[1].matches("\\d+") ? words[2] : words[1]);
                }
            }
        }
        try (PrintWriter out = new PrintWriter("batches.txt")) {
            batches(out);
        }
    }

    // ---- messages

    static void message(PrintWriter out, String name) throws Exception {
        Class<?> type;
        try {
            type = Class.forName("org.apache.kafka.common.message." + name + "Data");
        } catch (ClassNotFoundException e) {
            type = Class.forName("org.apache.kafka.common.message." + name);
        }
        Schema[] schemas = (Schema[]) type.getField("SCHEMAS").get(null);
        for (boolean nulls : new boolean[] {false, true}) {
            String variant = nulls ? "null" : "full";
            int first = -1;
            String hex = null;
            for (int version = 0; version <= schemas.length; version++) {
                String next = version == schemas.length || schemas[version] == null
                    ? null : encode(type, schemas[version], (short) version, nulls);
                if (hex != null && !hex.equals(next)) {
                    out.println(name + " " + first + "-" + (version - 1) + " " + variant + " " + hex);
                }
                if (next != null && !next.equals(hex)) {
                    first = version;
                }
                hex = next;
            }
        }
    }

    static String encode(Class<?> type, Schema schema, short version, boolean nulls) throws Exception {
        Message message = (Message) type.getConstructor().newInstance();
        fill(message, schema, nulls, 2);
        return hex(MessageUtil.toByteBufferAccessor(message, version).buffer());
    }

    static void fill(Object target, Schema schema, boolean nulls, int elements) throws Exception {
        for (BoundField bound : schema.fields()) {
            if (bound.def.type instanceof TaggedFields tagged) {
                for (var field : tagged.fields().values()) {
                    set(target, field.name, field.type, nulls, elements);
                }
            } else {
                set(target, bound.def.name, bound.def.type, nulls, elements);
            }
        }
    }

    static void set(Object target, String name, Type type, boolean nulls, int elements) throws Exception {
        String plain = name.replace("_", "");
        for (Field field : target.getClass().getDeclaredFields()) {
            if (field.getName().equalsIgnoreCase(plain)) {
                field.setAccessible(true);
                field.set(target, nulls && type.isNullable() ? null : value(field, plain, type, nulls, elements));
                return;
            }
        }
        throw new IllegalStateException("no field " + name + " in " + target.getClass());
    }

    @SuppressWarnings("unchecked")
    static Object value(Field field, String name, Type type, boolean nulls, int elements) throws Exception {
        if (!type.isArray()) {
            return single(field.getType(), name, type, nulls);
        }
        Class<?> element;
        Collection<Object> collection;
        if (field.getType() == List.class) {
            element = (Class<?>) ((ParameterizedType) field.getGenericType()).getActualTypeArguments()[0];
            collection = new ArrayList<>();
        } else {
            var parent = (ParameterizedType) field.getType().getGenericSuperclass();
            element = (Class<?>) parent.getActualTypeArguments()[0];
            Constructor<?> constructor = field.getType().getConstructor(int.class);
            collection = (Collection<Object>) constructor.newInstance(8);
        }
        for (int i = 0; i < elements; i++) {
            collection.add(single(element, name, type.arrayElementType().get(), nulls));
        }
        return collection;
    }

    static Object single(Class<?> target, String name, Type type, boolean nulls) throws Exception {
        int hash = hash(name);
        if (type instanceof Schema schema) {
            Object struct = target.getConstructor().newInstance();
            fill(struct, schema, nulls, 1);
            return struct;
        } else if (target == boolean.class) {
            return (hash & 1) == 1;
        } else if (target == byte.class || target == Byte.class) {
            return (byte) hash;
        } else if (target == short.class || target == Short.class) {
            return (short) hash;
        } else if (target == int.class && type == Type.UINT16) {
            return hash & 0xffff;
        } else if (target == int.class || target == Integer.class) {
            return hash;
        } else if (target == long.class || target == Long.class) {
            return type == Type.UNSIGNED_INT32 ? hash & 0xffffffffL : (long) hash;
        } else if (target == double.class) {
            return (double) hash;
        } else if (target == String.class) {
            return name;
        } else if (target == Uuid.class) {
            return new Uuid(hash, hash);
        } else if (target == byte[].class) {
            return name.getBytes(StandardCharsets.UTF_8);
        } else if (target == ByteBuffer.class) {
            return ByteBuffer.wrap(name.getBytes(StandardCharsets.UTF_8));
        } else if (target.getSimpleName().endsWith("Records")) {
            return MemoryRecords.readableRecords(ByteBuffer.wrap(name.getBytes(StandardCharsets.UTF_8)));
        }
        throw new IllegalStateException("no value for " + target);
    }

    /** What a field holds follows from its name in small letters, without underscores. */
    static int hash(String name) {
        return name.hashCode();
    }

    // ---- batches

    static void batches(PrintWriter out) {
        out.println("none " + batch(Compression.NONE, TimestampType.CREATE_TIME));
        out.println("gzip " + batch(Compression.gzip().build(), TimestampType.CREATE_TIME));
        out.println("snappy " + batch(Compression.snappy().build(), TimestampType.CREATE_TIME));
        out.println("lz4 " + batch(Compression.lz4().build(), TimestampType.CREATE_TIME));
        out.println("zstd " + batch(Compression.zstd().build(), TimestampType.CREATE_TIME));
        out.println("append-time " + batch(Compression.NONE, TimestampType.LOG_APPEND_TIME));
        out.println("commit-marker " + hex(MemoryRecords.withEndTransactionMarker(
            40, 1_700_000_000_000L, 3, 9_000, (short) 5,
            new EndTransactionMarker(ControlRecordType.COMMIT, 11)).buffer()));
    }

    /** 100 records at offset 1000; each third has no key, each fifth no value, each seventh two headers. */
    static String batch(Compression compression, TimestampType timestampType) {
        MemoryRecordsBuilder builder = MemoryRecords.builder(ByteBuffer.allocate(1 << 16), RecordBatch.MAGIC_VALUE_V2,
            compression, timestampType, 1000L, 1_700_000_999_999L, 77L, (short) 3, 500, true, false, 6);
        for (int i = 0; i < 100; i++) {
            byte[] key = i % 3 == 0 ? null : ("key-" + i).getBytes(StandardCharsets.UTF_8);
            byte[] value = i % 5 == 0 ? null : "value ".repeat(i % 10).getBytes(StandardCharsets.UTF_8);
            Header[] headers = i % 7 != 0 ? new Header[0] : new Header[] {
                new RecordHeader("trace", ("t" + i).getBytes(StandardCharsets.UTF_8)), new RecordHeader("none", null)
            };
            builder.append(1_700_000_000_000L + 10 * i, key, value, headers);
        }
        return hex(builder.build().buffer());
    }

    static String hex(ByteBuffer buffer) {
        StringBuilder text = new StringBuilder();
        for (ByteBuffer rest = buffer.duplicate(); rest.hasRemaining();) {
            text.append(String.format("%02x", rest.get()));
        }
        return text.toString();
    }
}
