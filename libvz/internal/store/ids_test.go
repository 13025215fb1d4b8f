package store

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"
)

func TestParseIDs(t *testing.T) {
	for content, want := range map[string]error{
		`{"format":1,"claims":[]}`: nil,
		`{"format":1,"claims":[{"first":1,"size":2,"bundle":"/b","containers":[{"root":"/r","id":"a"}]}]}`: nil,
		``:                           ErrDamaged,
		`{}`:                         ErrDamaged,
		`[]`:                         ErrDamaged,
		`null`:                       ErrDamaged,
		`{"format":1}`:               ErrDamaged,
		`{"format":2,"claims":[]}`:   ErrNewer,
		`{"format":1,"claims":[]} x`: ErrDamaged,
		`{"format":1,"claims":[{"first":0,"size":2,"bundle":"/b"}]}`:                                        ErrDamaged,
		`{"format":1,"claims":[{"first":1,"size":0,"bundle":"/b"}]}`:                                        ErrDamaged,
		`{"format":1,"claims":[{"first":-1,"size":2,"bundle":"/b"}]}`:                                       ErrDamaged,
		`{"format":1,"claims":[{"first":4294967290,"size":65536,"bundle":"/b"}]}`:                           ErrDamaged,
		`{"format":1,"claims":[{"first":1,"size":2,"bundle":"b"}]}`:                                         ErrDamaged,
		`{"format":1,"claims":[{"first":1,"size":2,"bundle":"/b","pid":-1}]}`:                               ErrDamaged,
		`{"format":1,"claims":[{"first":1,"size":2,"bundle":"/b","containers":[{"root":"/r","id":".."}]}]}`: ErrDamaged,
		`{"format":1,"claims":[{"first":1,"size":2,"bundle":"/b","containers":[{"root":"r","id":"a"}]}]}`:   ErrDamaged,
	} {
		if _, err := ParseIDs([]byte(content)); !errors.Is(err, want) {
			t.Errorf("%s: %v", content, err)
		}
	}
}

// FuzzIDs reads any record: it is refused, or is the same after it was written
// again.
func FuzzIDs(f *testing.F) {
	f.Add([]byte(`{"format":1,"claims":[{"first":1048576,"size":65536,"bundle":"/b","pid":7,"start":9,"containers":[{"root":"/r","id":"a"}]}]}`))
	f.Add([]byte(`{"format":1,"claims":[{}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		claims, err := ParseIDs(data)
		if err != nil {
			if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewer) {
				t.Fatal(err)
			}
			return
		}
		is, err := json.Marshal(idFile{Format: idFormat, Claims: claims})
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseIDs(is)
		if err != nil {
			t.Fatal(err)
		}
		if second, _ := json.Marshal(idFile{Format: idFormat, Claims: again}); string(second) != string(is) {
			t.Fatalf("differs:\n%s\n%s", is, second)
		}
	})
}

func TestIDRecord(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sub", "ids.json")
	r, err := LockIDs(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	// Nobody gets it meanwhile, however long they wait.
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := LockIDs(ctx, path); !errors.Is(err, ErrLocked) {
		t.Fatalf("second lock: %v", err)
	}
	r.Claims = []IDClaim{{First: 1 << 20, Size: 1 << 16, Bundle: "/b"}}
	if err := r.Save(); err != nil {
		t.Fatal(err)
	}
	want := r.Claims
	r.Close()
	if r, err = LockIDs(t.Context(), path); err != nil || !reflect.DeepEqual(r.Claims, want) {
		t.Fatalf("read %v, %v", r, err)
	}
	r.Close()
	for _, spoil := range []func() error{
		func() error { return os.Chmod(path, 0o666) },
		func() error { return os.WriteFile(path, nil, 0o600) },
		func() error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		if r, err := LockIDs(t.Context(), path); !errors.Is(err, ErrDamaged) {
			t.Errorf("damaged record: %v, %v", r, err)
		}
		os.Chmod(path, 0o600) //nolint:errcheck // the next step shows
	}
	// An error leaves no lock behind.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if r, err = LockIDs(t.Context(), path); err != nil || len(r.Claims) != 0 {
		t.Fatalf("after the damage: %v, %v", r, err)
	}
	r.Close()
}

func TestHeld(t *testing.T) {
	s := Open(t.TempDir())
	held := func(want bool) {
		t.Helper()
		if got, err := s.Held("a"); got != want || err != nil {
			t.Errorf("held: %v, %v", got, err)
		}
	}
	held(false)
	e, err := s.Lock("a")
	if err != nil {
		t.Fatal(err)
	}
	held(true)
	e.Close()
	held(false)
	if lockListed("1: POSIX  ADVISORY  WRITE 1 00:1b:77 0 EOF\n2: FLOCK  ADVISORY  WRITE 1 00:1b:177 0 EOF\n", 77) {
		t.Error("took another lock for it")
	}
}
