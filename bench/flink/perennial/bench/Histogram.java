package perennial.bench;

/** Times in nanoseconds, at most 3.2 % too low; what comes in the first seconds is warm-up. See latency.rs. */
final class Histogram {
    private static final long WARM_UP_NS = 3_000_000_000L;
    private static final int SUB_BUCKETS = 64;

    private final long[] buckets = new long[64 * SUB_BUCKETS];
    private long count;
    private long max;
    private long begin = -1;

    void add(long now, long time) {
        if (begin < 0) {
            begin = now;
        }
        if (now < begin + WARM_UP_NS) {
            return;
        }
        long positive = Math.max(time, 0);
        int shift = Math.max(0, 64 - Long.numberOfLeadingZeros(positive | 1) - 6);
        buckets[shift * SUB_BUCKETS + (int) (positive >>> shift)]++;
        count++;
        max = Math.max(max, positive);
    }

    long count() {
        return count;
    }

    private long percentile(double share) {
        long rank = (long) Math.ceil(count * share);
        long seen = 0;
        for (int bucket = 0; bucket < buckets.length; bucket++) {
            seen += buckets[bucket];
            if (seen >= rank && buckets[bucket] > 0) {
                return (long) (bucket % SUB_BUCKETS) << (bucket / SUB_BUCKETS);
            }
        }
        return max;
    }

    @Override
    public String toString() {
        return "count=" + count + " p50_ns=" + percentile(0.5) + " p99_ns=" + percentile(0.99) + " p999_ns=" + percentile(0.999) + " max_ns=" + max;
    }
}
