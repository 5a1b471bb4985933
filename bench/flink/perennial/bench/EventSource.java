package perennial.bench;

import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Collection;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;
import org.apache.flink.api.common.typeinfo.TypeInformation;
import org.apache.flink.api.connector.source.Boundedness;
import org.apache.flink.api.connector.source.ReaderOutput;
import org.apache.flink.api.connector.source.Source;
import org.apache.flink.api.connector.source.SourceReader;
import org.apache.flink.api.connector.source.SourceReaderContext;
import org.apache.flink.api.connector.source.SplitEnumerator;
import org.apache.flink.api.connector.source.SplitEnumeratorContext;
import org.apache.flink.api.connector.source.lib.NumberSequenceSource;
import org.apache.flink.api.connector.source.lib.NumberSequenceSource.NumberSequenceSplit;
import org.apache.flink.api.connector.source.lib.util.IteratorSourceEnumerator;
import org.apache.flink.api.java.typeutils.ResultTypeQueryable;
import org.apache.flink.core.io.InputStatus;
import org.apache.flink.core.io.SimpleVersionedSerializer;

/**
 * The events of input.rs. Lane k of L has the sequence numbers k, L + k, 2 L + k, … and is one split, whose position is checkpointed. A
 * poll emits many records, which is faster than Flink's own DataGeneratorSource with one.
 */
public final class EventSource implements Source<Event, NumberSequenceSplit, Collection<NumberSequenceSplit>>, ResultTypeQueryable<Event> {
    private static final int RECORDS_OF_A_POLL = 128;
    private static final long PROGRESS_RECORDS = 1 << 18;
    private static final NumberSequenceSource SERIALIZERS = new NumberSequenceSource(0, 1);

    private static final ScheduledExecutorService TIMER = Executors.newSingleThreadScheduledExecutor(runnable -> {
        Thread thread = new Thread(runnable, "pacing");
        thread.setDaemon(true);
        return thread;
    });

    private final long keys;
    private final long touched;
    private final long prefill;
    private final long events;
    private final double rate;
    private final int lanes;
    private final boolean isStamped;
    private final Marks marks;

    private EventSource(Arguments arguments, boolean isStamped) {
        keys = arguments.number("keys", 1000);
        touched = arguments.number("touched", keys);
        prefill = arguments.number("prefill", 0);
        events = arguments.number("events", 1L << 60);
        rate = arguments.number("rate", 0);
        lanes = arguments.sources();
        marks = arguments.marks();
        this.isStamped = isStamped;
    }

    public static EventSource of(Arguments arguments) {
        return new EventSource(arguments, false);
    }

    /** Events with the monotonic clock as their time. */
    public static EventSource stamped(Arguments arguments) {
        return new EventSource(arguments, true);
    }

    @Override
    public Boundedness getBoundedness() {
        return Boundedness.BOUNDED;
    }

    @Override
    public TypeInformation<Event> getProducedType() {
        return Event.TYPE;
    }

    @Override
    public SplitEnumerator<NumberSequenceSplit, Collection<NumberSequenceSplit>> createEnumerator(
            SplitEnumeratorContext<NumberSequenceSplit> context) {
        List<NumberSequenceSplit> splits = new ArrayList<>();
        for (int lane = 0; lane < lanes; lane++) {
            splits.add(new NumberSequenceSplit(String.valueOf(lane), 0, (events - lane + lanes - 1) / lanes - 1));
        }
        return new IteratorSourceEnumerator<>(context, splits);
    }

    @Override
    public SplitEnumerator<NumberSequenceSplit, Collection<NumberSequenceSplit>> restoreEnumerator(
            SplitEnumeratorContext<NumberSequenceSplit> context, Collection<NumberSequenceSplit> splits) {
        return new IteratorSourceEnumerator<>(context, splits);
    }

    @Override
    public SimpleVersionedSerializer<NumberSequenceSplit> getSplitSerializer() {
        return SERIALIZERS.getSplitSerializer();
    }

    @Override
    public SimpleVersionedSerializer<Collection<NumberSequenceSplit>> getEnumeratorCheckpointSerializer() {
        return SERIALIZERS.getEnumeratorCheckpointSerializer();
    }

