package perennial.bench;

import java.nio.charset.StandardCharsets;
import org.apache.flink.api.common.eventtime.WatermarkStrategy;
import org.apache.flink.api.common.functions.RichMapFunction;
import org.apache.flink.api.common.functions.OpenContext;
import org.apache.flink.api.common.serialization.Encoder;
import org.apache.flink.connector.file.sink.FileSink;
import org.apache.flink.connector.file.src.FileSource;
import org.apache.flink.connector.file.src.reader.TextLineInputFormat;
import org.apache.flink.core.fs.Path;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.core.JsonFactory;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.core.JsonParser;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.core.JsonToken;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.streaming.api.functions.sink.filesystem.rollingpolicies.OnCheckpointRollingPolicy;
import org.apache.flink.streaming.api.functions.sink.filesystem.bucketassigners.BasePathBucketAssigner;

/** See file_to_file.rs. Lines are parsed token by token, which is the fastest that Jackson has. */
public final class FileToFile {
    public static void main(String[] words) throws Exception {
        Arguments arguments = new Arguments(words);
        StreamExecutionEnvironment environment = arguments.environment();
        FileSource<String> source = FileSource.forRecordStreamFormat(new TextLineInputFormat(), new Path(arguments.text("input"))).build();
        Encoder<Event> encoder = (event, out) -> {
            String line = "{\"user\":" + event.user + ",\"time\":" + event.time + ",\"is_abnormal\":" + event.isAbnormal + "}\n";
            out.write(line.getBytes(StandardCharsets.ISO_8859_1));
        };
        FileSink<Event> sink = FileSink.forRowFormat(new Path(arguments.text("output")), encoder)
                .withBucketAssigner(new BasePathBucketAssigner<>())
                .withRollingPolicy(OnCheckpointRollingPolicy.build())
                .build();
        environment
                .fromSource(source, WatermarkStrategy.noWatermarks(), "lines")
                .uid("lines")
                .map(new Parse())
                .returns(Event.TYPE)
                .filter(event -> event.isAbnormal)
                .sinkTo(sink)
                .uid("files");
        environment.execute("file-to-file");
    }

    private static final class Parse extends RichMapFunction<String, Event> {
        private transient JsonFactory factory;
        private transient Event event;

        @Override
        public void open(OpenContext context) {
            factory = new JsonFactory();
            event = new Event();
        }

        @Override
        public Event map(String line) throws Exception {
            try (JsonParser parser = factory.createParser(line)) {
                parser.nextToken();
                while (parser.nextToken() == JsonToken.FIELD_NAME) {
                    String name = parser.currentName();
                    parser.nextToken();
                    switch (name) {
                        case "user":
                            event.user = parser.getLongValue();
                            break;
                        case "time":
                            event.time = parser.getLongValue();
                            break;
                        case "is_abnormal":
                            event.isAbnormal = parser.getBooleanValue();
                            break;
                        default:
                            throw new IllegalArgumentException("unknown field " + name);
                    }
                }
            }
            return event;
        }
    }
}
