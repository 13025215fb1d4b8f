//go:build !lean

package libvz

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/vzrun/vzrun/libvz/internal/changes"
)

// The guest stands still in the last pass over its files, so it has only those that may
// have changed since the one before it began: rsync compares all of two trees, which takes
// seconds where there are many files. While a first pass of an hour lasts much will change,
// so that others follow it as long as each is much shorter than the one before.

// filePasses decides whether there is to be another one while the guest runs. The zero
// value knows of none.
type filePasses struct {
	n      int
	before time.Duration
}

// A pass that is short leaves little for the last one. There is no end of them where a
// guest changes files as fast as they are sent.
const (
	shortPass  = 2 * time.Second
	mostPasses = 6
)

// another is to be told how long each pass took.
func (p *filePasses) another(took time.Duration) bool {
	gains := p.n == 0 || took < p.before*3/4
	p.n, p.before = p.n+1, took
	return took > shortPass && gains && p.n < mostPasses
}

// sentFiles is when the first pass over all files began, and the last one that was whole,
// if any was.
type sentFiles struct {
	any         bool
	first, last changes.Moment
}

// begin returns the moment for a pass that is about to begin. What was written through
// shared mappings is written back, so that who writes on has the file's times set anew.
func (s *sentFiles) begin(root string) (changes.Moment, error) {
	now, err := changes.Now()
	if err != nil {
		return now, err
	}
	return now, syncFS(root)
}

// sent notes that the pass which began at a moment was whole.
func (s *sentFiles) sent(m changes.Moment) {
	if !s.any {
		s.any, s.first = true, m
	}
	s.last = m
}

// changed lists, for rsync, what may have changed in root since they were sent: files
// by name, and all else.
//
// After an error all is to be looked at.
func (s *sentFiles) changed(root string) (files, others []string, err error) {
	// Without what is mounted below it, like rsync.
	tree, err := cloneTree(root, 0)
	if err != nil {
		return nil, nil, err
	}
	defer tree.Close()
	dir, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", tree.Fd()))
	if err != nil {
		return nil, nil, err
	}
	defer dir.Close()
	found, err := changes.Since(dir, s.first, s.last)
	if err != nil {
		return nil, nil, err
	}
	for _, e := range found {
		switch {
		case e.IsRegular() && e.Changed:
			files = append(files, e.Path)
		case e.IsDir():
			others = append(others, e.Path+"/") // all that is in it, but not below
		default:
			others = append(others, e.Path)
		}
	}
	return files, others, nil
}

// listOptions are rsyncOptions for a list of names, of which some may be gone again.
func listOptions() []string {
	return []string{"-aHAXS", "--numeric-ids", "--force", "--modify-window=-1", "--from0", "--files-from=-", "--ignore-missing-args"}
}

// rsyncList is a list of names for --from0; they are the guest's, and may begin with
// anything.
func rsyncList(names []string) []byte {
	slices.Sort(names)
	var list strings.Builder
	for _, name := range slices.Compact(names) {
		list.WriteString("./" + name + "\x00")
	}
	return []byte(list.String())
}
