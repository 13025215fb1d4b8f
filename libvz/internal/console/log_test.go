package console

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLogKeepsTheNewest(t *testing.T) {
	dir := t.TempDir()
	l, err := OpenLog(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var all bytes.Buffer
	for i := range 40000 {
		line := fmt.Sprintf("line %d of many\n", i)
		all.WriteString(line)
		if _, err := l.Write([]byte(line)); err != nil {
			t.Fatal(err)
		}
	}
	var kept bytes.Buffer
	if err := CopyLog(context.Background(), &kept, dir, -1, false); err != nil {
		t.Fatal(err)
	}
	if kept.Len() < generation || kept.Len() > MaxLog {
		t.Errorf("%d bytes are kept, want %d to %d", kept.Len(), generation, MaxLog)
	}
	if !bytes.HasSuffix(all.Bytes(), kept.Bytes()) {
		t.Error("what is kept is not the end of what was written")
	}
	var size int64
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		st, _ := e.Info()
		size += st.Size()
	}
	if size > MaxLog {
		t.Errorf("%d bytes on disk, want %d at most", size, MaxLog)
	}
	kept.Reset()
	if err := CopyLog(context.Background(), &kept, dir, 2, false); err != nil {
		t.Fatal(err)
	}
	if want := "line 39998 of many\nline 39999 of many\n"; kept.String() != want {
		t.Errorf("the last two lines are %q, want %q", kept.String(), want)
	}
}

func TestLogGoesOn(t *testing.T) {
	dir := t.TempDir()
	for _, s := range []string{"one\n", "two\n"} {
		l, err := OpenLog(dir)
		if err != nil {
			t.Fatal(err)
		}
		l.Write([]byte(s)) //nolint:errcheck // seen below
		l.Close()
	}
	var kept bytes.Buffer
	if err := CopyLog(context.Background(), &kept, dir, -1, false); err != nil || kept.String() != "one\ntwo\n" {
		t.Errorf("kept %q, %v", kept.String(), err)
	}
	if err := CopyLog(context.Background(), &kept, t.TempDir(), -1, true); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a log: %v", err)
	}
}

// Every byte comes through to a follower that is fast enough, across turns.
func TestFollow(t *testing.T) {
	dir := t.TempDir()
	l, err := OpenLog(dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := CopyLog(ctx, w, dir, -1, true)
		w.Close()
		done <- err
	}()
	line := []byte(strings.Repeat("x", 1023) + "\n")
	got := make([]byte, len(line))
	for range 1000 { // seven generations
		if _, err := l.Write(line); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(r, got); err != nil || !bytes.Equal(got, line) {
			t.Fatalf("followed %q, %v", got, err)
		}
	}
	l.Close()
	cancel()
	rest, _ := io.ReadAll(r)
	if err := <-done; err != nil || len(rest) > 0 {
		t.Errorf("the end of following: %q, %v", rest, err)
	}
}

func TestFollowEndsWithTheLog(t *testing.T) {
	dir := t.TempDir()
	l, err := OpenLog(dir)
	if err != nil {
		t.Fatal(err)
	}
	l.Write([]byte("last words")) //nolint:errcheck // seen below
	l.Close()
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := CopyLog(context.Background(), w, dir, -1, true)
		w.CloseWithError(err) //nolint:errcheck // it has none
		done <- err
	}()
	got := make([]byte, 10)
	if _, err := io.ReadFull(r, got); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, LogName)); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestTail(t *testing.T) {
	for _, c := range []struct {
		text string
		n    int
		want string
	}{
		{"", -1, ""},
		{"", 3, ""},
		{"a\nb\nc\n", -1, "a\nb\nc\n"},
		{"a\nb\nc\n", 0, ""},
		{"a\nb\nc\n", 1, "c\n"},
		{"a\nb\nc\n", 2, "b\nc\n"},
		{"a\nb\nc\n", 3, "a\nb\nc\n"},
		{"a\nb\nc\n", 9, "a\nb\nc\n"},
		{"a\nlogin: ", 1, "login: "},
		{"a\n\n\n", 2, "\n\n"},
		{"no newline", 1, "no newline"},
	} {
		if got := string(Tail([]byte(c.text), c.n)); got != c.want {
			t.Errorf("Tail(%q, %d) = %q, want %q", c.text, c.n, got, c.want)
		}
	}
}

// A writer that died between the two steps of a turn leaves a log all the same.
func TestLogWithoutItsNewestFile(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, oldName), []byte("old\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var kept bytes.Buffer
	if err := CopyLog(context.Background(), &kept, dir, -1, false); err != nil || kept.String() != "old\n" {
		t.Errorf("kept %q, %v", kept.String(), err)
	}
}
