// Package libvz runs system containers: whole operating systems, from OCI
// bundles, that can be checkpointed, restored and cloned.
//
// A Host is one node's containers, a Container a handle to one of them. Any
// number of processes may hold handles to the same container; methods that
// change it take the container's lock and return ErrBusy rather than wait.
// Nothing is cached: every answer is derived from the kernel and the state
// directory at the time of the call.
package libvz

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	_ "github.com/opencontainers/cgroups/devices" // teaches the cgroup managers device rules
	"github.com/opencontainers/runc/libcontainer"

	"github.com/vzrun/vzrun/libvz/internal/store"
)

// DefaultRoot is the state directory where Options name none.
const DefaultRoot = "/run/vzrun"

// Options of a Host. The zero value is ready for use.
type Options struct {
	// Root is the state directory, "" is DefaultRoot. It is created when
	// the first container is. It must not outlive a reboot.
	Root string
	// IDs is the host's record of who has which range of ids, "" is
	// DefaultIDs. It must outlive a reboot.
	IDs string
	// SystemdCgroup makes containers scopes of the host's systemd.
	SystemdCgroup bool
	// Rootless says whether containers make do without cgroups where the
	// caller may not make any.
	Rootless Rootless
	// Criu is the criu executable; "" searches for it.
	Criu string
	// OnEvent is told the progress and the warnings of operations, from any
	// goroutine and perhaps from two at a time; nil tells nobody.
	OnEvent func(Event)
	// LogLevel is what the container's first process logs until it becomes
	// the guest's init, as a logrus level number; "" = errors only.
	LogLevel string
}

// Event is a step of an operation, or a warning of one.
type Event struct {
	ID, Step string
	// Done and Total are bytes; Total 0 = unknown.
	Done, Total int64
	// Round counts passes over the memory of a guest that runs, from 1, and Pages
	// are those that had been written; 0 elsewhere and where not known yet.
	Round   int
	Pages   uint64
	Warning string
}

// Host is one node's containers, below one state directory.
type Host struct {
	opts  Options
	store *store.Store
}

// Open returns the host. It touches nothing.
func Open(o Options) (*Host, error) {
	if o.Root == "" {
		o.Root = DefaultRoot
	}
	root, err := filepath.Abs(o.Root)
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	o.Root = root
	if o.IDs == "" {
		o.IDs = DefaultIDs
	}
	if o.IDs, err = filepath.Abs(o.IDs); err != nil {
		return nil, fmt.Errorf("record of ids: %w", err)
	}
	return &Host{opts: o, store: store.Open(root)}, nil
}

// maxIDLength keeps names of files and cgroups under NAME_MAX with room for
// suffixes.
const maxIDLength = 200

// CheckID returns an error that wraps ErrInvalidID where id cannot name a
// container: it must be 1 to 200 ASCII letters, digits, "_", "+", "-" and ".",
// and neither "." nor "..".
func CheckID(id string) error {
	ok := id != "" && id != "." && id != ".." && len(id) <= maxIDLength
	for i := 0; ok && i < len(id); i++ {
		c := id[i]
		ok = 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("_+-.", c) >= 0
	}
	if !ok {
		return withHint("ids are made of letters, digits and the characters _ + - .", "%w: %q", ErrInvalidID, id)
	}
	return nil
}

// Load returns a handle to an existing container.
func (h *Host) Load(id string) (*Container, error) {
	if err := CheckID(id); err != nil {
		return nil, fail("", id, err)
	}
	c, err := h.load(id)
	return c, fail("", id, err)
}

// load heals before it looks. A container of which there is nothing yet but an
// operation under way is busy: it may be there in a moment.
func (h *Host) load(id string) (*Container, error) {
	busy := h.heal(id)
	if busy != nil && !errors.Is(busy, ErrBusy) {
		return nil, busy
	}
	// Before it is read: what is written meanwhile is newer than the stamp.
	loaded := h.stampOf(id)
	lc, err := libcontainer.Load(h.opts.Root, id)
	if errors.Is(err, libcontainer.ErrNotExist) {
		if busy != nil {
			return nil, busy
		}
		return nil, ErrNotExist
	}
	if err != nil {
		return nil, fmt.Errorf("read state: %w", err)
	}
	return &Container{host: h, id: id, lc: lc, loaded: loaded}, nil
}

