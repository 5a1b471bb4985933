package perennial.bench;

import java.time.Duration;
import org.apache.flink.api.common.eventtime.WatermarkStrategy;
import org.apache.flink.api.common.functions.AggregateFunction;
import org.apache.flink.api.common.typeinfo.Types;
import org.apache.flink.api.java.tuple.Tuple3;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.streaming.api.functions.windowing.ProcessWindowFunction;
import org.apache.flink.streaming.api.windowing.assigners.SlidingEventTimeWindows;
import org.apache.flink.streaming.api.windowing.assigners.TumblingEventTimeWindows;
import org.apache.flink.streaming.api.windowing.assigners.WindowAssigner;
import org.apache.flink.streaming.api.windowing.windows.TimeWindow;
import org.apache.flink.util.Collector;

/** See window.rs. With --slide the windows overlap. */
public final class Window {
    private static final Duration BOUND = Duration.ofMillis(100);

    public static void main(String[] words) throws Exception {
        Arguments arguments = new Arguments(words);
        Duration size = Duration.ofSeconds(arguments.number("size", 10));
        long slide = arguments.number("slide", 0);
        WindowAssigner<Object, TimeWindow> windows =
                slide == 0 ? TumblingEventTimeWindows.of(size) : SlidingEventTimeWindows.of(size, Duration.ofSeconds(slide));
        StreamExecutionEnvironment environment = arguments.environment();
        environment
                .fromSource(EventSource.of(arguments), WatermarkStrategy.<Event>forBoundedOutOfOrderness(BOUND), "generator", Event.TYPE)
                .setParallelism(arguments.sources())
                .keyBy(event -> event.user, Types.LONG)
                .window(windows)
                .aggregate(new Add(), new Emit(), Types.LONG, Types.LONG, Types.TUPLE(Types.LONG, Types.LONG, Types.LONG))
                .sinkTo(new DigestSink<>(t -> Event.mix(Event.mix(Event.mix(t.f0) ^ t.f1) ^ t.f2), arguments.marks()));
        environment.execute("window");
    }

    private static final class Add implements AggregateFunction<Event, Long, Long> {
        @Override
        public Long createAccumulator() {
            return 0L;
        }

        @Override
        public Long add(Event event, Long count) {
            return count + 1;
        }

        @Override
        public Long getResult(Long count) {
            return count;
        }

        @Override
        public Long merge(Long one, Long other) {
            return one + other;
        }
    }

    private static final class Emit extends ProcessWindowFunction<Long, Tuple3<Long, Long, Long>, Long, TimeWindow> {
        @Override
        public void process(Long user, Context context, Iterable<Long> counts, Collector<Tuple3<Long, Long, Long>> out) {
            out.collect(Tuple3.of(user, context.window().getEnd(), counts.iterator().next()));
        }
    }
}
