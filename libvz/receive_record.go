package libvz

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vzrun/vzrun/libvz/internal/store"
)

// What a destination keeps of a migration, so that it can tell a source that has
// not heard the end.
const (
	recordOpen      = "open"      // nothing runs, and may not before the word
	recordCommitted = "committed" // the word is there, it is about to run
	recordRunning   = "running"   // it has run
	recordAborted   = "aborted"   // it has not run, and never will
	recordLost      = "lost"      // it has run, and its memory did not arrive
)

// migrationRecord is one file, named by the migration's token.
type migrationRecord struct {
	Token string `json:"token"`
	ID    string `json:"id"`
	State string `json:"state"`
	// Faults is known when it runs and its memory came afterwards.
	Faults *FaultStats `json:"faults,omitempty"`
}

// recordsFolder is where in the directory of bundles they lie. No id begins a
// bundle's name with a dot and is this one: see CheckID and answer.
const recordsFolder = ".migrations"

// recordAt is the path of a record.
type recordAt string

// tokenDigits is the length of a migration's token.
const tokenDigits = 32

// recordOf returns the place of a migration's record; its token comes from the
// other side.
func recordOf(bundles, token string) (recordAt, error) {
	if len(token) != tokenDigits || strings.Trim(token, "0123456789abcdef") != "" {
		return "", fmt.Errorf("%w: a token of a migration: %.100q", ErrRefused, token)
	}
	return recordAt(filepath.Join(bundles, recordsFolder, token+".json")), nil
}

func (p recordAt) write(r *migrationRecord) error {
	if err := os.MkdirAll(filepath.Dir(string(p)), 0o700); err != nil {
		return fmt.Errorf("record of the migration: %w", err)
	}
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := store.WriteFile(string(p), append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("record of the migration: %w", err)
	}
	return nil
}

// read returns an empty record where there is none.
func (p recordAt) read() (*migrationRecord, error) {
	const most = 1 << 16
	data, err := readRegular(string(p), most)
	if errors.Is(err, fs.ErrNotExist) {
		return &migrationRecord{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("record of the migration: %w", err)
	}
	r := &migrationRecord{}
	d := json.NewDecoder(bytes.NewReader(data))
	if err := d.Decode(r); err != nil {
		return nil, fmt.Errorf("record of the migration %s: %w", p, err)
	}
	return r, nil
}

func (p recordAt) remove() error {
	if err := os.Remove(string(p)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// arrivalFolder is where in a bundle the images are that come: not where the source has
// them, as the bundle may be the same.
const arrivalFolder = "arrival"

// arrivalMark is a file in a bundle that is being received, with the migration's token.
// Who removes the bundle goes by it: long after a receive was killed there may be another
// one's at that path.
const arrivalMark = ".receiving"

// dropBundle removes the bundle that a migration has brought, or what came into a
// shared one; another's it leaves alone. It is idempotent: a bundle that is removed has
// another name while that goes on.
func dropBundle(m *store.Migration) error {
	if m.Bundle == "" {
		return nil
	}
	if m.Shared {
		return store.RemoveTree(m.Bundle, arrivalFolder)
	}
	parent, unnamed := filepath.Dir(m.Bundle), ".dropped-"+m.Token
	if err := store.RemoveTree(parent, unnamed); err != nil {
		return err
	}
	token, err := readRegular(filepath.Join(m.Bundle, arrivalMark), tokenDigits)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		// Nobody's, or killed before it was marked: then there is nothing in it.
		if err := os.Remove(m.Bundle); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
			return err
		}
		return nil
	case err != nil:
		return fmt.Errorf("whose bundle it is: %w", err)
	case string(token) != m.Token:
		return nil
	}
	if err := os.Rename(m.Bundle, filepath.Join(parent, unnamed)); err != nil {
		return err
	}
	return store.RemoveTree(parent, unnamed)
}

// keepBundle makes a bundle one that has not come from elsewhere.
func keepBundle(m *store.Migration) error {
	if err := store.RemoveTree(m.Bundle, arrivalFolder); err != nil || m.Shared {
		return err
	}
	if err := os.Remove(filepath.Join(m.Bundle, arrivalMark)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
