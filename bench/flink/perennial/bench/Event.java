package perennial.bench;

import java.io.IOException;
import org.apache.flink.api.common.serialization.SerializerConfig;
import org.apache.flink.api.common.typeinfo.TypeInformation;
import org.apache.flink.api.common.typeutils.SimpleTypeSerializerSnapshot;
import org.apache.flink.api.common.typeutils.TypeSerializer;
import org.apache.flink.api.common.typeutils.TypeSerializerSnapshot;
import org.apache.flink.api.common.typeutils.base.TypeSerializerSingleton;
import org.apache.flink.core.memory.DataInputView;
import org.apache.flink.core.memory.DataOutputView;

/** An event of a user, as in keyed_count.rs. Its serializer is written by hand: 17 bytes. */
public class Event {
    public static final TypeInformation<Event> TYPE = new Information();

    public long user;
    public long time;
    public boolean isAbnormal;

    /** The finaliser of splitmix64. */
    public static long mix(long n) {
        long z = (n + 1) * 0x9E3779B97F4A7C15L;
        z = (z ^ (z >>> 30)) * 0xBF58476D1CE4E5B9L;
        z = (z ^ (z >>> 27)) * 0x94D049BB133111EBL;
        return z ^ (z >>> 31);
    }

    /** Becomes the event of a sequence number. */
    public void become(long sequence, long keys) {
        long h = mix(sequence);
        user = (h >>> 1) % keys;
        time = sequence / 100;
        isAbnormal = (((h >>> 40) * 10) >>> 24) < 3;
    }

    private static final class Information extends TypeInformation<Event> {
        @Override
        public boolean isBasicType() {
            return false;
        }

        @Override
        public boolean isTupleType() {
            return false;
        }

        @Override
        public int getArity() {
            return 1;
        }

        @Override
        public int getTotalFields() {
            return 1;
        }

        @Override
        public Class<Event> getTypeClass() {
            return Event.class;
        }

        @Override
        public boolean isKeyType() {
            return false;
        }

        @Override
        public TypeSerializer<Event> createSerializer(SerializerConfig config) {
            return Serializer.INSTANCE;
        }

        @Override
        public String toString() {
            return "Event";
        }

        @Override
        public boolean equals(Object other) {
            return other instanceof Information;
        }

        @Override
        public int hashCode() {
            return Information.class.hashCode();
        }

        @Override
        public boolean canEqual(Object other) {
            return other instanceof Information;
        }
    }

    public static final class Serializer extends TypeSerializerSingleton<Event> {
        static final Serializer INSTANCE = new Serializer();
        private static final int LENGTH = 17;

        @Override
        public boolean isImmutableType() {
            return false;
        }

        @Override
        public Event createInstance() {
            return new Event();
        }

        @Override
        public Event copy(Event from) {
            return copy(from, new Event());
        }

        @Override
        public Event copy(Event from, Event reuse) {
            reuse.user = from.user;
            reuse.time = from.time;
            reuse.isAbnormal = from.isAbnormal;
            return reuse;
        }

        @Override
        public int getLength() {
            return LENGTH;
        }

        @Override
        public void serialize(Event event, DataOutputView out) throws IOException {
            out.writeLong(event.user);
            out.writeLong(event.time);
            out.writeBoolean(event.isAbnormal);
        }

        @Override
        public Event deserialize(DataInputView in) throws IOException {
            return deserialize(new Event(), in);
        }

        @Override
        public Event deserialize(Event reuse, DataInputView in) throws IOException {
            reuse.user = in.readLong();
            reuse.time = in.readLong();
            reuse.isAbnormal = in.readBoolean();
            return reuse;
        }

        @Override
        public void copy(DataInputView in, DataOutputView out) throws IOException {
            out.write(in, LENGTH);
        }

        @Override
        public TypeSerializerSnapshot<Event> snapshotConfiguration() {
            return new Snapshot();
        }

        public static final class Snapshot extends SimpleTypeSerializerSnapshot<Event> {
            public Snapshot() {
                super(() -> INSTANCE);
            }
        }
    }
}
