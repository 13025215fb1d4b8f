// Package store keeps what neither a container's bundle nor libcontainer
// knows: who holds the container right now, and which operation was under way
// when its process died.
//
// Everything lies in one directory beside the containers' own, named "@" so
// that no container id can meet it (ids have no "@"):
//
//	<root>/@/<id>.lock    flock(2)ed by the process that changes the container
//	<root>/@/<id>.json    the Record, replaced atomically
//
// A record is there for as long as the container is, and for as long as the
// undo of a half-done operation needs it.
package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Format is the version written into every record. A record with a higher
// one was written by a newer vzrun and is refused with ErrNewer.
const Format = 1

// DirName is the store's folder below the state root.
const DirName = "@"

var (
	// ErrLocked says that another process is changing the container.
	ErrLocked = errors.New("another operation is under way")
	// ErrNewer says that the record was written by a newer version.
	ErrNewer = errors.New("state was written by a newer version")
)

// Operation is one change of a container that has begun and not ended. It is
// on disk before the first side effect and gone after the last, so finding one
// under the lock means that its process died on the way.
type Operation struct {
	Name  string    `json:"name"`
	Step  string    `json:"step"`
	Pid   int       `json:"pid"`
	Since time.Time `json:"since"`
	// Criu is the pid and start time (clock ticks, field 22 of
	// /proc/PID/stat) of the criu process that works for the operation;
	// zero where there is none.
	Criu      int    `json:"criu,omitempty"`
	CriuStart uint64 `json:"criu_start,omitempty"`
	// Holder is likewise the process that keeps the userfaultfds of tasks which lack
	// memory. It outlives an operation that dies, and ends after the tasks.
	Holder      int    `json:"holder,omitempty"`
	HolderStart uint64 `json:"holder_start,omitempty"`
	// Cgroups are the directories that the operation may have filled with
	// processes; an undo ends what is in them.
	Cgroups map[string]string `json:"cgroups,omitempty"`
	// Images is the directory that a checkpoint writes to. It held no
	// images before, so an undo may remove those that are in it; with
	// Replaces it has those before in a folder, to be brought back.
	Images   string `json:"images,omitempty"`
	Replaces bool   `json:"replaces,omitempty"`
	// Private is a directory that the operation has made for itself, all of
	// which an undo removes.
	Private string `json:"private,omitempty"`
	// Frozen are cgroups of the guest that it had frozen itself and that an
	// undo freezes again, relative to Cgroups[""]; any bytes may be in a name.
	Frozen [][]byte `json:"frozen,omitempty"`
	// Paused says that the container was paused before the operation, and
	// is to be after its undo.
	Paused bool `json:"paused,omitempty"`
	// Net is the container's network in the words of its annotation; an undo
	// takes down what of it is on the host.
	Net string `json:"net,omitempty"`
	// Made is the bundle that the operation makes, or removes: an undo removes
	// it and all that is in it.
	Made string `json:"made,omitempty"`
	// MadeFor is what the bundle says of its owner; of another's nothing is
	// removed.
	MadeFor string `json:"made_for,omitempty"`
	// Kept is when the bundle became the user's: what is restored in it may write
	// there from then on. An undo does not remove one that has changed since.
	Kept time.Time `json:"kept,omitzero"`
	// Renew says that the guest, once it runs, is to be told that it is a clone.
	Renew bool `json:"renew,omitempty"`
	// Init is the container's first process before the operation.
	Init int `json:"init,omitempty"`
	// Migration is set on both sides of one.
	Migration *Migration `json:"migration,omitempty"`
}

// Migration is what an undo needs to know of a migration.
type Migration struct {
	Token string `json:"token"`
	// Target is how the source dialled the destination.
	Target string `json:"target,omitempty"`
	// Lazy says that criu hands memory out, and ends only when it is told to.
	Lazy bool `json:"lazy,omitempty"`
	// Bundle and Record are the destination's: the bundle that it received,
	// which is not its own to remove if Shared, and the file in which it
	// keeps the outcome.
	Bundle string `json:"bundle,omitempty"`
	Record string `json:"record,omitempty"`
	Shared bool   `json:"shared,omitempty"`
}

// Record is what is stored of one container.
type Record struct {
	Format int    `json:"format"`
	ID     string `json:"id"`
	// UUID is the container's own, where its configuration has one.
	UUID      string     `json:"uuid,omitempty"`
	Operation *Operation `json:"operation,omitempty"`
}

// Store is the folder of records of one state root.
type Store struct{ dir string }

// Open names the store below root. Nothing is created until the first Lock.
func Open(root string) *Store { return &Store{dir: filepath.Join(root, DirName)} }

// Entry is a locked record. It must be closed; Close releases the lock.
type Entry struct {
	Record
	store *Store
	lock  *os.File
}

// Lock takes the container's lock without waiting and reads its record, an
// empty one where there is none yet. It returns ErrLocked where another
// process (or another Entry of this one) holds it. The kernel drops the lock
// when the holder dies, however it dies (flock(2)).
func (s *Store) Lock(id string) (*Entry, error) {
	return s.lock(id, func(f *os.File) error {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err != nil {
			f.Close()
		}
		if errors.Is(err, unix.EWOULDBLOCK) {
			return ErrLocked
		}
		return err
	})
}

