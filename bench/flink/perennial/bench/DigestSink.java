package perennial.bench;

import java.io.Serializable;
import org.apache.flink.api.connector.sink2.Sink;
import org.apache.flink.api.connector.sink2.SinkWriter;
import org.apache.flink.api.connector.sink2.WriterInitContext;

/** Keeps the number of its records and a checksum that does not depend on their order; each subtask says both at its end. See digest.rs. */
public final class DigestSink<T> implements Sink<T> {
    /** Scrambled bits of all fields of a record. */
    public interface Digest<T> extends Serializable {
        long of(T record);

        /** Whether it says that an equal record before it holds no more: in an answer that changes. */
        default boolean isTakenBack(T record) {
            return false;
        }
    }

    private final Digest<T> digest;
    private final Marks marks;

    public DigestSink(Digest<T> digest, Marks marks) {
        this.digest = digest;
        this.marks = marks;
    }

    public static DigestSink<Event> events(Marks marks) {
        return new DigestSink<>(e -> Event.mix(e.user ^ (e.time << 24) ^ (e.isAbnormal ? 1L << 63 : 0)), marks);
    }

    public static DigestSink<Long> numbers(Marks marks) {
        return new DigestSink<>(Event::mix, marks);
    }

    @Override
    public SinkWriter<T> createWriter(WriterInitContext context) {
        int subtask = context.getTaskInfo().getIndexOfThisSubtask();
        return new Writer<>(digest, marks, subtask);
    }

    private static final class Writer<T> implements SinkWriter<T> {
        private final Digest<T> digest;
        private final Marks marks;
        private final int subtask;
        private long count;
        private long sum;

        Writer(Digest<T> digest, Marks marks, int subtask) {
            this.digest = digest;
            this.marks = marks;
            this.subtask = subtask;
        }

        @Override
        public void write(T record, Context context) {
            if (digest.isTakenBack(record)) {
                count--;
                sum -= digest.of(record);
            } else {
                count++;
                sum += digest.of(record);
            }
        }

        @Override
        public void flush(boolean isEndOfInput) {
            if (isEndOfInput) {
                marks.put("digest", "subtask=" + subtask + " count=" + Long.toUnsignedString(count) + " sum=" + Long.toUnsignedString(sum));
            }
        }

        @Override
        public void close() {}
    }
}
