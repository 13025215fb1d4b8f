package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// IDClaim says that a bundle's configuration names a range of the host's ids,
// users' and groups' alike.
type IDClaim struct {
	First  uint32 `json:"first"`
	Size   uint32 `json:"size"`
	Bundle string `json:"bundle"` // absolute
	// Containers were made from the bundle with the range.
	Containers []IDContainer `json:"containers,omitempty"`
	// Pid and Start (clock ticks, field 22 of /proc/PID/stat) name the
	// process that writes the bundle's configuration; zero once it is known
	// to be written.
	Pid   int    `json:"pid,omitempty"`
	Start uint64 `json:"start,omitempty"`
}

// IDContainer names a container by its state root and id.
type IDContainer struct {
	Root string `json:"root"`
	ID   string `json:"id"`
}

// IDRecord is the host's record of claims, locked. It belongs to no state root,
// since ids are the whole host's, and outlives a reboot, as bundles do.
type IDRecord struct {
	Claims []IDClaim

	path string
	lock *os.File
	was  []byte
}

// ErrDamaged says that a record cannot be believed.
var ErrDamaged = errors.New("damaged")

const (
	idFormat = 1
	// maxIDRecord bounds the file: all ranges that there are, each with a
	// long path, fit in.
	maxIDRecord = 64 << 20
)

// LockIDs waits for the record at path, at the most until ctx ends, locks it and
// reads it; one that is not there is empty. The error wraps ErrDamaged, ErrNewer
// or ErrLocked where one fits. Its directory is made if need be.
func LockIDs(ctx context.Context, path string) (*IDRecord, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("create directory of the id record: %w", err)
	}
	lock, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	if err := waitFlock(ctx, lock); err != nil {
		return nil, fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	r := &IDRecord{path: path, lock: lock}
	if r.was, err = readOwn(path); err == nil && r.was != nil {
		r.Claims, err = ParseIDs(r.was)
	}
	if err != nil {
		r.Close()
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return r, nil
}

// waitFlock locks f or closes it.
func waitFlock(ctx context.Context, f *os.File) error {
	done := make(chan error, 1)
	go func() {
		for {
			if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != unix.EINTR {
				done <- err
				return
			}
		}
	}()
	select {
	case err := <-done:
		if err != nil {
			f.Close()
		}
		return err
	case <-ctx.Done():
		// The lock may still come. It goes with the file.
		go func() {
			<-done
			f.Close()
		}()
		return fmt.Errorf("%w: %w", ErrLocked, ctx.Err())
	}
}

// readOwn reads a file that nobody but the caller's user can have written; nil
// where there is none.
func readOwn(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, err
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size > maxIDRecord:
		return nil, fmt.Errorf("%w: not a regular file of at most %d bytes", ErrDamaged, maxIDRecord)
	case int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0:
		return nil, fmt.Errorf("%w: other users may write to it", ErrDamaged)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxIDRecord))
	if data == nil {
		data = []byte{}
	}
	return data, err
}

type idFile struct {
	Format int       `json:"format"`
	Claims []IDClaim `json:"claims"`
}

// ParseIDs reads the content of a record. The error wraps ErrDamaged or
// ErrNewer. An empty file is damaged: the record is never written in place.
func ParseIDs(data []byte) ([]IDClaim, error) {
	var file idFile
	if err := json.Unmarshal(data, &file); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if file.Format > idFormat {
		return nil, fmt.Errorf("format %d: %w", file.Format, ErrNewer)
	}
	if file.Format != idFormat || file.Claims == nil {
		return nil, fmt.Errorf("%w: not a record of ids", ErrDamaged)
	}
	for i, c := range file.Claims {
		if err := c.check(); err != nil {
			return nil, fmt.Errorf("%w: claim %d: %w", ErrDamaged, i+1, err)
		}
	}
	return file.Claims, nil
}

func (c *IDClaim) check() error {
	switch {
	case c.First == 0 || c.Size == 0 || uint64(c.First)+uint64(c.Size) > math.MaxUint32:
		return fmt.Errorf("no range: %d ids from %d on", c.Size, c.First)
	case !filepath.IsAbs(c.Bundle):
		return fmt.Errorf("bundle %q is not absolute", c.Bundle)
	case c.Pid < 0:
		return fmt.Errorf("pid %d", c.Pid)
	}
	for _, u := range c.Containers {
		if !filepath.IsAbs(u.Root) || u.ID == "" || strings.ContainsAny(u.ID, "/\x00") || u.ID == "." || u.ID == ".." {
			return fmt.Errorf("container %q of %q", u.ID, u.Root)
		}
	}
	return nil
}

// Save writes what has changed, durably and in one step.
func (r *IDRecord) Save() error {
	claims := r.Claims
	if claims == nil {
		claims = []IDClaim{}
	}
	data, err := json.MarshalIndent(idFile{Format: idFormat, Claims: claims}, "", "\t")
	if err != nil {
		return err
	}
	data = append(data, '\n')
	if bytes.Equal(data, r.was) {
		return nil
	}
	if err := WriteFile(r.path, data, 0o600); err != nil {
		return err
	}
	r.was = data
	return nil
}

// Close releases the lock. A second call does nothing.
func (r *IDRecord) Close() {
	if r.lock != nil {
		r.lock.Close()
		r.lock = nil
	}
}

// Held tells whether some process holds the container's lock, without touching
// it (/proc/locks, proc_locks(5)).
func (s *Store) Held(id string) (bool, error) {
	var st unix.Stat_t
	err := unix.Lstat(s.path(id, ".lock"), &st)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at the lock of %s: %w", id, err)
	}
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		return false, err
	}
	return lockListed(string(locks), st.Ino), nil
}

// lockListed looks for a flock(2) on an inode. The device is not compared: some
// file systems show another to stat(2).
func lockListed(locks string, inode uint64) bool {
	suffix := fmt.Sprintf(":%d", inode)
	for line := range strings.Lines(locks) {
		// 1: FLOCK  ADVISORY  WRITE 4242 00:1b:1234 0 EOF
		f := strings.Fields(line)
		if len(f) >= 6 && f[1] == "FLOCK" && strings.HasSuffix(f[5], suffix) {
			return true
		}
	}
	return false
}
