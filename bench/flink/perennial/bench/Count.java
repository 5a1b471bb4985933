package perennial.bench;

import java.nio.file.Files;
import java.nio.file.Path;
import org.apache.flink.api.common.functions.OpenContext;
import org.apache.flink.api.common.state.ValueState;
import org.apache.flink.api.common.state.ValueStateDescriptor;
import org.apache.flink.api.common.typeinfo.Types;
import org.apache.flink.streaming.api.functions.KeyedProcessFunction;
import org.apache.flink.util.Collector;

/** Events (low half) and abnormal events (high half) of a user; emits the user at every third abnormal one. */
public class Count extends KeyedProcessFunction<Long, Event, Long> {
    private transient ValueState<Long> count;

    @Override
    public void open(OpenContext context) {
        count = getRuntimeContext().getState(new ValueStateDescriptor<>("count", Types.LONG));
    }

    @Override
    public void processElement(Event event, Context context, Collector<Long> out) throws Exception {
        Long before = count.value();
        long now = (before == null ? 0 : before) + 1;
        if (event.isAbnormal) {
            now += 1L << 32;
            if ((now >>> 32) % 3 == 0) {
                out.collect(event.user);
            }
        }
        count.update(now);
    }

    /** Marks the first record of each attempt, and throws once when a file appears. See watching.rs. */
    public static final class Watched extends Count {
        private static final long LOOK_RECORDS = 1024;

        private final Marks marks;
        private final String panicFile;
        private transient long seen;

        public Watched(Marks marks, String panicFile) {
            this.marks = marks;
            this.panicFile = panicFile;
        }

        @Override
        public void processElement(Event event, Context context, Collector<Long> out) throws Exception {
            if (seen % LOOK_RECORDS == 0) {
                String details = "subtask=" + getRuntimeContext().getTaskInfo().getIndexOfThisSubtask();
                if (seen == 0) {
                    marks.put("first", details);
                }
                if (Files.deleteIfExists(Path.of(panicFile))) {
                    marks.put("throw", details);
                    throw new RuntimeException("asked to");
                }
            }
            seen++;
            super.processElement(event, context, out);
        }
    }

    /** Measures how long events are under way. See latency.rs. */
    public static final class Timed extends Count {
        private final Marks marks;
        private transient Histogram times;

        public Timed(Marks marks) {
            this.marks = marks;
        }

        @Override
        public void open(OpenContext context) {
            super.open(context);
            times = new Histogram();
        }

        @Override
        public void processElement(Event event, Context context, Collector<Long> out) throws Exception {
            long now = System.nanoTime();
            times.add(now, now - event.time);
            super.processElement(event, context, out);
        }

        @Override
        public void close() {
            if (times != null && times.count() > 0) {
                marks.put("latency", "subtask=" + getRuntimeContext().getTaskInfo().getIndexOfThisSubtask() + " " + times);
            }
        }
    }
}
