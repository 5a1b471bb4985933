package perennial.bench.nexmark;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.lang.invoke.MethodHandles;
import java.lang.invoke.VarHandle;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Collection;
import java.util.List;
import java.util.concurrent.CompletableFuture;
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
import org.apache.flink.table.data.GenericRowData;
import org.apache.flink.table.data.RowData;
import org.apache.flink.table.data.StringData;
import org.apache.flink.table.data.TimestampData;
import org.apache.flink.table.runtime.typeutils.InternalTypeInfo;
import org.apache.flink.table.types.logical.BigIntType;
import org.apache.flink.table.types.logical.IntType;
import org.apache.flink.table.types.logical.LogicalType;
import org.apache.flink.table.types.logical.RowType;
import org.apache.flink.table.types.logical.TimestampType;
import org.apache.flink.table.types.logical.VarCharType;
import perennial.bench.Arguments;
import perennial.bench.Event;
import perennial.bench.Marks;

/**
 * The file of format.rs, dealt out to lanes as in source.rs: block b of 1024 records belongs to lane b mod lanes. A block is read into an
 * array of its own, in which texts stay where they are.
 */
final class EventFile implements Source<RowData, NumberSequenceSplit, Collection<NumberSequenceSplit>>, ResultTypeQueryable<RowData> {
    private static final int RECORD_BYTES = 64;
    private static final int BLOCK_RECORDS = 1024;
    private static final long PROGRESS_RECORDS = 1 << 18;
    private static final byte[] MAGIC = "PNEXMARK".getBytes(StandardCharsets.US_ASCII);
    private static final VarHandle LONG = MethodHandles.byteArrayViewVarHandle(long[].class, ByteOrder.LITTLE_ENDIAN);
    private static final VarHandle INT = MethodHandles.byteArrayViewVarHandle(int[].class, ByteOrder.LITTLE_ENDIAN);
    private static final NumberSequenceSource SERIALIZERS = new NumberSequenceSource(0, 1);

    private static final RowType PERSON = RowType.of(
            new LogicalType[] {new BigIntType(), text(), text(), text()}, new String[] {"id", "name", "city", "state"});
    private static final RowType AUCTION = RowType.of(
            new LogicalType[] {new BigIntType(), text(), new BigIntType(), new TimestampType(3), new BigIntType(), new BigIntType()},
            new String[] {"id", "itemName", "initialBid", "expires", "seller", "category"});
    private static final RowType BID = RowType.of(
            new LogicalType[] {new BigIntType(), new BigIntType(), new BigIntType(), text()},
            new String[] {"auction", "bidder", "price", "extra"});
    private static final RowType EVENT = RowType.of(
            new LogicalType[] {new IntType(), PERSON, AUCTION, BID, new TimestampType(3)},
            new String[] {"event_type", "person", "auction", "bid", "etime"});

    private static VarCharType text() {
        return new VarCharType(VarCharType.MAX_LENGTH);
    }

    private final String path;
    private final long events;
    private final int lanes;
    private final Marks marks;

    EventFile(Arguments arguments) throws IOException {
        path = arguments.text("input");
        lanes = arguments.sources();
        marks = arguments.marks();
        try (FileChannel file = FileChannel.open(Path.of(path))) {
            byte[] header = read(file, 0, 1);
            for (int i = 0; i < MAGIC.length; i++) {
                if (header[i] != MAGIC[i]) {
                    throw new IOException(path + " is not a file of Nexmark events: generate it again");
                }
            }
            if ((int) INT.get(header, 8) != 1 || (int) INT.get(header, 12) != RECORD_BYTES) {
                throw new IOException(path + " is of another version: generate it again");
            }
            events = Math.min((long) LONG.get(header, 16), arguments.number("events", Long.MAX_VALUE));
        }
    }

    /** Records from one on; the header has a record's length. */
    private static byte[] read(FileChannel file, long first, int records) throws IOException {
        ByteBuffer bytes = ByteBuffer.allocate(records * RECORD_BYTES);
        long at = first * RECORD_BYTES;
        while (bytes.hasRemaining()) {
            int count = file.read(bytes, at + bytes.position());
            if (count < 0) {
                throw new IOException("the file ends at " + (at + bytes.position()) + ": generate it again");
            }
        }
        return bytes.array();
    }

    /** As that of {@code Event} in event.rs. */
    static long digest(RowData event) {
        int kind = event.getInt(0);
        RowData inner = event.getRow(1 + kind, kind == 1 ? 6 : 4);
        return Event.mix(Event.mix(inner.getLong(0)) ^ event.getTimestamp(4, 3).getMillisecond());
    }

