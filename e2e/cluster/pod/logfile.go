package pod

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"
)

// longestLogLine is where a line is split, as container runtimes do.
const longestLogLine = 16 * 1024

// logFile writes a container's output in the format of the CRI:
// "<time> <stream> <P|F> <line>".
type logFile struct {
	mu   sync.Mutex
	file *os.File
}

// createLog opens the log of the attempt-th run of a container.
func createLog(dir string, attempt int) (*logFile, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("creating the log folder: %w", err)
	}
	file, err := os.Create(logPath(dir, attempt))
	if err != nil {
		return nil, fmt.Errorf("creating the log: %w", err)
	}
	return &logFile{file: file}, nil
}

func logPath(dir string, attempt int) string {
	return filepath.Join(dir, strconv.Itoa(attempt)+".log")
}

// copy writes all lines of a stream until it ends.
func (l *logFile) copy(stream string, input io.Reader) error {
	reader := bufio.NewReaderSize(input, longestLogLine)
	for {
		line, err := reader.ReadSlice('\n')
		if len(line) > 0 {
			if writeErr := l.write(stream, line); writeErr != nil {
				return writeErr
			}
		}
		switch {
		case err == nil, errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF):
			return nil
		default:
			return fmt.Errorf("reading %s: %w", stream, err)
		}
	}
}

func (l *logFile) write(stream string, line []byte) error {
	tag, ending := "F", ""
	if line[len(line)-1] != '\n' {
		tag, ending = "P", "\n"
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	_, err := fmt.Fprintf(l.file, "%s %s %s %s%s", time.Now().Format(time.RFC3339Nano), stream, tag, line, ending)
	if err != nil {
		return fmt.Errorf("writing the log: %w", err)
	}
	return nil
}

func (l *logFile) close() error { return l.file.Close() }
