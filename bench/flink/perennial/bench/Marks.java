package perennial.bench;

import java.io.IOException;
import java.io.Serializable;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.time.Instant;
import java.time.temporal.ChronoUnit;

/** What a job says of itself while it runs, in the lines of marks.rs. */
public final class Marks implements Serializable {
    private final String directory;

    public Marks(String directory) {
        this.directory = directory;
    }

    public boolean areWanted() {
        return directory != null;
    }

    public void put(String what, String details) {
        if (directory == null) {
            return;
        }
        long pid = ProcessHandle.current().pid();
        long now = ChronoUnit.MICROS.between(Instant.EPOCH, Instant.now());
        String line = now + " " + what + " " + details + " pid=" + pid + "\n";
        synchronized (Marks.class) {
            try {
                Files.writeString(Path.of(directory, "marks-" + pid), line, StandardOpenOption.CREATE, StandardOpenOption.APPEND);
            } catch (IOException e) {
                throw new UncheckedIOException(e);
            }
        }
    }
}