    @Override
    public SourceReader<Event, NumberSequenceSplit> createReader(SourceReaderContext context) {
        return new Reader(context);
    }

    private final class Reader implements SourceReader<Event, NumberSequenceSplit> {
        private final SourceReaderContext context;
        private final ArrayDeque<NumberSequenceSplit> waiting = new ArrayDeque<>();
        private final Event event = new Event();
        private NumberSequenceSplit split;
        private long lane;
        private long index;
        private long last;
        private boolean noMoreSplits;
        private long count;
        private long nextMark;
        private boolean isPrefilled;
        /** Pacing begins with the first record after the prefill, or after a restore. */
        private long paceBegin;
        private long paceIndex;
        private CompletableFuture<Void> available = new CompletableFuture<>();

        Reader(SourceReaderContext context) {
            this.context = context;
        }

        @Override
        public void start() {
            marks.put("reader", "subtask=" + context.getIndexOfSubtask());
            context.sendSplitRequest();
        }

        private void mark(String what) {
            marks.put(what, "subtask=" + context.getIndexOfSubtask() + " count=" + count);
        }

        @Override
        public InputStatus pollNext(ReaderOutput<Event> out) {
            if (split == null) {
                split = waiting.poll();
                if (split == null) {
                    if (noMoreSplits) {
                        return InputStatus.END_OF_INPUT;
                    }
                    available = new CompletableFuture<>();
                    return InputStatus.NOTHING_AVAILABLE;
                }
                lane = Long.parseLong(split.splitId());
                index = split.from();
                last = split.to();
                paceBegin = 0;
            }
            long end = Math.min(index + RECORDS_OF_A_POLL, last + 1);
            if (rate > 0 && index * lanes + lane >= prefill) {
                long due = due();
                if (due <= index) {
                    CompletableFuture<Void> later = new CompletableFuture<>();
                    available = later;
                    TIMER.schedule(() -> later.complete(null), 1, TimeUnit.MILLISECONDS);
                    return InputStatus.NOTHING_AVAILABLE;
                }
                end = Math.min(end, due);
            }
            count += end - index;
            for (; index < end; index++) {
                emit(index * lanes + lane, out);
            }
            if (marks.areWanted()) {
                if (!isPrefilled && count >= prefill / lanes) {
                    isPrefilled = true;
                    mark("prefilled");
                }
                if (count >= nextMark || index > last) {
                    nextMark = count + PROGRESS_RECORDS;
                    mark("progress");
                }
            }
            if (index > last) {
                split = null;
                if (waiting.isEmpty() && !noMoreSplits) {
                    context.sendSplitRequest();
                }
            }
            return InputStatus.MORE_AVAILABLE;
        }

        /** Index of the first record that is not due yet. */
        private long due() {
            long now = System.nanoTime();
            if (paceBegin == 0) {
                paceBegin = now;
                paceIndex = index;
            }
            return paceIndex + (long) ((now - paceBegin) * 1e-9 * rate / lanes);
        }

        private void emit(long sequence, ReaderOutput<Event> out) {
            if (sequence < prefill) {
                event.user = sequence % keys;
                event.time = sequence / 100;
                event.isAbnormal = true;
            } else {
                event.become(sequence, touched);
            }
            long time = event.time;
            if (isStamped) {
                event.time = System.nanoTime();
            }
            out.collect(event, time);
        }

        @Override
        public List<NumberSequenceSplit> snapshotState(long checkpoint) {
            List<NumberSequenceSplit> splits = new ArrayList<>(waiting);
            if (split != null) {
                splits.add(new NumberSequenceSplit(split.splitId(), index, last));
            }
            return splits;
        }

        @Override
        public CompletableFuture<Void> isAvailable() {
            return available;
        }

        @Override
        public void addSplits(List<NumberSequenceSplit> splits) {
            waiting.addAll(splits);
            available.complete(null);
        }

        @Override
        public void notifyNoMoreSplits() {
            noMoreSplits = true;
            available.complete(null);
        }

        @Override
        public void close() {}
    }
}
