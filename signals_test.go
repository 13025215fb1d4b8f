package main

import (
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestUntilInterruptedTellsWhatComesAgain(t *testing.T) {
	ctx, again, stop := untilInterrupted(t.Context())
	defer stop()
	send := func(s unix.Signal) {
		t.Helper()
		if err := unix.Kill(os.Getpid(), s); err != nil {
			t.Fatal(err)
		}
	}
	send(unix.SIGPIPE) // our output's reader is gone
	if ctx.Err() != nil {
		t.Fatal("SIGPIPE ended it")
	}
	send(unix.SIGHUP)
	select {
	case <-ctx.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("SIGHUP did not end it")
	}
	// Nobody was receiving: that one has had its effect.
	select {
	case <-again:
		t.Error("told of a signal before")
	case <-time.After(50 * time.Millisecond):
	}
	told := make(chan struct{})
	go func() { <-again; close(told) }()
	for end := time.Now().Add(10 * time.Second); ; {
		send(unix.SIGINT)
		select {
		case <-told:
			return
		case <-time.After(10 * time.Millisecond): // before it received
		}
		if time.Now().After(end) {
			t.Fatal("not told of SIGINT")
		}
	}
}
