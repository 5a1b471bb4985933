package perennial.bench;

import org.apache.flink.api.common.eventtime.WatermarkStrategy;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;

/** See shuffle.rs. Two slot sharing groups put the source into one TaskManager and the counter into the other. */
public final class Shuffle {
    public static void main(String[] words) throws Exception {
        Arguments arguments = new Arguments(words);
        StreamExecutionEnvironment environment = arguments.environment();
        environment
                .fromSource(EventSource.of(arguments), WatermarkStrategy.noWatermarks(), "generator", Event.TYPE)
                .setParallelism(arguments.sources())
                .slotSharingGroup("source")
                .rebalance()
                .sinkTo(DigestSink.events(arguments.marks()))
                .setParallelism(1)
                .slotSharingGroup("sink");
        environment.execute("shuffle");
    }
}
