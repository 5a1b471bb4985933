package perennial.bench;

import org.apache.flink.api.common.eventtime.WatermarkStrategy;
import org.apache.flink.api.common.typeinfo.Types;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;

/** See keyed_count.rs. */
public final class KeyedCount {
    public static void main(String[] words) throws Exception {
        Arguments arguments = new Arguments(words);
        String panicFile = arguments.text("panic-file");
        Marks marks = arguments.marks();
        run(arguments, EventSource.of(arguments), panicFile == null ? new Count() : new Count.Watched(marks, panicFile));
    }

    static void run(Arguments arguments, EventSource source, Count count) throws Exception {
        StreamExecutionEnvironment environment = arguments.environment();
        environment
                .fromSource(source, WatermarkStrategy.noWatermarks(), "generator", Event.TYPE)
                .uid("generator")
                .setParallelism(arguments.sources())
                .keyBy(event -> event.user, Types.LONG)
                .process(count)
                .returns(Types.LONG)
                .name("count")
                .uid("count")
                .sinkTo(DigestSink.numbers(arguments.marks()))
                .name("digest")
                .uid("digest");
        environment.execute("keyed-count");
    }
}
