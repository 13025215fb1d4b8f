//go:build !lean

package libvz

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/vzrun/vzrun/libvz/internal/changes"
)

// The guest stands still in the last pass over its files, so it has only those that may
// have changed since the first one began: rsync compares all of two trees, which takes
// seconds where there are many files.

// sentFiles is when all files were sent.
type sentFiles struct{ began changes.Moment }

// begin notes that they are about to be. What was written through shared mappings is
// written back, so that who writes on has the file's times set anew.
func (s *sentFiles) begin(root string) (err error) {
	if s.began, err = changes.Now(); err != nil {
		return err
	}
	return syncFS(root)
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
	found, err := changes.Since(dir, s.began)
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

// listOptions are rsyncOptions for a list of names.
func listOptions() []string {
	return []string{"-aHAXS", "--numeric-ids", "--force", "--modify-window=-1", "--from0", "--files-from=-"}
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
