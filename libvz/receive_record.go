package libvz

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"

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

// recordOf returns the place of a migration's record; its token comes from the
// other side.
func recordOf(bundles, token string) (recordAt, error) {
	if !regexp.MustCompile(`^[0-9a-f]{32}$`).MatchString(token) {
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

// dropBundle removes a received bundle, or what came into a shared one.
func dropBundle(bundle string, shared bool) error {
	if bundle == "" {
		return nil
	}
	if shared {
		return store.RemoveTree(bundle, arrivalFolder)
	}
	return store.RemoveTree(filepath.Dir(bundle), filepath.Base(bundle))
}
