package perennial.bench.nexmark;

import java.util.List;
import java.util.Map;
import org.apache.flink.table.data.RowData;
import org.apache.flink.table.types.DataType;
import org.apache.flink.table.types.logical.DecimalType;
import org.apache.flink.table.types.logical.LogicalType;
import org.apache.flink.table.types.logical.TimestampType;
import org.apache.flink.table.types.logical.VarCharType;
import org.apache.flink.types.Row;
import org.apache.flink.types.RowKind;
import perennial.bench.DigestSink;
import perennial.bench.Event;

/** Mixes the columns of a row, as {@code Mixed} in event.rs does. */
final class RowDigest implements DigestSink.Digest<RowData> {
    /** The room of texts in the file, in words of 8 bytes. */
    private static final Map<String, Integer> WORDS = Map.of("name", 2, "city", 2, "state", 1, "extra", 3);

    private enum Kind {
        NUMBER,
        TIME,
        THOUSANDTHS,
        TEXT
    }

    private final Kind[] kinds;
    private final int[] details;

    RowDigest(List<String> names, List<DataType> columns) {
        kinds = new Kind[columns.size()];
        details = new int[kinds.length];
        for (int i = 0; i < kinds.length; i++) {
            LogicalType type = columns.get(i).getLogicalType();
            if (type instanceof VarCharType) {
                kinds[i] = Kind.TEXT;
                details[i] = WORDS.get(names.get(i));
            } else if (type instanceof TimestampType) {
                kinds[i] = Kind.TIME;
                details[i] = ((TimestampType) type).getPrecision();
            } else if (type instanceof DecimalType) {
                kinds[i] = Kind.THOUSANDTHS;
                details[i] = ((DecimalType) type).getPrecision();
                if (((DecimalType) type).getScale() != 3) {
                    throw new IllegalArgumentException("expected thousandths: " + type);
                }
            } else {
                kinds[i] = Kind.NUMBER;
            }
        }
    }

    @Override
    public long of(RowData row) {
        long mixed = 0;
        for (int i = 0; i < kinds.length; i++) {
            switch (kinds[i]) {
                case NUMBER:
                    mixed = Event.mix(mixed ^ row.getLong(i));
                    break;
                case TIME:
                    mixed = Event.mix(mixed ^ row.getTimestamp(i, details[i]).getMillisecond());
                    break;
                case THOUSANDTHS:
                    mixed = Event.mix(mixed ^ row.getDecimal(i, details[i], 3).toBigDecimal().unscaledValue().longValueExact());
                    break;
                case TEXT:
                    mixed = text(mixed, row.getString(i).toBytes(), details[i]);
                    break;
            }
        }
        return mixed;
    }

    @Override
    public boolean isTakenBack(RowData row) {
        return isTakenBack(row.getRowKind());
    }

    private static boolean isTakenBack(RowKind kind) {
        return kind == RowKind.DELETE || kind == RowKind.UPDATE_BEFORE;
    }

    private static long text(long mixed, byte[] bytes, int words) {
        for (int word = 0; word < words; word++) {
            long bits = 0;
            for (int i = Math.min(bytes.length, word * 8 + 8) - 1; i >= word * 8; i--) {
                bits = bits << 8 | (bytes[i] & 0xff);
            }
            mixed = Event.mix(mixed ^ bits);
        }
        return mixed;
    }

    /** Of a row with numbers only, from an answer that changes. */
    static final class OfRow implements DigestSink.Digest<Row> {
        @Override
        public long of(Row row) {
            long mixed = 0;
            for (int i = 0; i < row.getArity(); i++) {
                mixed = Event.mix(mixed ^ ((Number) row.getField(i)).longValue());
            }
            return mixed;
        }

        @Override
        public boolean isTakenBack(Row row) {
            return RowDigest.isTakenBack(row.getKind());
        }
    }
}
