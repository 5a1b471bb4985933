package perennial.bench.nexmark;

import java.util.List;
import java.util.Map;
import org.apache.flink.api.common.eventtime.WatermarkStrategy;
import org.apache.flink.streaming.api.datastream.DataStream;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.table.api.DataTypes;
import org.apache.flink.table.api.Schema;
import org.apache.flink.table.api.Table;
import org.apache.flink.table.api.bridge.java.StreamTableEnvironment;
import org.apache.flink.table.data.RowData;
import org.apache.flink.table.types.DataType;
import perennial.bench.Arguments;
import perennial.bench.DigestSink;

/**
 * The queries of nexmark/mod.rs in SQL, word for word as documented there, over the same file. Without the mini-batches that Nexmark sets for
 * Flink: with state on the heap three runs each showed no gain (q3 3.5-4.5 million events/s with them and 2.9-5.7 without, q4 0.13-0.33 and
 * 0.13-0.41).
 */
public final class Nexmark {
    private static final String HOT_BIDS = "FROM TABLE(HOP(TABLE bid, DESCRIPTOR(etime), INTERVAL '2' SECOND, INTERVAL '10' SECOND))";

    private static final Map<String, String> QUERIES = Map.of(
            "q0", "SELECT auction, bidder, price, etime, extra FROM bid",
            "q1", "SELECT auction, bidder, 0.908 * price AS price, etime, extra FROM bid",
            "q2", "SELECT auction, price FROM bid WHERE MOD(auction, 123) = 0",
            "q3", "SELECT P.name, P.city, P.state, A.id FROM auction A INNER JOIN person P ON A.seller = P.id"
                    + " WHERE A.category = 10 AND (P.state = 'or' OR P.state = 'id' OR P.state = 'ca')",
            "q4", "SELECT Q.category, AVG(Q.final)"
                    + " FROM (SELECT MAX(B.price) AS final, A.category FROM auction A, bid B"
                    + " WHERE A.id = B.auction AND B.etime BETWEEN A.etime AND A.expires"
                    + " GROUP BY A.id, A.category) Q"
                    + " GROUP BY Q.category",
            "q5", "SELECT AuctionBids.auction, AuctionBids.num"
                    + " FROM (SELECT auction, COUNT(*) AS num, window_start AS starttime, window_end AS endtime " + HOT_BIDS
                    + " GROUP BY auction, window_start, window_end) AS AuctionBids"
                    + " JOIN (SELECT MAX(CountBids.num) AS maxn, CountBids.starttime, CountBids.endtime"
                    + " FROM (SELECT COUNT(*) AS num, window_start AS starttime, window_end AS endtime " + HOT_BIDS
                    + " GROUP BY auction, window_start, window_end) AS CountBids"
                    + " GROUP BY CountBids.starttime, CountBids.endtime) AS MaxBids"
                    + " ON AuctionBids.starttime = MaxBids.starttime AND AuctionBids.endtime = MaxBids.endtime AND AuctionBids.num >= MaxBids.maxn",
            "q7", "SELECT B.auction, B.bidder, B.price, B.etime, B.extra FROM bid B"
                    + " JOIN (SELECT MAX(price) AS maxprice, window_end AS endtime"
                    + " FROM TABLE(TUMBLE(TABLE bid, DESCRIPTOR(etime), INTERVAL '10' SECOND))"
                    + " GROUP BY window_start, window_end) B1"
                    + " ON B.price = B1.maxprice"
                    + " WHERE B.etime >= B1.endtime - INTERVAL '10' SECOND AND B.etime < B1.endtime",
            "q8", "SELECT P.id, P.name, P.starttime"
                    + " FROM (SELECT id, name, window_start AS starttime, window_end AS endtime"
                    + " FROM TABLE(TUMBLE(TABLE person, DESCRIPTOR(etime), INTERVAL '10' SECOND))"
                    + " GROUP BY id, name, window_start, window_end) P"
                    + " JOIN (SELECT seller, window_start AS starttime, window_end AS endtime"
                    + " FROM TABLE(TUMBLE(TABLE auction, DESCRIPTOR(etime), INTERVAL '10' SECOND))"
                    + " GROUP BY seller, window_start, window_end) A"
                    + " ON P.id = A.seller AND P.starttime = A.starttime AND P.endtime = A.endtime",
            "q11", "SELECT B.bidder, COUNT(*) AS bid_count,"
                    + " SESSION_START(B.etime, INTERVAL '10' SECOND) AS starttime, SESSION_END(B.etime, INTERVAL '10' SECOND) AS endtime"
                    + " FROM bid B GROUP BY B.bidder, SESSION(B.etime, INTERVAL '10' SECOND)");

    private static final String VIEW = "CREATE TEMPORARY VIEW %s AS SELECT %s, etime FROM events WHERE event_type = %d";

    public static void main(String[] words) throws Exception {
        Arguments arguments = new Arguments(words);
        StreamExecutionEnvironment environment = arguments.environment();
        DataStream<RowData> events = environment
                .fromSource(new EventFile(arguments), WatermarkStrategy.noWatermarks(), "events")
                .setParallelism(arguments.sources());
        String name = arguments.text("query");
        if (name.equals("decode")) {
            events.sinkTo(new DigestSink<>(EventFile::digest, arguments.marks())).setParallelism(arguments.sources());
            environment.execute("nexmark");
            return;
        }
        String query = QUERIES.get(name);
        if (query == null) {
            throw new IllegalArgumentException("no query " + name);
        }
        StreamTableEnvironment tables = StreamTableEnvironment.create(environment);
        tables.createTemporaryView("events", tables.fromDataStream(events, Schema.newBuilder()
                .column("event_type", DataTypes.INT())
                .column("person", "ROW<id BIGINT, name STRING, city STRING, state STRING>")
                .column("auction", "ROW<id BIGINT, itemName STRING, initialBid BIGINT, expires TIMESTAMP(3), seller BIGINT, category BIGINT>")
                .column("bid", "ROW<auction BIGINT, bidder BIGINT, price BIGINT, extra STRING>")
                .column("etime", DataTypes.TIMESTAMP(3))
                .watermark("etime", "etime - INTERVAL '4' SECOND")
                .build()));
        tables.executeSql(VIEW.formatted("person", "person.id, person.name, person.city, person.state", 0));
        tables.executeSql(VIEW.formatted("auction",
                "auction.id, auction.itemName, auction.initialBid, auction.expires, auction.seller, auction.category", 1));
        tables.executeSql(VIEW.formatted("bid", "bid.auction, bid.bidder, bid.price, bid.extra", 2));
        Table answer = tables.sqlQuery(query);
        DataType row = answer.getResolvedSchema().toPhysicalRowDataType();
        List<DataType> columns = row.getChildren();
        if (name.equals("q4")) {
            // Its rows change.
            tables.toChangelogStream(answer).sinkTo(new DigestSink<>(new RowDigest.OfRow(), arguments.marks()));
        } else {
            // Without a conversion: the rows are those of the planner.
            DataStream<RowData> rows = tables.toDataStream(answer, row.bridgedTo(RowData.class));
            rows.sinkTo(new DigestSink<>(new RowDigest(answer.getResolvedSchema().getColumnNames(), columns), arguments.marks()));
        }
        environment.execute("nexmark");
    }

    private Nexmark() {}
}
