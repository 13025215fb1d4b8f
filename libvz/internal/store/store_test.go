package store

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestLockIsExclusive(t *testing.T) {
	s := Open(t.TempDir())
	e, err := s.Lock("a")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Lock("a"); !errors.Is(err, ErrLocked) {
		t.Fatalf("second lock: %v, want ErrLocked", err)
	}
	if _, err := s.Lock("b"); err != nil {
		t.Fatalf("another id: %v", err)
	}
	e.Close()
	e, err = s.Lock("a")
	if err != nil {
		t.Fatalf("after close: %v", err)
	}
	// Forget unlinks the lock file while it is held: the next holder gets a
	// new file and must not be kept out by, or share, the old one.
	if err := e.Forget(); err != nil {
		t.Fatal(err)
	}
	e2, err := s.Lock("a")
	if err != nil {
		t.Fatalf("after forget: %v", err)
	}
	e.Close()
	if _, err := s.Lock("a"); !errors.Is(err, ErrLocked) {
		t.Fatalf("the old holder's close freed the new lock: %v", err)
	}
	e2.Close()
}

func TestAwaitWaitsForTheHolder(t *testing.T) {
	s := Open(t.TempDir())
	first, err := s.Lock("a")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := s.Await(ctx, "a"); !errors.Is(err, ErrLocked) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("held for longer: %v", err)
	}
	got := make(chan *Entry)
	go func() {
		e, err := s.Await(t.Context(), "a")
		if err != nil {
			t.Error(err)
		}
		got <- e
	}()
	// What it waits for may be a file that is no lock any more.
	if err := first.Forget(); err != nil {
		t.Fatal(err)
	}
	first.Close()
	second := <-got
	if second == nil {
		t.FailNow()
	}
	defer second.Close()
	if _, err := s.Lock("a"); !errors.Is(err, ErrLocked) {
		t.Errorf("not locked: %v", err)
	}
}

func TestJournalOutlivesItsHolder(t *testing.T) {
	s := Open(t.TempDir())
	e, err := s.Lock("a")
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Begin(Operation{Name: "create", Cgroups: map[string]string{"": "/x"}}); err != nil {
		t.Fatal(err)
	}
	if err := e.Step("started"); err != nil {
		t.Fatal(err)
	}
	e.Close() // as a kill -9 would

	e, err = s.Lock("a")
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	op := e.Operation
	if op == nil || op.Name != "create" || op.Step != "started" || op.Cgroups[""] != "/x" || op.Pid != os.Getpid() {
		t.Fatalf("operation = %+v", op)
	}
	if err := e.Begin(Operation{Name: "delete"}); err == nil {
		t.Fatal("an operation began over an unfinished one")
	}
	if err := e.End(); err != nil {
		t.Fatal(err)
	}
	if r, err := s.Read("a"); err != nil || r.Operation != nil {
		t.Fatalf("after End: %+v, %v", r, err)
	}
	if err := e.Forget(); err != nil {
		t.Fatal(err)
	}
	if err := e.Forget(); err != nil {
		t.Fatalf("Forget is not idempotent: %v", err)
	}
}

// What undoes an operation goes by its step: it must not be one that nobody knows of.
func TestStepThatCannotBeWrittenIsNotTaken(t *testing.T) {
	s := Open(t.TempDir())
	e, err := s.Lock("a")
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if err := e.Begin(Operation{Name: "checkpoint", Step: "begun"}); err != nil {
		t.Fatal(err)
	}
	// In the place of the file that is about to replace the record.
	inTheWay := temporary(s.path("a", ".json"))
	if err := os.Mkdir(inTheWay, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := e.Step("committed"); err == nil || e.Operation.Step != "begun" {
		t.Errorf("%v, step %q", err, e.Operation.Step)
	}
	if err := os.Remove(inTheWay); err != nil {
		t.Fatal(err)
	}
	r, err := s.Read("a")
	if err != nil || r.Operation.Step != "begun" {
		t.Errorf("%v, on disk %+v", err, r)
	}
	if err := e.Step("committed"); err != nil || e.Operation.Step != "committed" {
		t.Errorf("%v, step %q", err, e.Operation.Step)
	}
}

func TestReadRefusesWhatItDoesNotKnow(t *testing.T) {
	root := t.TempDir()
	s := Open(root)
	if err := os.Mkdir(filepath.Join(root, DirName), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		content string
		is      error
	}{
		"newer":     {`{"format":99,"id":"newer"}`, ErrNewer},
		"truncated": {`{"format":1,`, nil},
	} {
		if err := os.WriteFile(filepath.Join(root, DirName, name+".json"), []byte(c.content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := s.Lock(name)
		if err == nil || (c.is != nil && !errors.Is(err, c.is)) {
			t.Errorf("%s: %v", name, err)
		}
		// A refused record must not keep the lock.
		if _, err := s.Lock(name); errors.Is(err, ErrLocked) {
			t.Errorf("%s: lock leaked", name)
		}
	}
}

func TestAllReadsWhatItCan(t *testing.T) {
	root := t.TempDir()
	s := Open(root)
	if all, err := s.All(); err != nil || len(all) != 0 {
		t.Fatalf("before the first lock: %v, %v", all, err)
	}
	for id, uuid := range map[string]string{"a": "u1", "b": ""} {
		e, err := s.Lock(id)
		if err != nil {
			t.Fatal(err)
		}
		e.UUID = uuid
		if err := e.Save(); err != nil {
			t.Fatal(err)
		}
		e.Close()
	}
	for name, content := range map[string]string{"c.json": "{", "d.json": `{"format":99,"id":"d"}`, "e.json": `{"format":1,"id":"other"}`} {
		if err := os.WriteFile(filepath.Join(root, DirName, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	all, err := s.All()
	if err != nil || len(all) != 2 || all[0].ID != "a" || all[0].UUID != "u1" || all[1].UUID != "" {
		t.Errorf("got %+v, %v", all, err)
	}
}
