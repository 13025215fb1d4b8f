package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"time"
)

const countInterval = 20 * time.Millisecond

// entry is one line of the log: a sequence number and the wall clock in
// nanoseconds, which shows how long the guest stood still.
type entry struct {
	seq   uint64
	stamp int64
}

func (e entry) line() []byte {
	text := fmt.Sprintf("%d %d", e.seq, e.stamp)
	return fmt.Appendf(nil, "%s %08x\n", text, crc32.ChecksumIEEE([]byte(text)))
}

// parseEntry returns false for a line that was not written by entry.line, or not
// wholly.
func parseEntry(line []byte) (entry, bool) {
	var e entry
	if _, err := fmt.Sscanf(string(line), "%d %d ", &e.seq, &e.stamp); err != nil {
		return entry{}, false
	}
	return e, bytes.Equal(line, e.line())
}

// count goes on after the last valid line, so the sequence has no gap even over
// a power cut; every line is on disk before the next one is made.
func count(ctx context.Context, path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	last, err := recoverLog(f)
	if err != nil {
		return err
	}
	tick := time.NewTicker(countInterval)
	defer tick.Stop()
	for {
		// Never backwards, whatever the clock does.
		last = entry{last.seq + 1, max(last.stamp, time.Now().UnixNano())}
		if _, err := f.Write(last.line()); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// recoverLog cuts off what follows the last valid line and leaves the file
// offset there.
func recoverLog(f *os.File) (entry, error) {
	var last entry
	var end int64
	r := bufio.NewReader(f)
	for {
		line, err := r.ReadBytes('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return entry{}, err
		}
		e, ok := parseEntry(line)
		if !ok {
			break
		}
		last, end = e, end+int64(len(line))
	}
	if err := f.Truncate(end); err != nil {
		return entry{}, err
	}
	_, err := f.Seek(end, io.SeekStart)
	return last, err
}

// verify accepts a last line without its end, as it may be read from a running
// guest.
func verify(w io.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	var first, last entry
	var gap int64
	r := bufio.NewReader(f)
	for n := 1; ; n++ {
		line, err := r.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		e, ok := parseEntry(line)
		switch {
		case !ok:
			return fmt.Errorf("%s:%d: bad line %q", path, n, line)
		case n == 1:
			first = e
		case e.seq != last.seq+1:
			return fmt.Errorf("%s:%d: number %d follows %d", path, n, e.seq, last.seq)
		default:
			gap = max(gap, e.stamp-last.stamp)
		}
		last = e
	}
	if last.seq == 0 {
		return fmt.Errorf("%s: empty", path)
	}
	_, err = fmt.Fprintf(w, "first=%d last=%d max_gap_ms=%d\n", first.seq, last.seq, gap/int64(time.Millisecond))
	return err
}