// heal undoes an operation whose process died, and removes the lock of one that
// died before it had begun.
func (h *Host) heal(id string) error {
	r, err := h.store.Read(id)
	begun := err == nil && r.Operation != nil && !isUnconfirmed(r.Operation)
	stray := errors.Is(err, fs.ErrNotExist) && h.store.HasLock(id)
	if !begun && !stray {
		return nil
	}
	entry, err := h.lock(id)
	if err != nil {
		return err
	}
	defer entry.Close()
	if _, err := os.Lstat(filepath.Join(h.opts.Root, id)); errors.Is(err, fs.ErrNotExist) {
		return entry.Forget()
	}
	return nil
}

// List returns the state of every container, sorted by id. A container whose
// state cannot be read is left out; its error is in the joined error, beside
// the states of the others.
func (h *Host) List() ([]State, error) {
	_, states, err := h.list()
	return states, err
}

// list returns a handle beside each state.
func (h *Host) list() ([]*Container, []State, error) {
	entries, err := os.ReadDir(h.opts.Root)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("read state directory: %w", err)
	}
	states, containers := []State{}, []*Container{}
	var errs []error
	for _, e := range entries {
		if !e.IsDir() || CheckID(e.Name()) != nil {
			continue
		}
		c, err := h.load(e.Name())
		if errors.Is(err, ErrNotExist) || errors.Is(err, ErrBusy) {
			continue // deleted meanwhile, or being created
		}
		var s State
		if err == nil {
			s, err = c.State()
		}
		if err != nil {
			errs = append(errs, fail("list", e.Name(), err))
			continue
		}
		states, containers = append(states, s), append(containers, c)
	}
	errs = append(errs, h.healNew())
	// ReadDir has sorted them by id.
	return containers, states, errors.Join(errs...)
}

// healNew undoes what died before there was a container: a migration that was coming
// has a bundle long before.
func (h *Host) healNew() error {
	ids, err := h.store.IDs()
	if err != nil {
		return fmt.Errorf("read journal: %w", err)
	}
	var errs []error
	for _, id := range ids {
		if _, err := os.Lstat(filepath.Join(h.opts.Root, id)); CheckID(id) != nil || !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := h.heal(id); err != nil && !errors.Is(err, ErrBusy) && !errors.Is(err, ErrNotExist) {
			errs = append(errs, fail("list", id, err))
		}
	}
	return errors.Join(errs...)
}

// lock takes the container's lock for a change. An operation that died in the
// middle is undone first, so the caller finds the container as it was before
// that one, or after it.
func (h *Host) lock(id string) (*store.Entry, error) { return h.lockBy(id, h.store.Lock) }

// awaitLock is lock for who waits until others are done with the container.
func (h *Host) awaitLock(ctx context.Context, id string) (*store.Entry, error) {
	return h.lockBy(id, func(id string) (*store.Entry, error) { return h.store.Await(ctx, id) })
}

func (h *Host) lockBy(id string, take func(string) (*store.Entry, error)) (*store.Entry, error) {
	e, err := take(id)
	if errors.Is(err, store.ErrLocked) {
		return nil, withHint("wait until it is done and try again", "%w: %w", ErrBusy, err)
	}
	if err != nil {
		return nil, err
	}
	if e.Operation == nil {
		return e, nil
	}
	if isUnconfirmed(e.Operation) {
		defer e.Close()
		return nil, h.undoMigration(e)
	}
	name := e.Operation.Name
	err = h.undo(e)
	e.Close()
	if err != nil {
		return nil, fmt.Errorf("clean up after an interrupted %s: %w", name, err)
	}
	// The undo may have given the id away, and the lock with it.
	return h.lockBy(id, take)
}

func (h *Host) event(e Event) {
	if h.opts.OnEvent != nil {
		h.opts.OnEvent(e)
	}
}

// warn may quote a guest, as an [Error] may.
func (h *Host) warn(id, format string, args ...any) {
	h.event(Event{ID: id, Warning: oneLine(fmt.Sprintf(format, args...))})
}
