//go:build !lean

package main

import (
	"encoding/json"
	"io"
	"sync"
	"time"

	"github.com/vzrun/vzrun/internal/cli"

	"github.com/vzrun/vzrun/libvz"
)

// migrationProgress shows the steps of a migration as --progress says: on a
// terminal as every long verb does, or as one JSON object per line.
type migrationProgress struct {
	*progress
	mu  sync.Mutex
	out io.Writer // nil: no JSON
}

func newMigrationProgress(c *cli.Context) *migrationProgress {
	p := &migrationProgress{progress: newProgress()}
	if c.String("progress") == "json" {
		p.out = c.App.Writer
	}
	return p
}

// progressEvent is a line of --progress json; docs/migration.md describes it.
type progressEvent struct {
	Time    time.Time `json:"time"`
	ID      string    `json:"id"`
	Step    string    `json:"step,omitempty"`
	Done    int64     `json:"done,omitempty"`
	Total   int64     `json:"total,omitempty"`
	Round   int       `json:"round,omitempty"`
	Pages   uint64    `json:"pages,omitempty"`
	Warning string    `json:"warning,omitempty"`
}

func (p *migrationProgress) onEvent(e libvz.Event) {
	if p.out == nil {
		p.progress.onEvent(e)
		return
	}
	line, err := json.Marshal(progressEvent{time.Now().UTC(), e.ID, e.Step, e.Done, e.Total, e.Round, e.Pages, e.Warning})
	if err != nil {
		return // of strings and numbers there is none
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.out.Write(append(line, '\n')) //nolint:errcheck // a reader that is gone must not stop a migration
}
