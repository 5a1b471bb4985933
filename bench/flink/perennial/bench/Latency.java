package perennial.bench;

/** See latency.rs. */
public final class Latency {
    public static void main(String[] words) throws Exception {
        Arguments arguments = new Arguments(words);
        KeyedCount.run(arguments, EventSource.stamped(arguments), new Count.Timed(arguments.marks()));
    }
}
