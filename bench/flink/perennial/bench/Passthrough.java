package perennial.bench;

import org.apache.flink.api.common.eventtime.WatermarkStrategy;
import org.apache.flink.api.common.functions.MapFunction;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;

/** See passthrough.rs. */
public final class Passthrough {
    public static void main(String[] words) throws Exception {
        Arguments arguments = new Arguments(words);
        StreamExecutionEnvironment environment = arguments.environment();
        MapFunction<Event, Event> map = event -> {
            event.time += 1;
            return event;
        };
        environment
                .fromSource(EventSource.of(arguments), WatermarkStrategy.noWatermarks(), "generator", Event.TYPE)
                .setParallelism(arguments.sources())
                .map(map)
                .returns(Event.TYPE)
                .setParallelism(arguments.sources())
                .sinkTo(DigestSink.events(arguments.marks()))
                .setParallelism(arguments.sources());
        environment.execute("passthrough");
    }
}
