package perennial.bench;

import java.io.Serializable;
import java.nio.file.Path;
import java.util.HashMap;
import java.util.Map;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;

/** What a job is run with: {@code --name value} as for the job in Rust, and {@code -Dkey=value} for Flink. */
public final class Arguments implements Serializable {
    private final Map<String, String> values = new HashMap<>();
    private final HashMap<String, String> settings = new HashMap<>();

    public Arguments(String[] words) {
        for (int i = 0; i < words.length; i++) {
            String word = words[i];
            if (word.startsWith("-D")) {
                String[] pair = word.substring(2).split("=", 2);
                settings.put(pair[0], pair[1]);
            } else if (word.startsWith("--") && i + 1 < words.length) {
                values.put(word.substring(2), words[++i]);
            } else {
                throw new IllegalArgumentException("expected --name value or -Dkey=value, not " + word);
            }
        }
    }

    public long number(String name, long otherwise) {
        String value = values.get(name);
        return value == null ? otherwise : (long) Double.parseDouble(value.replace("_", ""));
    }

    public String text(String name) {
        return values.get(name);
    }

    public int sources() {
        return (int) number("sources", 2);
    }

    public Marks marks() {
        String directory = values.get("marks");
        return new Marks(directory == null ? null : Path.of(directory).toString());
    }

    /** With object reuse: records are not copied between the operators of a chain. */
    public StreamExecutionEnvironment environment() {
        Configuration configuration = Configuration.fromMap(settings);
        StreamExecutionEnvironment environment = StreamExecutionEnvironment.getExecutionEnvironment(configuration);
        environment.configure(configuration);
        environment.getConfig().enableObjectReuse();
        return environment;
    }
}