// Await is Lock, but waits for the holder, at the most until ctx ends: the error
// wraps ErrLocked then, too.
func (s *Store) Await(ctx context.Context, id string) (*Entry, error) {
	return s.lock(id, func(f *os.File) error { return waitFlock(ctx, f) })
}

func (s *Store) lock(id string, take func(*os.File) error) (*Entry, error) {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, fmt.Errorf("create state directory: %w", err)
	}
	lock, err := s.flock(id, take)
	if err != nil {
		return nil, err
	}
	e := &Entry{store: s, lock: lock}
	r, err := s.Read(id)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		e.Record = Record{Format: Format, ID: id}
	case err != nil:
		lock.Close()
		return nil, err
	default:
		e.Record = *r
	}
	return e, nil
}

// flock opens the lock file and locks it with take, which closes it where it fails.
// The holder of the lock may unlink the file (Forget), so a lock won on a file that
// is no longer the one in the directory is no lock: then it tries again with the
// new file.
func (s *Store) flock(id string, take func(*os.File) error) (*os.File, error) {
	path := s.path(id, ".lock")
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, fmt.Errorf("open lock: %w", err)
		}
		err = take(f)
		if errors.Is(err, ErrLocked) {
			return nil, err
		}
		if err != nil {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		mine, err := f.Stat()
		if err != nil {
			f.Close()
			return nil, err
		}
		if there, err := os.Lstat(path); err == nil && os.SameFile(mine, there) {
			return f, nil
		}
		f.Close()
	}
}

// Read returns the record as it is on disk, without a lock. The error is
// fs.ErrNotExist where there is none.
func (s *Store) Read(id string) (*Record, error) {
	path := s.path(id, ".json")
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if len(data) == 0 {
		// Only a loss of power leaves that, and no container survives one.
		return nil, fmt.Errorf("read %s: empty: %w", path, fs.ErrNotExist)
	}
	r := &Record{}
	if err := json.Unmarshal(data, r); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if r.Format > Format {
		return nil, fmt.Errorf("read %s: format %d: %w", path, r.Format, ErrNewer)
	}
	return r, nil
}

// All returns the records of all containers, without locks. What cannot be read
// is left out.
func (s *Store) All() ([]Record, error) {
	entries, err := os.ReadDir(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []Record
	for _, e := range entries {
		id, isRecord := strings.CutSuffix(e.Name(), ".json")
		if !isRecord {
			continue
		}
		if r, err := s.Read(id); err == nil && r.ID == id {
			all = append(all, *r)
		}
	}
	return all, nil
}

// IDs returns the ids of which there are records, without locks.
func (s *Store) IDs() ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var ids []string
	for _, e := range entries {
		if id, isRecord := strings.CutSuffix(e.Name(), ".json"); isRecord {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// Begun returns the records with an operation that has not ended, without locks.
// What comes and goes meanwhile may be missing, and what a newer version wrote.
func (s *Store) Begun() ([]Record, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var begun []Record
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok {
			continue
		}
		r, err := s.Read(id)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrNewer) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if r.Operation != nil {
			begun = append(begun, *r)
		}
	}
	return begun, nil
}

// HasLock tells whether there is a lock file, held or not.
func (s *Store) HasLock(id string) bool {
	_, err := os.Lstat(s.path(id, ".lock"))
	return err == nil
}

// Begin writes op into the record before its first side effect. It fails
// where an unfinished operation is still recorded: that one is to be undone
// first.
func (e *Entry) Begin(op Operation) error {
	if e.Operation != nil {
		return fmt.Errorf("operation %s is not undone yet", e.Operation.Name)
	}
	op.Pid = os.Getpid()
	op.Since = time.Now().UTC()
	e.Operation = &op
	return e.Save()
}

// Step notes how far the operation is. It is on disk when Step returns nil; else
// the operation is as far as before, here as on disk: what undoes it goes by either.
func (e *Entry) Step(name string) error {
	if e.Operation == nil {
		return errors.New("no operation has begun")
	}
	before := e.Operation.Step
	e.Operation.Step = name
	if err := e.Save(); err != nil {
		e.Operation.Step = before
		return err
	}
	return nil
}

// End removes the operation from the record: it is done, or undone.
func (e *Entry) End() error {
	if e.Operation == nil {
		return nil
	}
	e.Operation = nil
	return e.Save()
}

// Save replaces the record in one step. It is not made durable: state does not
// outlive the machine's uptime (Options.Root), nor does a container.
func (e *Entry) Save() error {
	e.Format = Format
	data, err := json.Marshal(e.Record)
	if err != nil {
		return err
	}
	return WriteState(e.store.path(e.ID, ".json"), append(data, '\n'), 0o600)
}

// Forget removes the record and the lock file of a container that is gone.
// The Entry must still be closed. It is idempotent.
func (e *Entry) Forget() error {
	// The lock last: it protects the others.
	record := e.store.path(e.ID, ".json")
	for _, path := range []string{record, temporary(record), e.store.path(e.ID, ".lock")} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Close releases the lock. A second call does nothing.
func (e *Entry) Close() {
	if e.lock != nil {
		e.lock.Close()
		e.lock = nil
	}
}

func (s *Store) path(id, suffix string) string { return filepath.Join(s.dir, id+suffix) }