    private static RowData decode(byte[] bytes, int at) {
        TimestampData time = TimestampData.fromEpochMillis((long) LONG.get(bytes, at + 8));
        long first = (long) LONG.get(bytes, at + 16);
        GenericRowData event = new GenericRowData(5);
        event.setField(4, time);
        switch (bytes[at]) {
            case 0: {
                GenericRowData person = new GenericRowData(4);
                person.setField(0, first);
                person.setField(1, StringData.fromBytes(bytes, at + 24, bytes[at + 1]));
                person.setField(2, StringData.fromBytes(bytes, at + 40, bytes[at + 2]));
                person.setField(3, StringData.fromBytes(bytes, at + 56, bytes[at + 3]));
                event.setField(0, 0);
                event.setField(1, person);
                return event;
            }
            case 1: {
                GenericRowData auction = new GenericRowData(6);
                auction.setField(0, first);
                auction.setField(1, StringData.fromBytes(bytes, at + 48, bytes[at + 1]));
                auction.setField(2, (long) LONG.get(bytes, at + 40));
                auction.setField(3, TimestampData.fromEpochMillis((long) LONG.get(bytes, at + 32)));
                auction.setField(4, (long) LONG.get(bytes, at + 24));
                auction.setField(5, (long) (int) INT.get(bytes, at + 4));
                event.setField(0, 1);
                event.setField(2, auction);
                return event;
            }
            case 2: {
                GenericRowData bid = new GenericRowData(4);
                bid.setField(0, first);
                bid.setField(1, (long) LONG.get(bytes, at + 24));
                bid.setField(2, (long) LONG.get(bytes, at + 32));
                bid.setField(3, StringData.fromBytes(bytes, at + 40, bytes[at + 1]));
                event.setField(0, 2);
                event.setField(3, bid);
                return event;
            }
            default:
                throw new IllegalStateException("a record of kind " + bytes[at] + "; the file is damaged: generate it again");
        }
    }

    @Override
    public Boundedness getBoundedness() {
        return Boundedness.BOUNDED;
    }

    @Override
    public TypeInformation<RowData> getProducedType() {
        return InternalTypeInfo.of(EVENT);
    }

    /** Records of a lane. */
    private long records(int lane) {
        long whole = events / BLOCK_RECORDS;
        long blocks = whole / lanes + (lane < whole % lanes ? 1 : 0);
        long rest = whole % lanes == lane ? events % BLOCK_RECORDS : 0;
        return blocks * BLOCK_RECORDS + rest;
    }

    @Override
    public SplitEnumerator<NumberSequenceSplit, Collection<NumberSequenceSplit>> createEnumerator(
            SplitEnumeratorContext<NumberSequenceSplit> context) {
        List<NumberSequenceSplit> splits = new ArrayList<>();
        for (int lane = 0; lane < lanes; lane++) {
            if (records(lane) > 0) {
                splits.add(new NumberSequenceSplit(String.valueOf(lane), 0, records(lane) - 1));
            }
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
    public SourceReader<RowData, NumberSequenceSplit> createReader(SourceReaderContext context) throws IOException {
        return new Reader(context);
    }

    private final class Reader implements SourceReader<RowData, NumberSequenceSplit> {
        /** Records between two looks at the mailbox. */
        private static final int RECORDS_OF_A_POLL = 128;

        private final SourceReaderContext context;
        private final FileChannel file = FileChannel.open(Path.of(path));
        private final ArrayDeque<NumberSequenceSplit> waiting = new ArrayDeque<>();
        private NumberSequenceSplit split;
        private long lane;
        private long index;
        private long last;
        private byte[] block;
        /** Index of the block's first record. */
        private long blockBegin = -1;
        private boolean noMoreSplits;
        private long count;
        private long nextMark;
        private CompletableFuture<Void> available = new CompletableFuture<>();

        Reader(SourceReaderContext context) throws IOException {
            this.context = context;
        }

        @Override
        public void start() {
            marks.put("reader", "subtask=" + context.getIndexOfSubtask());
            context.sendSplitRequest();
        }

        @Override
        public InputStatus pollNext(ReaderOutput<RowData> out) {
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
                blockBegin = -1;
            }
            if (index <= last) {
                emit(out);
            }
            if (marks.areWanted() && (count >= nextMark || index > last)) {
                nextMark = count + PROGRESS_RECORDS;
                marks.put("progress", "subtask=" + context.getIndexOfSubtask() + " count=" + count);
            }
            if (index > last) {
                split = null;
                if (waiting.isEmpty() && !noMoreSplits) {
                    context.sendSplitRequest();
                }
            }
            return InputStatus.MORE_AVAILABLE;
        }

        private void emit(ReaderOutput<RowData> out) {
            long begin = index - index % BLOCK_RECORDS;
            if (begin != blockBegin) {
                long first = (begin / BLOCK_RECORDS * lanes + lane) * BLOCK_RECORDS;
                try {
                    block = read(file, first + 1, (int) Math.min(BLOCK_RECORDS, last + 1 - begin));
                } catch (IOException e) {
                    throw new UncheckedIOException(e);
                }
                blockBegin = begin;
            }
            long end = Math.min(Math.min(index + RECORDS_OF_A_POLL, begin + BLOCK_RECORDS), last + 1);
            count += end - index;
            for (; index < end; index++) {
                int at = (int) (index - begin) * RECORD_BYTES;
                out.collect(decode(block, at), (long) LONG.get(block, at + 8));
            }
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
        public void close() throws IOException {
            file.close();
        }
    }
}
